"""Any set of torchvision: read from files made here in the official layouts, in their own shape, or refused."""

import json
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image

from stages import prepare
from stages.common import artifacts, datasets, params
from stages.common.datasets.sources import RAW
from stages.common.params.types import TORCHVISION
from tests.datasets.raw import choose, cifar_images, outcome, refused, write_zips

ROOT = RAW / "torchvision"
OF_CLASS = {"train": 6, "test": 2}


@pytest.fixture(autouse=True)
def offline(place, monkeypatch):
    """No network, and sums that are not those of the official archives."""

    def fail(*_, **__):
        raise urllib.error.URLError("no route to host")

    for name in ("mnist", "cifar", "svhn", "stl10", "imagenette"):
        module = getattr(torchvision.datasets, name)
        for function in ("download_url", "download_and_extract_archive"):
            monkeypatch.setattr(module, function, fail, raising=False)
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file(), raising=False)


def made(classes, shape, seed=0):
    """split -> images (N, H, W[, 3]) of noise and their numbers, each class with its share."""
    rng = np.random.default_rng(seed)
    numbers = {split: np.tile(np.arange(classes), count) for split, count in OF_CLASS.items()}
    return {split: (rng.integers(0, 256, (len(of), *shape), np.uint8), of) for split, of in numbers.items()}


def write_mnist(name, seed=0):
    found = made(10, (28, 28), seed)
    folder = ROOT / name / "raw"
    folder.mkdir(parents=True)
    for split, (images, numbers) in found.items():
        start = "train" if split == "train" else "t10k"
        head = bytes([0, 0, 8, 3]) + np.array(images.shape, ">i4").tobytes()
        (folder / f"{start}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = bytes([0, 0, 8, 1]) + np.array([len(numbers)], ">i4").tobytes()
        (folder / f"{start}-labels-idx1-ubyte").write_bytes(head + numbers.astype(np.uint8).tobytes())
    return found


def write_svhn():
    found = made(10, (32, 32, 3))
    ROOT.mkdir(parents=True, exist_ok=True)
    for split, (images, numbers) in found.items():
        content = {"X": images.transpose(1, 2, 3, 0), "y": np.where(numbers == 0, 10, numbers)[:, None]}
        scipy.io.savemat(ROOT / f"{split}_32x32.mat", content)
    return found


def write_cifar100():
    found = made(100, (32, 32, 3))
    folder = ROOT / "cifar-100-python"
    folder.mkdir(parents=True)
    for split, (images, numbers) in found.items():
        content = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "fine_labels": numbers.tolist()}
        (folder / split).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"name {i}" for i in range(100)]}))
    return found


def write_stl10(names):
    found = made(len(names), (96, 96, 3))
    folder = ROOT / "stl10_binary"
    folder.mkdir(parents=True)
    for split, (images, numbers) in found.items():
        images.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
        (numbers + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "unlabeled_X.bin").touch()
    (folder / "class_names.txt").write_text("\n".join(names))
    return found


def write_imagenette(size=(60, 50)):
    for number, wnid in enumerate(("n01440764", "n02102040")):
        for split, count in (("train", 6), ("val", 2)):
            folder = ROOT / "imagenette2" / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", size, (90 * number, 20 * i, len(split))).save(folder / f"{i}.JPEG")


def prepared(name):
    with np.load(artifacts.PREPARED / f"{name}.npz") as found:
        return {
            image.tobytes(): str(found["classes"][label])
            for image, label in zip(found["images"], found["labels"], strict=True)
        }


def contents(part, names):
    """What `prepared` must give for the images and numbers of a split."""
    images, numbers = part
    first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return {pixels.tobytes(): names[number] for pixels, number in zip(first, numbers, strict=True)}


MNIST = torchvision.datasets.MNIST.classes
NUMBERS = [str(number) for number in range(10)]


