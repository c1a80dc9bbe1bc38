"""The same image in two places is found by its pixels, counted, named, and an error above a share."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import prepare
from stages.common.errors import UserError
from tests.datasets.raw import choose, refused

KNOBS = {"root": "own", "ood_root": "own_ood", "image_size": 8}


@pytest.fixture
def splits(place):
    """Twenty images of noise a class: own/{train,test}/{a,b}, own_ood/z."""
    rng = np.random.default_rng(0)
    for folder in ("own/train/a", "own/train/b", "own/test/a", "own/test/b", "own_ood/z"):
        Path(folder).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(f"{folder}/{i}.png")
    choose("folder", **KNOBS)


def prepared(capsys):
    prepare.main()
    return json.loads(prepare.METRICS.read_text())["copies"], capsys.readouterr().out


def test_sets_without_copies_are_said_to_have_none(splits, capsys):
    found, said = prepared(capsys)
    assert set(found.values()) == {0} and len(found) == 3 and "warning" not in said


@pytest.mark.parametrize(
    ("source", "copy", "words"),
    [
        ("own/train/a/3.png", "own/test/a/copy.png", "test images that are training or validation images too"),
        ("own/test/b/3.png", "own_ood/z/copy.png", "OOD images that are images of a learnt class"),
        ("own/train/a/3.png", "own/train/b/copy.png", "images that stand in two classes"),
    ],
)
def test_one_copy_is_a_warning_and_an_error_above_the_share(splits, capsys, source, copy, words):
    shutil.copy(source, copy)
    choose("folder", **KNOBS, copies=0.2)
    found, said = prepared(capsys)
    assert {where: number for where, number in found.items() if number} == {words: 1}
    assert f"warning: the same image twice: 1 {words}, such as " in said and source in said and copy in said
    shutil.rmtree("data/prepared")
    shutil.rmtree("metrics")
    choose("folder", **KNOBS, copies=0.0)
    refused(words, source, copy, "datasets.folder.prepare.copies", "now 0")


def test_another_format_of_the_same_pixels_is_a_copy(splits, capsys):
    Image.open("own/train/a/3.png").save("own/test/a/copy.bmp")
    choose("folder", **KNOBS, copies=0.2)
    assert sum(prepared(capsys)[0].values()) == 1


def test_a_test_set_of_training_images_is_refused_by_default(splits):
    shutil.rmtree("own/test")
    shutil.copytree("own/train", "own/test")
    with pytest.raises(UserError, match=r"40 of 40 are test images that are training"):
        prepare.main()
