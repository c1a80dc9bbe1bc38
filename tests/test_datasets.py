"""Reading and splitting data sets: every source, every fault, on archives of a few images made here."""

import errno
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import urllib.error
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages import prepare
from stages.common import artifacts, datasets, labels, params
from stages.common.errors import UserError
from stages.common.images import by_prefix, read

PARAMS = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
OOD = ["clock", "bottle"]
COUNTS = {"train": 6, "test": 2}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty project folder to run prepare in, where a CIFAR class has 6 training and 2 test images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFAR_ROOT", raising=False)
    small = {name: official._replace(images_per_class=COUNTS) for name, official in datasets.OFFICIAL.items()}
    monkeypatch.setattr(datasets, "OFFICIAL", small)
    monkeypatch.setattr(datasets, "_torchvision", lambda: pytest.fail("no test may reach for the network"))
    datasets.RAW.mkdir(parents=True)
    choose("cifar10", ood_classes=OOD)
    return tmp_path


def choose(dataset, *, seed=0, target=None, **knobs):
    content = json.loads(json.dumps(PARAMS)) | {"dataset": dataset, "seed": seed}
    content["datasets"][dataset]["prepare"] |= {"extra_sets": []} | knobs
    if target:
        content["datasets"][dataset]["target"] = target
    Path("params.yaml").write_text(yaml.safe_dump(content))


def cifar_images():
    """name -> (split, class, file) -> pixels (32, 32, 3). One training image of each class stands there twice."""
    rng = np.random.default_rng(0)
    sets = {}
    for name, classes in {"cifar10": labels.CIFAR10, "cifar100": OOD}.items():
        sets[name] = {
            (split, c, f"{i}.png"): rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            for split, count in COUNTS.items()
            for c in classes
            for i in range(count)
        }
        for c in classes:
            sets[name]["train", c, "5.png"] = sets[name]["train", c, "0.png"]
    return sets


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def write_zip(name, images, root=datasets.RAW, top=None, extra=()):
    with zipfile.ZipFile(Path(root) / f"{name}.zip", "w") as archive:
        for key, pixels in images.items():
            archive.writestr("/".join([f"{name}" if top is None else top, *key]).lstrip("/"), png(pixels))
        for member, content in extra:
            archive.writestr(member, content)


def write_zips(sets=None, **options):
    for name, images in (sets or cifar_images()).items():
        write_zip(name, images, **options)


def write_folders(sets):
    for name, images in sets.items():
        for key, pixels in images.items():
            path = datasets.RAW.joinpath(name, *key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))


def python2_pickle(pixels, numbers, key):
    """A batch in the very form of the official ones: protocol 2, written by Python 2's numpy."""

    def text(content):
        return b"T" + struct.pack("<i", len(content)) + content

    shape = b"J" + struct.pack("<i", pixels.shape[0]) + b"J" + struct.pack("<i", pixels.shape[1]) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in numbers) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(key.encode()) + numbers + b"u."


def official_files(name, images):
    official, rng = datasets.OFFICIAL[name], np.random.default_rng(1)
    for split, batches in official.batches.items():
        keys = [key for key in images if key[0] == split]
        for batch, chosen in zip(batches, np.array_split(rng.permutation(len(keys)), len(batches)), strict=True):
            pixels = np.stack([images[keys[i]].transpose(2, 0, 1).reshape(-1) for i in chosen])
            numbers = [official.classes.index(keys[i][1]) for i in chosen]
            yield f"{official.folder}/{batch}", python2_pickle(pixels, numbers, official.labels_key)


def write_tar(name, images, monkeypatch, folder=datasets.RAW):
    path = Path(folder) / datasets.OFFICIAL[name].archive
    with tarfile.open(path, "w:gz") as archive:
        for member, content in official_files(name, images):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets, "OFFICIAL", datasets.OFFICIAL | {name: datasets.OFFICIAL[name]._replace(md5=md5)})
    return path


def outcome():
    """Every byte that prepare writes."""
    prepare.main()
    return {path.name: path.read_bytes() for path in [*artifacts.PREPARED.iterdir(), prepare.METRICS]}


def refused(*words):
    """prepare must refuse with a message that holds `words`, and write nothing."""
    with pytest.raises(UserError) as caught:
        prepare.main()
    for word in words:
        assert word in str(caught.value)
    assert not artifacts.PREPARED.exists() and not artifacts.METRICS.exists()


# Sources