@pytest.mark.parametrize("name", ["MNIST", "SVHN", "CIFAR100", "STL10"])
def test_every_image_of_the_official_files_arrives_with_its_class(name):
    """In its own size; grey where all are; numbers for names in a set without any."""
    known, names = {
        "MNIST": lambda: (write_mnist("MNIST"), MNIST),
        "SVHN": lambda: (write_svhn(), NUMBERS),
        "CIFAR100": lambda: (write_cifar100(), [f"name {i}" for i in range(100)]),
        "STL10": lambda: (write_stl10(NUMBERS), NUMBERS),
    }[name]()
    unknown = write_mnist("KMNIST", seed=1)
    choose("torchvision", name=name, ood_name="KMNIST", image_size=None)
    prepare.main()
    assert prepared("train") | prepared("val") == contents(known["train"], names)
    assert prepared("test") == contents(known["test"], names)
    data = json.loads(prepare.METRICS.read_text())
    shape = known["train"][0].shape
    assert data["image_shape"] == [1 if name == "MNIST" else 3, *shape[1:3]]
    assert data["sizes"]["ood"] == len(unknown["test"][0])
    if name == "MNIST":
        assert prepared("ood") == contents(unknown["test"], torchvision.datasets.KMNIST.classes)


def test_the_same_files_give_the_same_bytes_twice():
    write_mnist("MNIST")
    write_mnist("KMNIST", seed=1)
    choose("torchvision", name="MNIST", ood_name="KMNIST")
    assert outcome() == outcome()


def test_photographs_of_any_size_take_the_size_that_is_asked_for():
    write_imagenette()
    write_svhn()
    choose("torchvision", name="Imagenette", ood_name="SVHN", image_size=40)
    splits = datasets.load(params.load())
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 10,
        "val": 2,
        "test": 4,
        "ood": 20,
        "extra": 0,
    }
    assert all(split.images.shape[1:] == (3, 40, 40) for split in splits.values())
    assert splits["train"].classes == ("English springer", "tench")  # of several names, the first
    choose("torchvision", name="Imagenette", ood_name="SVHN", image_size=None)
    assert datasets.load(params.load())["ood"].images.shape[1:] == (3, 50, 60)
    Image.new("RGB", (70, 50)).save(ROOT / "imagenette2/train/n01440764/9.JPEG")
    refused("image_size is empty", "several sizes", "60x50", "70x50")


def fake(monkeypatch, count, side):
    """FakeData, which makes images up, with so many, of this size, in two classes."""
    defaults = (count, (3, side, side), 2, None, None, 0)
    monkeypatch.setattr(torchvision.datasets.FakeData.__init__, "__defaults__", defaults)


def test_a_set_without_parts_and_without_files(monkeypatch):
    write_svhn()
    fake(monkeypatch, 100, 20)
    choose("torchvision", name="FakeData", ood_name="SVHN", image_size=8, test_fraction=0.3)
    splits = datasets.load(params.load())
    assert len(splits["test"]) == pytest.approx(30, abs=1) and splits["train"].classes == ("0", "1")
    assert sum(len(splits[name]) for name in ("train", "val", "test")) == 100


def test_ood_classes_that_are_learnt_are_left_out_or_refused(capsys):
    """By name: that two sets have a class 0 says nothing."""
    names = ["bird", "car", "cat"]
    write_stl10(names)
    write_cifar100()
    (ROOT / "cifar-100-python/meta").write_bytes(
        pickle.dumps({"fine_label_names": ["cat", "bird", *(f"name {i}" for i in range(98))]})
    )
    knobs = {"name": "STL10", "ood_name": "CIFAR100", "image_size": 16}
    choose("torchvision", **knobs, ood_classes=["cat"])
    refused("ood_classes = 'cat'", "a class to learn too")
    choose("torchvision", **knobs, ood_classes=["mug"])
    refused("ood_classes = 'mug'", "allowed are bird, cat, name 0")
    choose("torchvision", **knobs)
    prepare.main()
    data = json.loads(prepare.METRICS.read_text())
    assert len(data["ood_classes"]) == 98 and not set(data["ood_classes"]) & set(names)
    assert data["files"]["left_out"] == {"of OOD classes that are learnt": 4}
    assert "4 of OOD classes that are learnt" in capsys.readouterr().out
    choose("torchvision", **knobs, ood_classes=["name 7"])
    prepare.main()
    assert json.loads(prepare.METRICS.read_text())["files"]["left_out"]["of OOD classes not chosen"] == 97 * 2


