"""A look tells of the data what reading them gives, and refuses what reading them would, with no image decoded."""

import re
from pathlib import Path

import numpy as np
import pytest

from stages import prepare
from stages.common import artifacts, datasets, params
from stages.common.datasets import pictures
from stages.common.datasets.sources import RAW
from stages.common.errors import UserError
from tests.datasets.raw import (
    OOD,
    choose,
    cifar_images,
    official_files,
    write_class,
    write_folders,
    write_tar,
    write_zips,
)

OWN = {"root": "own", "ood_root": "own_ood", "image_size": 16}


def agrees():
    """A look at the data set of params.yaml, which must be what reading it gives."""
    knobs, looked_at, read = params.load(), datasets.Account(), datasets.Account()
    look, splits = datasets.look(knobs, looked_at), datasets.load(knobs, read)
    for name, split in splits.items():
        counts = dict(zip(split.classes, np.bincount(split.labels, minlength=len(split.classes)).tolist(), strict=True))
        assert look.images[name] == counts, name
        assert look.shape == split.images.shape[1:]
    assert list(look.images["train"]) == list(splits["train"].classes)
    assert looked_at.left_out == read.left_out and looked_at.absent == []
    return looked_at


def test_what_can_be_looked_at_is_what_can_be_read(place, monkeypatch):
    assert datasets.LOOKS.keys() <= datasets.READERS.keys() and datasets.EXTRA_LOOKS.keys() == datasets.EXTRA.keys()
    monkeypatch.setattr(datasets, "LOOKS", {})
    assert datasets.look(params.load()) is None


@pytest.mark.parametrize("ood_split", ["train", "both"])
@pytest.mark.parametrize("source", ["zip", "folder", "tar", "extracted tar"])
def test_cifar(place, monkeypatch, source, ood_split):
    sets = cifar_images()
    if source == "zip":
        write_zips(sets, extra=[("cifar10/notes.txt", b"x")])
    elif source == "folder":
        write_folders(sets)
        Path(RAW, "cifar10/train/stray.png").touch()
    for name, images in sets.items():
        if source == "tar":
            write_tar(name, images, monkeypatch)
        elif source == "extracted tar":
            for file, content in official_files(name, images):
                (RAW / file).parent.mkdir(exist_ok=True)
                (RAW / file).write_bytes(content)
    choose("cifar10", ood_classes=OOD, ood_split=ood_split)
    assert agrees().places.keys() == {"cifar10", "cifar100"}


@pytest.mark.parametrize("layout", ["classes", "train and test"])
def test_a_folder(own, layout):
    write_class("own/cat/more", 40)
    Path("own/notes.md").touch()
    Path("own_ood/pen/raw.cr2").touch()
    if layout == "train and test":
        Path("own").rename("train")
        Path("own").mkdir()
        Path("train").rename("own/train")
        write_class("own/test/cat", 11)
        write_class("own/test/dog", 101)
    write_class("mine/more/mug", 90)
    choose("folder", **OWN, ood_classes=["pen"], extra_sets=["mine/more", "noise"])
    assert {Path(place).name for place in agrees().places.values()} == {"own", "own_ood", "more"}


def test_the_digits(place):
    choose("digits", extra_sets=["noise"])
    agrees()


def test_what_would_be_downloaded_is_taken_for_there_and_named(place):
    account = datasets.Account()
    look = datasets.look(params.load(), account)
    assert [message.split(" is not there")[0] for message in account.absent] == ["cifar10", "cifar100"]
    assert all("data/raw" in message and "dvc repro" in message for message in account.absent)
    assert sum(look.images["train"].values()) == 50 and account.places == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"target": "mug"}, "target = 'mug': allowed are the classes learnt, cat, dog"),
        ({"ood_classes": ["cap"]}, "ood_classes = 'cap': allowed are cup, pen"),
        ({"test_fraction": 0.9}, "class 'cat' has 1 images: too few to hold out validation_fraction"),
    ],
    ids=["target", "OOD class", "too few"],
)
def test_prepare_refuses_before_it_decodes(own, monkeypatch, given, words):
    monkeypatch.setattr(pictures, "load", lambda *_: pytest.fail("an image was decoded"))
    choose("folder", **OWN | given)
    with pytest.raises(UserError, match=words):
        prepare.main()
    assert not artifacts.PREPARED.exists() and not prepare.METRICS.exists()


def test_prepare_knows_how_many_training_images_there_will_be(own):
    choose("folder", **OWN)
    count = sum(datasets.look(params.load()).images["train"].values())
    text = Path("params.yaml").read_text()
    for neighbours in (count + 1, count):
        Path("params.yaml").write_text(re.sub(r"neighbours:\s+1\b", f"neighbours: {neighbours}", text))
        if neighbours > count:
            with pytest.raises(UserError, match=f"ood_eval.neighbours = {neighbours}: .* from 1 to {count}"):
                prepare.main()
    prepare.main()


def test_prepare_refuses_what_only_reading_tells(own, monkeypatch):
    monkeypatch.setattr(datasets, "LOOKS", {})
    choose("folder", target="mug", **OWN)
    with pytest.raises(UserError, match="target = 'mug': allowed are the classes learnt, cat, dog"):
        prepare.main()
    assert not artifacts.PREPARED.exists()


def test_a_class_too_small_to_hold_out_of_is_named_as_reading_names_it(own):
    write_class("own/owl", 70, [("RGB", (8, 8))])
    with pytest.raises(UserError) as looked:
        datasets.look(params.load())
    with pytest.raises(UserError) as read:
        datasets.load(params.load())
    assert str(looked.value) == str(read.value).replace(" (1 different)", "")
