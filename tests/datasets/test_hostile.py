"""Files that are made to do harm: refused in one message, or read and counted as what they are."""

import csv
import hashlib
import json
import os
import pickle
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import prepare
from stages.common import artifacts, images
from stages.common.datasets import cifar
from stages.common.datasets.account import NAMED
from stages.common.datasets.sources import RAW
from stages.common.errors import UserError
from tests.datasets.raw import (
    choose,
    cifar_images,
    outcome,
    png,
    refused,
    write_class,
    write_folders,
    write_zip,
    write_zips,
)

MEMBER = ("test", "horse", "1.png")


def data():
    return json.loads(prepare.METRICS.read_text())


def zips_with(member, content, **packed):
    """CIFAR's zips where one image of the test set is `content`, packed so; gives back the image it stands for."""
    sets = cifar_images()
    pixels = sets["cifar10"].pop(MEMBER)
    write_zips(sets)
    with zipfile.ZipFile(RAW / "cifar10.zip", "a") as archive:
        archive.writestr(member, content, **packed)
    return pixels


NAME = "/".join(["cifar10", *MEMBER])

# Zips


def test_a_member_that_unpacks_to_more_than_it_says_is_cut_there(place):
    """A declared size of a small image, and twenty million bytes behind it."""
    zips_with(NAME, png(np.zeros((32, 32, 3), np.uint8)) + bytes(20_000_000), compress_type=zipfile.ZIP_DEFLATED)
    path = RAW / "cifar10.zip"
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24  # its entry is the last of the directory; of it, the size unpacked
    content[at : at + 4] = struct.pack("<I", 2000)
    path.write_bytes(content)
    tracemalloc.start()
    refused("cifar10.zip", "test/horse/1.png", "delete it")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_all_at_once_are_not_unpacked(place, method):
    zips_with(NAME, bytes(10**6), compress_type=method)
    refused("cifar10.zip", "test/horse/1.png", "more at once")


def test_many_members_are_counted(place):
    sets, junk = cifar_images(), [(f"{number}.junk{number % (NAMED + 5)}", b"") for number in range(3000)]
    write_zip("cifar10", sets["cifar10"], extra=junk)
    write_zip("cifar100", sets["cifar100"])
    prepare.main()
    left_out = data()["files"]["left_out"]
    assert sum(left_out.values()) == 3000 and len(left_out) == NAMED + 1 and left_out["of other kinds"] == 600


def zip_entry(name, mode):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_never_followed(place, kind):
    secret = place / "secret.png"
    secret.write_bytes(png(np.zeros((32, 32, 3), np.uint8)))
    zips_with(zip_entry(NAME, kind | 0o777), str(secret))
    refused("cifar10.zip", "test/horse/1.png", "damaged or foreign")
    write_zips()
    with zipfile.ZipFile(RAW / "cifar10.zip", "a") as archive:
        archive.writestr(zip_entry("cifar10/link", kind | 0o777), str(secret))
    prepare.main()
    assert data()["files"]["left_out"] == {"without an ending": 1}


def test_a_picture_that_claims_to_be_huge_gives_one_message(place, recwarn):
    header = bytearray(png(np.zeros((32, 32, 3), np.uint8)))
    header[16:24] = struct.pack(">II", 10_000, 10_000)
    zips_with(NAME, bytes(header))
    refused("cifar10.zip", "test/horse/1.png")
    assert not recwarn.list