@pytest.mark.parametrize("source", ["zip without a top folder", "folder", "tar", "extracted tar", "download"])
def test_every_source_of_the_same_images_gives_the_same_bytes(place, monkeypatch, source):
    sets = cifar_images()
    write_zips(sets)
    expected = outcome()
    for path in datasets.RAW.iterdir():
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
                path = datasets.RAW / file
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
    else:
        ready = {
            datasets.OFFICIAL[name].archive: write_tar(name, images, monkeypatch, place).read_bytes()
            for name, images in sets.items()
        }
        fake_torchvision(monkeypatch, lambda url, folder, file, md5: Path(folder, file).write_bytes(ready[file]))

    assert outcome() == expected
    metrics = json.loads(expected["data.json"])
    assert metrics["classes"] == list(labels.CIFAR10)
    assert metrics["ood_classes"] == sorted(OOD)
    assert metrics["sizes"] == {"train": 50, "val": 10, "test": 20, "ood": 12, "extra": 0}
    assert metrics["image_shape"] == [3, 32, 32]


def fake_torchvision(monkeypatch, download_url):
    cifar = SimpleNamespace(url="https://example.invalid/cifar")
    utils = SimpleNamespace(download_url=download_url)
    fake = SimpleNamespace(datasets=SimpleNamespace(CIFAR10=cifar, CIFAR100=cifar, utils=utils))
    monkeypatch.setattr(datasets, "_torchvision", lambda: fake)


def test_torchvision_loads_and_agrees_on_the_official_archives():
    torchvision = datasets._torchvision()
    assert callable(torchvision.datasets.utils.download_url)
    for name, theirs in {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}.items():
        ours = datasets.OFFICIAL[name]
        assert (ours.archive, ours.md5, ours.folder) == (theirs.filename, theirs.tgz_md5, theirs.base_folder)
        assert ours.batches["train"] == [file for file, _ in theirs.train_list]
        assert ours.batches["test"] == [file for file, _ in theirs.test_list]


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
    (datasets.RAW / "cifar10.zip").write_bytes(b"never opened")
    monkeypatch.setenv("CIFAR_ROOT", str(place / "elsewhere"))
    assert len(datasets.load(params.load())["train"]) == 50
    monkeypatch.setenv("CIFAR_ROOT", str(place / "elsewere"))
    refused("CIFAR_ROOT", "elsewere")


# Splits


def contents(split):
    return {image.tobytes() for image in split.images}


def test_experiments_in_a_temporary_copy_find_the_projects_raw_data(place, monkeypatch):
    write_zips()
    expected = outcome()
    copy = place / ".dvc/tmp/exps/tmpabc123"
    copy.mkdir(parents=True)
    (copy / "params.yaml").write_bytes((place / "params.yaml").read_bytes())
    monkeypatch.chdir(copy)
    assert outcome() == expected


def test_split_is_disjoint_stratified_and_seeded(place):
    write_zips()
    first = datasets.load(params.load())
    assert not contents(first["train"]) & contents(first["val"])  # although one image of each class stands there twice
    assert np.bincount(first["train"].labels).tolist() == [5] * 10
    assert np.bincount(first["val"].labels).tolist() == [1] * 10
    again = datasets.load(params.load())
    assert datasets.fingerprint(*first.values()) == datasets.fingerprint(*again.values())
    choose("cifar10", seed=1, ood_classes=OOD)
    other = datasets.load(params.load())
    changed = {name for name in first if datasets.fingerprint(first[name]) != datasets.fingerprint(other[name])}
    assert changed == {"train", "val"}


@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_hold_out_takes_the_exact_share_of_each_class(sizes, fraction, seed):
    whole = datasets.labelled({f"{i}": np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1) for i, n in enumerate(sizes)})
    rest, held_out = datasets.hold_out(whole, fraction, np.random.default_rng(seed), "validation_fraction")
    for label, n in enumerate(sizes):
        sides = [set(part.images[part.labels == label].ravel().tolist()) for part in (rest, held_out)]
        assert len(sides[1]) == min(max(round(fraction * n), 1), n - 1)
        assert not sides[0] & sides[1] and sides[0] | sides[1] == set(range(n))
    for part in (rest, held_out):
        assert sorted(zip(part.labels, part.images.ravel(), strict=True)) == [
            *zip(part.labels, part.images.ravel(), strict=True)
        ]


