"""A user's own images: any size and mode, and one message for each fault."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import prepare
from stages.common import datasets, params
from tests.datasets.raw import choose, refused, write_class


@pytest.mark.parametrize("layout", ["classes", "train", "train and test"])
def test_folder_of_any_size_and_mode(own, layout):
    if layout != "classes":
        Path("own").rename("train")
        Path("own").mkdir()
        Path("train").rename("own/train")
    if layout == "train and test":
        write_class("own/test/cat", 11)
        write_class("own/test/dog", 101)
    Path("own/.DS_Store").touch()
    splits = datasets.load(params.load())
    tested = 12 if layout == "train and test" else 4
    sizes = {"train": 10 if tested == 12 else 6, "val": 2, "test": tested, "ood": 12, "extra": 0}
    assert {name: len(split) for name, split in splits.items()} == sizes
    assert all(split.images.shape[1:] == (3, 16, 16) for split in splits.values())
    assert splits["train"].classes == ("cat", "dog") and splits["ood"].classes == ("cup", "pen")


def test_folder_crops_the_centre_instead_of_squeezing(own):
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 20:40] = 200
    Image.fromarray(stripes).save("own/cat/9.png")
    splits = datasets.load(params.load())
    darkest = np.concatenate([splits[name].images for name in ("train", "val", "test")]).min((1, 2, 3))
    assert (darkest > 150).sum() == 1  # squeezed, the dark sides would show


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"root": "absent"}, ["absent", "<class>"]),
        ({"root": "own/cat"}, ["own/cat", "holds no images"]),
        ({"ood_root": "absent"}, ["absent", "datasets.folder.prepare.ood_root"]),
        ({"ood_root": "own"}, ["'cat'", "rename"]),
        ({"ood_classes": ["mug"]}, ["'mug'", "cup, pen"]),
        ({"root": "own_ood", "ood_root": "own", "test_fraction": 0.9}, ["too few", "validation_fraction"]),
    ],
)
def test_folder_faults_in_params(own, knobs, words):
    choose("folder", **({"root": "own", "ood_root": "own_ood"} | knobs))
    refused(*words)


def test_folder_faults_in_files(own):
    """Every bad file of a run is named at once, and only those."""
    for name in ("own/cat/0.png", "own/dog/x.jpg", "own_ood/pen/x.webp"):
        Path(name).write_bytes(b"no picture")
    refused("3 files", "own/cat/0.png", "own/dog/x.jpg", "own_ood/pen/x.webp", "mend them")
    for name in ("own/cat/0.png", "own/dog/x.jpg", "own_ood/pen/x.webp"):
        Path(name).unlink()
    Path("own/cat").rename("cat")
    refused("own", "dog", "two")


def layout(*folders):
    """Class folders of images in a new folder `own`, each of a shade of its own."""
    shutil.rmtree("own")
    for shade, folder in enumerate(folders):
        write_class(f"own/{folder}", 10 + 30 * shade)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_class_may_be_called_as_a_split(own, name):
    layout("bus", "car", name)
    assert datasets.load(params.load())["train"].classes == tuple(sorted(["bus", "car", name]))


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["test/cat", "test/dog"], ["test", "no train/"]),
        (["Training/cat", "Training/dog", "Testing/cat", "Testing/dog"], ["Training", "no train/"]),
        (["train/cat", "train/dog", "val/cat"], ["val", "beside train/", "held out"]),
        (["train/cat", "train/dog", "bird"], ["bird", "beside train/"]),
        (["train/cat", "train/dog", "test/cat"], ["same class folders", "dog"]),
    ],
)
def test_folders_that_would_not_be_read_are_named(own, folders, words):
    layout(*folders)
    refused(*words)


def test_what_is_not_read_is_accounted_for(own, capsys):
    """Images in subfolders are read, system files are none of anybody's business, all else is counted by its kind."""
    write_class("own/cat/more/older", 40)
    Path("own/cat/loop").symlink_to(Path("own/cat").resolve())
    for name in ("own/cat/notes.txt", "own/dog/more.txt", "own/dog/raw.cr2", "own/readme.md", "own/dog/noend"):
        Path(name).write_text("x")
    for name in ("own/.hidden", "own/cat/Thumbs.db", "own/dog/._1.png", "own/cat/desktop.ini"):
        Path(name).write_text("x")
    Path("own/__MACOSX/cat").mkdir(parents=True)
    prepare.main()
    data = json.loads(prepare.METRICS.read_text())
    assert sum(data["sizes"][name] for name in ("train", "val", "test")) == 18
    assert data["images_per_class"]["ood"] == {"cup": 6, "pen": 6}
    assert data["files"]["left_out"] == {".cr2": 1, ".txt": 2, "in no class folder": 1, "without an ending": 1}
    assert data["files"]["resized_from"]["50x20"] == 5  # of cat, its subfolder, dog, cup and pen
    assert "left out: 5 files (2 .txt, " in capsys.readouterr().out


def test_ood_classes_that_are_not_chosen_are_accounted_for(own):
    choose("folder", root="own", ood_root="own_ood", image_size=16, test_fraction=0.3, ood_classes=["cup"])
    prepare.main()
    assert json.loads(prepare.METRICS.read_text())["files"]["left_out"] == {"of OOD classes not chosen": 6}


def test_images_are_found_from_a_temporary_copy_of_the_project(own, monkeypatch):
    """As `dvc exp run --temp` and queued experiments make it, which leaves ignored files behind."""
    copy = Path(".dvc/tmp/exps/tmp1")
    copy.mkdir(parents=True)
    shutil.copy("params.yaml", copy)
    monkeypatch.chdir(copy)
    assert len(datasets.load(params.load())["train"]) == 6