def test_what_a_zip_or_folder_holds_besides_is_counted_by_its_kind(place):
    """The classes of CIFAR-100 that are not chosen are no such thing: the official archives hold them too."""
    sets = cifar_images()
    sets["cifar100"]["train", "bus", "0.png"] = sets["cifar100"]["train", "clock", "0.png"]
    write_zips(sets)
    expected = outcome()
    assert json.loads(expected["data.json"])["files"]["left_out"] == {}
    other = {
        "cifar10/README.md": ".md",
        "cifar10/train/cat/notes.txt": ".txt",
        "cifar10/train/cat/2.PNG": ".png",
        "cifar10/train/cat/more/2.png": "in no class folder",
        "cifar10/val/cat/2.png": "in no class folder",
        "cifar10/train/unicorn/2.png": "of no class of cifar10",
        "cifar100/test/LICENSE": "without an ending",
        "cifar10/.DS_Store": None,
        "cifar10/__MACOSX/train/cat/._2.png": None,
        "cifar10/train/cat/Thumbs.db": None,
    }
    counted = {kind: list(other.values()).count(kind) for kind in sorted(filter(None, other.values()))}

    def check():
        found = outcome()
        account = json.loads(found.pop("data.json"))
        assert account["files"]["left_out"] == counted
        assert found == {name: content for name, content in expected.items() if name != "data.json"}

    for name in ("cifar10", "cifar100"):
        write_zip(name, sets[name], extra=[(path, b"x") for path in other if path.startswith(f"{name}/")])
    check()
    for path in RAW.iterdir():
        path.unlink()
    write_folders(sets)
    for path in other:
        (RAW / path).parent.mkdir(parents=True, exist_ok=True)
        (RAW / path).write_bytes(b"x")
    check()


# Official archives


@pytest.mark.parametrize("kind", ["link outside", "link in a loop", "hard link", "device", "fifo", "parent"])
def test_members_of_the_official_archive_that_are_no_files_are_never_followed(place, monkeypatch, kind):
    """With the right sum, as if the sum were broken."""
    write_zip("cifar100", cifar_images()["cifar100"])
    official = cifar.OFFICIAL["cifar10"]
    batch = f"{official.folder}/test_batch"
    member = tarfile.TarInfo(f"{official.folder}/../../{batch}" if kind == "parent" else batch)
    types = {"device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE, "hard link": tarfile.LNKTYPE}
    member.type = types.get(kind, tarfile.REGTYPE if kind == "parent" else tarfile.SYMTYPE)
    member.linkname = {"link outside": "/etc/passwd", "link in a loop": "test_batch", "hard link": batch}.get(kind, "")
    path = RAW / official.archive
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(member)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "OFFICIAL", cifar.OFFICIAL | {"cifar10": official._replace(md5=md5)})
    refused(official.archive, "delete it")
    assert not list(place.rglob("test_batch"))


def write_batch(content):
    folder = RAW / cifar.OFFICIAL["cifar10"].folder
    folder.mkdir(exist_ok=True)
    (folder / "test_batch").write_bytes(content)
    return folder / "test_batch"


def array(kind, content, *shape):
    """As numpy pickles an array, of a dtype that says of any `kind` that it holds no objects."""

    class Dtype:
        def __reduce__(self):
            return np.dtype, (kind, False, True), (3, "|", None, None, None, -1, -1, 0)

    class Array:
        def __reduce__(self):
            state = (1, shape, Dtype(), False, content)
            return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    return Array()


@pytest.mark.parametrize(
    "batch",
    [
        {"data": array("u1", bytes(6144), 2, 3072), "labels": array("O", b"\1" * 16, 2)},  # numpy's own takes the
        {"data": array("O", b"\1" * 8 * 6144, 2, 3072), "labels": [0, 1]},  # bytes for addresses, and looks there
        {"data": array("u1", bytes(100), 2, 3072), "labels": [0, 1]},
        {"data": array("u1", bytes(6144), 2, 3072), "labels": [0, 2**70]},
        {"data": array("u1", bytes(6144), 2, 3072), "labels": {}},
        {"data": array("u1", bytes(6144), 2, 3072)},
    ],
)
def test_arrays_of_another_kind_reach_no_code_of_numpy(place, batch):
    write_batch(pickle.dumps(batch, protocol=4))
    refused("test_batch", "delete it")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04Nr\xf0\xff\xff\xff.",  # a memo of four thousand million entries
        b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b".",  # a string of 2**63 bytes
        b"\x80\x05\x96" + struct.pack("<Q", 2**46) + b".",
        b"\x80\x04K\x01}(U\x01aK\x01ub.",  # an attribute of a number
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"",
    ],
)
def test_pickles_that_ask_for_the_impossible_are_refused(place, content):
    write_batch(content)
    refused("test_batch", "delete it")