@given(pixels=st.lists(st.integers(0, 5), min_size=1, max_size=20), fraction=st.floats(0.01, 0.99))
def test_copies_of_an_image_stay_on_one_side(pixels, fraction):
    whole = datasets.labelled({"only": np.array(pixels, dtype=np.uint8).reshape(-1, 1, 1, 1)})
    try:
        rest, held_out = datasets.hold_out(whole, fraction, np.random.default_rng(0), "validation_fraction")
    except UserError as error:
        assert "too few" in str(error)
        return
    assert len(rest) and len(held_out) and len(rest) + len(held_out) == len(pixels)
    assert not set(rest.images.ravel().tolist()) & set(held_out.images.ravel().tolist())


def test_fingerprint_sees_pixels_labels_and_names():
    split = datasets.labelled({"a": np.zeros((2, 1, 8, 8), np.uint8), "b": np.ones((2, 1, 8, 8), np.uint8)})
    pixels = split.images.copy()
    pixels[0, 0, 0, 0] = 1
    others = [
        datasets.Split(pixels, split.labels, split.classes),
        datasets.Split(split.images, split.labels[::-1], split.classes),
        datasets.Split(split.images, split.labels, ("a", "c")),
        datasets.Split(split.images.reshape(4, 1, 4, 16), split.labels, split.classes),
    ]
    assert len({datasets.fingerprint(one) for one in [split, *others]}) == 5


# Faults


def test_no_data_and_no_network(place, monkeypatch):
    def fail(url, folder, file, md5):
        Path(folder, file).write_bytes(b"half")
        raise urllib.error.URLError("no route to host")

    fake_torchvision(monkeypatch, fail)
    refused("cifar10.zip", "cifar-10-python.tar.gz", "data/raw", "no route", "CIFAR_ROOT", "-S dataset=digits")
    assert not list(datasets.RAW.iterdir())  # no half download


def test_half_a_download_put_there_by_hand(place, monkeypatch):
    path = write_tar("cifar10", cifar_images()["cifar10"], monkeypatch)
    path.write_bytes(path.read_bytes()[:-100])
    refused(str(path), "md5", "delete it")


def test_truncated_zip(place):
    write_zips()
    path = datasets.RAW / "cifar10.zip"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused("cifar10.zip", "delete it")


def test_foreign_zip(place):
    write_zips()
    with zipfile.ZipFile(datasets.RAW / "cifar10.zip", "w") as archive:
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
        "huge": whole + bytes(datasets.MEMBER_LIMIT),
    }[fault]
    write_zip("cifar10", sets["cifar10"], extra=[("/".join(["cifar10", *member]), content)])
    write_zip("cifar100", sets["cifar100"])
    refused("cifar10.zip", "test/horse/1.png", "delete it")


def test_flipped_bit_in_a_zip(place):
    write_zips()
    path = datasets.RAW / "cifar10.zip"
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
    folder = datasets.RAW / "cifar-10-batches-py"
    folder.mkdir()
    for batch in ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        (folder / batch).write_bytes(pickle.dumps({"data": Malicious(), "labels": []}))
    refused("test_batch", "mkdir")
    assert not Path("owned").exists()


@pytest.mark.parametrize("content", [[1, 2], {"labels": [1]}, {"data": np.zeros((2, 3072)), "labels": [1, 2]}])
def test_batch_of_another_form(place, content):
    folder = datasets.RAW / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    refused("cifar-10-batches-py", "test_batch", "delete it")


@pytest.mark.parametrize("good_writes", range(5))
def test_full_disk_leaves_nothing(place, monkeypatch, good_writes):
    choose("digits")
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > good_writes:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", fsync)
    with pytest.raises(UserError, match="disk is full"):
        prepare.main()
    assert not [path for top in ("data", "metrics") for path in Path(top).rglob("*") if path.is_file()]


# Digits and folders


def test_digits(place, capsys):
    choose("digits")
    prepare.main()
    metrics = json.loads(prepare.METRICS.read_text())
    assert metrics["classes"] == list("01234567") and metrics["ood_classes"] == ["8", "9"]
    assert metrics["image_shape"] == [1, 8, 8]
    assert sum(metrics["sizes"].values()) == 1797 and metrics["sizes"]["ood"] == 174 + 180
    with np.load(artifacts.PREPARED / "train.npz") as train:
        assert train["images"].dtype == np.uint8 and train["images"].max() == 255
        assert train["labels"].dtype == np.int64 and set(train["labels"]) == set(range(8))
    assert "354 ood" in capsys.readouterr().out


