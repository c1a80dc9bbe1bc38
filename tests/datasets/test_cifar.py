"""Reading CIFAR: every source and every fault, on archives of a few images made here."""

import io
import json
import os
import pickle
import subprocess
import sys
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from stages import prepare
from stages.common import artifacts, class_names, datasets, params
from stages.common.datasets import cifar
from stages.common.datasets.sources import RAW
from tests.datasets.raw import (
    OOD,
    choose,
    cifar_images,
    official_files,
    outcome,
    png,
    refused,
    write_folders,
    write_tar,
    write_zip,
    write_zips,
)
from tests.repository import ROOT

# Sources


@pytest.mark.parametrize("source", ["zip without a top folder", "folder", "tar", "extracted tar", "download"])
def test_every_source_of_the_same_images_gives_the_same_bytes(place, monkeypatch, source):
    sets = cifar_images()
    write_zips(sets)
    expected = outcome()
    for path in RAW.iterdir():
        path.unlink()

    if source == "zip without a top folder":
        write_zips(sets, top="")
    elif source == "folder":
        write_folders(sets)
    elif source == "tar":
        for name, images in sets.items():
            write_tar(name, images, monkeypatch)
    elif source == "extracted tar":
        for name, images in sets.items():
            for file, content in official_files(name, images):
                path = RAW / file
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
    else:
        ready = {
            cifar.OFFICIAL[name].archive: write_tar(name, images, monkeypatch, place).read_bytes()
            for name, images in sets.items()
        }
        served(monkeypatch, lambda url, folder, file, md5: Path(folder, file).write_bytes(ready[file]))

    assert outcome() == expected
    metrics = json.loads(expected["data.json"])
    assert metrics["classes"] == list(class_names.CIFAR10)
    assert metrics["ood_classes"] == sorted(OOD)
    assert metrics["sizes"] == {"train": 50, "val": 10, "test": 20, "ood": 12, "extra": 0}
    assert metrics["image_shape"] == [3, 32, 32]


def served(monkeypatch, download_url):
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download_url)


def test_torchvision_agrees_on_the_official_archives():
    for name, theirs in {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}.items():
        ours = cifar.OFFICIAL[name]
        assert (ours.archive, ours.md5, ours.folder) == (theirs.filename, theirs.tgz_md5, theirs.base_folder)
        assert ours.batches["train"] == [file for file, _ in theirs.train_list]
        assert ours.batches["test"] == [file for file, _ in theirs.test_list]


def test_torchvision_without_its_operators_is_still_asked(place):
    """A build for another torch fails at its import; a download needs none of what fails."""
    code = """
import sys
class Foreign:
    def find_spec(self, name, path, target=None):
        if name == "torchvision._meta_registrations":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Foreign())
from stages import prepare
from stages.common import errors
errors.run(prepare.main)
"""
    closed = "http://127.0.0.1:9"  # a port where nothing listens
    env = os.environ | {"PYTHONPATH": str(ROOT), "http_proxy": closed, "https_proxy": closed}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "its download failed" in done.stderr and "nms" not in done.stderr


def test_labels_belong_to_their_images(place):
    sets = cifar_images()
    write_zips(sets)
    prepare.main()
    with np.load(artifacts.PREPARED / "test.npz") as test:
        got = {
            image.tobytes(): test["classes"][label] for image, label in zip(test["images"], test["labels"], strict=True)
        }
    wanted = {image.transpose(2, 0, 1).tobytes(): key[1] for key, image in sets["cifar10"].items() if key[0] == "test"}
    assert got == wanted


@pytest.mark.parametrize(("ood_split", "size"), [("train", 12), ("test", 4), ("both", 16)])
def test_ood_split(place, ood_split, size):
    choose("cifar10", ood_classes=OOD, ood_split=ood_split)
    write_zips()
    assert len(datasets.load(params.load())["ood"]) == size


def test_cifar_root_is_looked_at_first_and_must_exist(place, monkeypatch):
    (place / "elsewhere").mkdir()
    write_zips(root=place / "elsewhere")
    (RAW / "cifar10.zip").write_bytes(b"never opened")
    monkeypatch.setenv("CIFAR_ROOT", str(place / "elsewhere"))
    assert len(datasets.load(params.load())["train"]) == 50
    monkeypatch.setenv("CIFAR_ROOT", str(place / "elsewere"))
    refused("CIFAR_ROOT", "elsewere")