def test_a_batch_of_any_size_is_not_read(place):
    path = write_batch(b"")
    os.truncate(path, cifar.BATCH_LIMIT + 1)
    refused("test_batch", "larger")


# Folders

ODD = ["a pipe", "a link to a device", "a broken link", "a link to itself", "a link to a folder's parent"]


def make_odd(path, kind):
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        targets = {"a link to a device": "/dev/zero", "a link to itself": path.name, "a broken link": "nothing"}
        path.symlink_to(targets.get(kind, ".."))


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_ordinary_file_is_named_and_never_opened(own, kind):
    make_odd(Path("own/cat/x.png"), kind)
    if kind == ODD[-1]:  # the folder is walked, each part of it once, and images are found to stand in two classes
        refused("figures of such data say nothing")
    else:
        refused("own/cat/x.png", "no ordinary file")


@pytest.mark.parametrize("kind", ODD[:4])
def test_the_same_in_a_folder_of_cifar(place, kind):
    write_folders(cifar_images())
    path = RAW / "cifar10/test/horse/1.png"
    path.unlink()
    make_odd(path, kind)
    refused("cifar10", "test/horse/1.png", "no ordinary file")


def test_class_folders_that_are_links_are_read_where_they_lead(own):
    """Outside of the data folder too: a person links large sets. One that leads to itself is no folder."""
    Path("own/cat").rename("elsewhere")
    Path("own/cat").symlink_to(Path("elsewhere").resolve())
    Path("own/loop").symlink_to("loop")
    prepare.main()
    assert data()["classes"] == ["cat", "dog"]
    assert data()["files"]["left_out"] == {"in no class folder": 1}


# Names


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\tb", "\x1b[31mred", "a\x85b", "a\u2028b", b"\xff\xfe"])
def test_class_names_that_would_break_tables_and_terminals_are_refused(own, name):
    Path("own", os.fsdecode(name)).mkdir()
    Image.new("RGB", (9, 9)).save(Path("own", os.fsdecode(name), "1.png"))
    with pytest.raises(UserError) as caught:
        prepare.main()
    assert "rename the folder" in str(caught.value) and str(caught.value).isprintable()


NAMES = ["a,b", 'a"b', "=1+1", "@SUM(1)", "+1", "-1", " a ", "NA", "'a", "<img src=x onerror=alert(1)>", "${x}", "猫"]


def test_other_names_are_kept_as_they_are(own):
    """A leading = or @ too: these are tables for programs, and a name that is changed is no name."""
    for shade, name in enumerate(NAMES):
        write_class(f"own/{name}", 3 + 20 * shade)
    choose("folder", root="own", ood_root="own_ood", image_size=16, copies=1.0)  # a black one looks like another
    prepare.main()
    names = sorted([*NAMES, "cat", "dog"])
    assert data()["classes"] == names and images.read("test").classes == names
    artifacts.write_table("names.csv", {"class": names})
    assert list(pd.read_csv("names.csv", dtype=str, keep_default_na=False)["class"]) == names
    with Path("names.csv").open(newline="") as file:  # as DVC reads them
        assert [row["class"] for row in csv.DictReader(file)] == names


def test_file_names_are_shown_with_what_a_terminal_would_obey_escaped(own, capsys):
    for name in ("own/cat/\x1b]0;owned\x07.png", "own/cat/a\nb.png", b"own/cat/\xff.png"):
        Path(os.fsdecode(name)).write_bytes(b"no picture")
    Path("own/cat/a.\x1b[2J").touch()
    with pytest.raises(UserError) as caught:
        prepare.main()
    lines = str(caught.value).split("\n")
    assert len(lines) == 4 and all(line.isprintable() for line in lines)
    for name in (r"\x1b]0;owned\x07.png", r"a\nb.png", r"\udcff.png"):
        assert name in str(caught.value)
    for path in Path("own/cat").glob("*.png"):
        if not path.name[0].isdigit():
            path.unlink()
    prepare.main()
    assert data()["files"]["left_out"] == {r".\x1b[2j": 1} and capsys.readouterr().out.replace("\n", "").isprintable()