def test_digits_labels_skip_what_is_ood(place):
    choose("digits", ood_classes=["0", "5"], target="3")
    splits = datasets.load(params.load())
    assert splits["train"].classes == tuple("12346789") and splits["ood"].classes == ("0", "5")
    assert np.bincount(splits["ood"].labels).tolist() == [178, 182]


ODD_IMAGES = [("L", (50, 20)), ("RGBA", (9, 70)), ("P", (33, 33)), ("RGB", (8, 8)), ("CMYK", (40, 41)), ("1", (30, 5))]


def write_class(folder, shade, images=ODD_IMAGES):
    Path(folder).mkdir(parents=True)
    for i, (mode, size) in enumerate(images):
        image = Image.new("RGB", size, (shade, 20 * i, 0)).convert(mode)
        image.save(Path(folder) / f"{i}.{'jpg' if mode == 'CMYK' else 'PNG' if mode == '1' else 'png'}")


@pytest.fixture
def own(place):
    """A user's own images: classes cat and dog to learn, cup and pen as OOD."""
    for name, shade in {"own/cat": 10, "own/dog": 100, "own_ood/cup": 180, "own_ood/pen": 250}.items():
        write_class(name, shade)
    choose("folder", root="own", ood_root="own_ood", image_size=16, test_fraction=0.3)
    return place


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
    assert datasets._square(Path("own/cat/9.png"), 16).min() > 150  # squeezed, the dark sides would show


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
    Path("own/cat/0.png").write_bytes(b"no picture")
    refused("own/cat", "0.png", "delete it")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("own/cat/0.png")
    refused("own/cat", "0.png", "8 bits")
    Path("own/cat").rename("cat")
    refused("own", "dog", "two")
    Path("own/test").mkdir()
    refused("test/", "train/")


# More OOD sets


def test_extra_sets_stand_in_one_file_with_names_that_tell_them_apart(place):
    """Near, far and a user's own, for one classifier: each class is named <set>/<class>."""
    sets = cifar_images()
    rng = np.random.default_rng(1)
    for name in set(labels.CIFAR100) - set(OOD):
        for i in range(COUNTS["test"]):
            sets["cifar100"]["test", name, f"{i}.png"] = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    write_zips(sets)
    write_class("mine/more/mug", 90)
    choose("cifar10", ood_classes=OOD, extra_sets=[])
    plain = outcome()
    choose("cifar10", ood_classes=OOD, extra_sets=["cifar100", "digits", "noise", "mine/more"])
    whole = outcome()
    assert all(whole[f"{name}.npz"] == plain[f"{name}.npz"] for name in ("train", "val", "test", "ood"))

    split = datasets.load(params.load())["extra"]
    assert split.images.shape[1:] == (3, 32, 32) and split.images.dtype == np.uint8
    counts = dict(zip(split.classes, np.bincount(split.labels).tolist(), strict=True))
    assert {name: counts[name] for name in ("cifar100/bus", "digits/0", "noise/plain", "more/mug")} == {
        "cifar100/bus": 2,
        "digits/0": 178,
        "noise/plain": datasets.NOISE_IMAGES,
        "more/mug": 6,
    }
    assert len(counts) == 100 + 10 + 3 + 1
    parts = by_prefix(read("extra"))
    assert {name: len(part) for name, part in parts.items()} == {
        "cifar100": 200,
        "digits": 1797,
        "more": 6,
        "noise": 3 * datasets.NOISE_IMAGES,
    }
    for name, part in parts.items():
        whole_names = [f"{name}/{part.classes[label]}" for label in part.labels]
        mask = np.array([split.classes[label].startswith(f"{name}/") for label in split.labels])
        assert whole_names == [split.classes[label] for label in split.labels[mask]]
        assert np.array_equal(part.images.numpy(), split.images[mask])


def test_extra_sets_that_are_not_there_or_not_apart(place):
    write_zips()
    choose("cifar10", ood_classes=OOD, extra_sets=["cifar100"])
    refused("cifar100", "test images instead of", "extra_sets")
    choose("cifar10", ood_classes=OOD, extra_sets=["absent"])
    refused("absent is not a folder", "extra_sets", "noise")
    choose("digits", extra_sets=["digits"])
    refused("datasets.digits.prepare.extra_sets = 'digits'", "not beside digits")
    choose("digits", extra_sets=["noise", "my/noise"])
    refused("a name of its own")