def test_an_extra_set_of_torchvision_beside_another_data_set():
    sets = cifar_images()
    write_zips(sets)
    written = write_svhn()
    choose("cifar10", ood_classes=["clock", "bottle"], extra_sets=[f"{TORCHVISION}SVHN"])
    prepare.main()
    assert prepared("extra") == contents(written["test"], [f"SVHN/{number}" for number in NUMBERS])
    choose("digits", extra_sets=[f"{TORCHVISION}SVHN", "noise"])
    prepare.main()
    data = json.loads(prepare.METRICS.read_text())
    assert data["image_shape"] == [1, 8, 8] and data["extra_sets"] == ["SVHN", "noise"]


def test_raw_data_are_found_where_cifar_root_says(place, monkeypatch):
    write_mnist("MNIST")
    write_mnist("KMNIST", seed=1)
    RAW.rename(place / "elsewhere")
    monkeypatch.setenv("CIFAR_ROOT", str(place / "elsewhere"))
    choose("torchvision", name="MNIST", ood_name="KMNIST")
    assert len(datasets.load(params.load())["test"]) == 20


# Faults


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Cifar10", ["no such data set", "did you mean CIFAR10 or CIFAR100"]),
        ("ImageFolder", ["no such data set", "folder"]),
        ("CocoDetection", ["no classification set", "annFile"]),
        ("KMNIST", ["ood_name = 'KMNIST'", "the set to learn"]),
        ("ImageNet", ["ImageNet is not there", "cannot download it", str(ROOT)]),
    ],
)
def test_names_that_mean_no_set_to_learn(name, words):
    write_mnist("KMNIST")
    choose("torchvision", name=name, ood_name="KMNIST")
    refused(*words)


def test_what_gives_no_class_number_is_refused_by_what_it_gives(monkeypatch):
    fake(monkeypatch, 2, 8)

    class Captions(torchvision.datasets.FakeData):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], "a dog on a lawn"

    monkeypatch.setattr(torchvision.datasets, "SBU", Captions)
    choose("torchvision", name="SBU", ood_name="FakeData")
    refused("datasets.torchvision.name = 'SBU'", "no classification set: it gives Image and str")


def test_a_set_whose_parts_are_neither_train_nor_test(monkeypatch):
    class Odd(torchvision.datasets.FakeData):
        def __init__(self, split="left"):
            torchvision.datasets.utils.verify_str_arg(split, "split", ("left", "right"))

    monkeypatch.setattr(torchvision.datasets, "SBU", Odd)
    choose("torchvision", name="SBU", ood_name="FakeData")
    refused("called train or trainval", "left", "right")


def test_no_files_and_no_network():
    choose("torchvision", name="MNIST", ood_name="KMNIST")
    refused("MNIST is not there", str(ROOT), "no route to host", "-S dataset=digits")
    assert not list(RAW.iterdir())


def test_a_damaged_image_is_named():
    write_imagenette()
    write_svhn()
    Path(ROOT / "imagenette2/train/n02102040/3.JPEG").write_bytes(b"no picture")
    choose("torchvision", name="Imagenette", ood_name="SVHN", image_size=16)
    refused("1 files cannot be read", "Imagenette train, image 9")


def test_images_too_small_for_any_model(monkeypatch):
    write_mnist("KMNIST")
    fake(monkeypatch, 20, 4)
    choose("torchvision", name="FakeData", ood_name="KMNIST", image_size=None)
    refused("images of FakeData have 4x4 pixels", "from 8 to 512")