def test_experiments_in_a_temporary_copy_find_the_projects_raw_data(place, monkeypatch):
    write_zips()
    expected = outcome()
    copy = place / ".dvc/tmp/exps/tmpabc123"
    copy.mkdir(parents=True)
    (copy / "params.yaml").write_bytes((place / "params.yaml").read_bytes())
    monkeypatch.chdir(copy)
    assert outcome() == expected


# Faults


def test_no_data_and_no_network(place, monkeypatch):
    def fail(url, folder, file, md5):
        Path(folder, file).write_bytes(b"half")
        raise urllib.error.URLError("no route to host")

    served(monkeypatch, fail)
    refused("cifar10.zip", "cifar-10-python.tar.gz", "data/raw", "no route", "CIFAR_ROOT", "-S dataset=digits")
    assert not list(RAW.iterdir())  # no half download


def test_half_a_download_put_there_by_hand(place, monkeypatch):
    path = write_tar("cifar10", cifar_images()["cifar10"], monkeypatch)
    path.write_bytes(path.read_bytes()[:-100])
    refused(str(path), "md5", "delete it")


def test_truncated_zip(place):
    write_zips()
    path = RAW / "cifar10.zip"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused("cifar10.zip", "delete it")


def test_foreign_zip(place):
    write_zips()
    with zipfile.ZipFile(RAW / "cifar10.zip", "w") as archive:
        archive.writestr("holiday/beach.jpg", b"")
    refused("cifar10.zip", "{train,test}/<class>/*.png")


@pytest.mark.parametrize("fault", ["damaged", "cut", "wrong size", "grey", "jpeg", "huge"])
def test_bad_image_in_a_zip(place, fault):
    sets = cifar_images()
    member = ("test", "horse", "1.png")
    whole = png(sets["cifar10"].pop(member))
    jpeg = io.BytesIO()
    Image.new("RGB", (32, 32)).save(jpeg, format="jpeg")
    content = {
        "damaged": whole[:60] + b"\xff" * 40 + whole[100:],
        "cut": whole[:1000],
        "wrong size": png(np.zeros((32, 31, 3), np.uint8)),
        "grey": png(np.zeros((32, 32), np.uint8)),
        "jpeg": jpeg.getvalue(),
        "huge": whole + bytes(cifar.MEMBER_LIMIT),
    }[fault]
    write_zip("cifar10", sets["cifar10"], extra=[("/".join(["cifar10", *member]), content)])
    write_zip("cifar100", sets["cifar100"])
    refused("cifar10.zip", "test/horse/1.png", "delete it")


def test_flipped_bit_in_a_zip(place):
    write_zips()
    path = RAW / "cifar10.zip"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    refused("cifar10.zip", "train/airplane", "delete it")


@pytest.mark.parametrize(
    "member", ["../evil.png", "cifar10/../../evil.png", "/evil.png", "C:\\evil.png", "..\\evil.png"]
)
def test_zip_that_points_outside(place, member):
    write_zips(extra=[(member, png(np.zeros((32, 32, 3), np.uint8)))])
    refused("cifar10.zip", "outside", "delete it")
    assert not [path for path in place.parent.rglob("*evil*") if path.is_file()]


def test_missing_and_incomplete_classes(place):
    sets = cifar_images()
    write_zips({**sets, "cifar100": {key: image for key, image in sets["cifar100"].items() if key[1] != "clock"}})
    refused("cifar100.zip", "'clock'", "0 train images instead of 6", "bottle")
    del sets["cifar10"]["test", "cat", "0.png"]
    write_zips(sets)
    refused("cifar10.zip", "'cat'", "1 test images instead of 2")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_pickle_that_runs_code_is_refused(place):
    write_zip("cifar100", cifar_images()["cifar100"])
    folder = RAW / "cifar-10-batches-py"
    folder.mkdir()
    for batch in ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        (folder / batch).write_bytes(pickle.dumps({"data": Malicious(), "labels": []}))
    refused("test_batch", "mkdir")
    assert not Path("owned").exists()


@pytest.mark.parametrize("content", [[1, 2], {"labels": [1]}, {"data": np.zeros((2, 3072)), "labels": [1, 2]}])
def test_batch_of_another_form(place, content):
    folder = RAW / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    refused("cifar-10-batches-py", "test_batch", "delete it")
