"""Files appear whole or not at all, equal content gives equal bytes, and what cannot be read is named."""

import errno
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common import artifacts
from stages.common.errors import UserError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, number):
    path = tmp_path / "metrics.json"
    artifacts.write_metrics(path, {"accuracy": 0.5})

    def full(_):
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        artifacts.write_metrics(path, {"accuracy": 0.6})
    assert json.loads(path.read_text()) == {"accuracy": 0.5} and [*tmp_path.iterdir()] == [path]


def test_ctrl_c_while_writing_keeps_the_old_file(tmp_path, monkeypatch):
    artifacts.write_bytes(tmp_path / "a", b"old")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifacts.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and len([*tmp_path.iterdir()]) == 1


def test_metrics_are_rounded_and_finite(tmp_path):
    artifacts.write_metrics(tmp_path / "m.json", {"a": {"b": np.float64(1 / 3)}, "c": np.int64(2), "d": True})
    assert (tmp_path / "m.json").read_text() == '{\n  "a": {\n    "b": 0.3333\n  },\n  "c": 2,\n  "d": 1\n}\n'
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"m\.json:a"):
            artifacts.write_metrics(tmp_path / "m.json", {"a": bad})


def test_tables_have_lf_ends_from_columns_or_rows(tmp_path):
    artifacts.write_table(tmp_path / "a.csv", {"x": [0.1, 0.2], "y": np.array([1 / 3, 1])})
    artifacts.write_table(tmp_path / "b.csv", [{"x": 0.1, "y": 1 / 3}, {"x": 0.2, "y": 1.0}])
    artifacts.write_table(tmp_path / "c.csv", pd.read_csv(tmp_path / "a.csv"))
    assert (tmp_path / "c.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == b"x,y\n0.1,0.333333\n0.2,1.0\n"
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_equal_arrays_give_equal_bytes_and_come_back(tmp_path):
    arrays = {
        "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2),
        "labels": np.array([3, -1]),
        "classes": np.array(["cat", "собака"]),
        "share": np.array(0.25),
    }
    for name in ("a.npz", "b.npz"):
        artifacts.write_arrays(tmp_path / name, **arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = artifacts.read_arrays(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        assert found[name].flags.aligned and found[name].flags.c_contiguous


def test_arrays_have_the_bytes_of_savez(tmp_path):
    """Whatever the size of the parts that they are written in; numbers of any order in memory."""
    content = {
        "images": np.arange(6000, dtype=np.uint8).reshape(10, 3, 20, 10),
        "labels": np.arange(10),
        "a": np.ones(0),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    for size in (1, 1000, 2**25):
        with mock.patch.object(artifacts.arrays, "PART", size):
            artifacts.write_arrays(tmp_path / "a.npz", **content | {"images": np.asfortranarray(content["images"])})
        assert (tmp_path / "a.npz").read_bytes() == buffer.getvalue()
    with pytest.raises(ValueError, match="a holds objects"):
        artifacts.write_arrays(tmp_path / "b.npz", a=np.array([{}]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "images"]), st.tuples(shapes, st.sampled_from("u1 i8 f4 U3".split())))
)
def test_arrays_of_any_shape_and_type_come_back(tmp_path_factory, layout):
    """Empty ones too: there is nothing in them to map."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 200, shape).astype(kind) for name, (shape, kind) in layout.items()}
    path = tmp_path_factory.getbasetemp() / "arrays.npz"
    artifacts.write_arrays(path, **arrays)
    found = artifacts.read_arrays(path)
    assert found.keys() == arrays.keys()
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items()
    )
    assert all(found[name].shape == array.shape for name, array in arrays.items())


def test_images_are_mapped_and_what_is_done_to_them_stays_in_memory(tmp_path):
    path = tmp_path / "a.npz"
    images = np.arange(6, dtype=np.uint8).reshape(2, 3)
    artifacts.write_arrays(path, images=images)
    before = path.read_bytes()
    mapped = artifacts.read_arrays(path)["images"]
    assert isinstance(mapped, np.memmap) and mapped.mode == "c"
    mapped[:] = 9
    mapped.flush()
    assert path.read_bytes() == before and np.array_equal(artifacts.read_arrays(path)["images"], images)
    still = artifacts.read_arrays(path)["images"]
    artifacts.write_arrays(path, images=images + 1)  # another run of prepare
    assert np.array_equal(still, images) and np.array_equal(artifacts.read_arrays(path)["images"], images + 1)


def refused(path, words):
    with pytest.raises(UserError, match=words) as raised:
        artifacts.read_arrays(path)
    assert str(path) in str(raised.value) and "dvc repro" in str(raised.value) and "\n" not in str(raised.value)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    path = tmp_path / "a.npz"
    artifacts.write_arrays(path, images=np.arange(40, dtype=np.uint8), labels=np.arange(4))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refused(path, "damaged")


def test_arrays_of_another_kind_are_refused_and_never_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.zeros(4, np.uint8))
    refused(path, r"images\.npy is compressed")
    np.savez(path, images=np.array([{}], dtype=object))
    refused(path, r"images\.npy holds objects")
    np.savez(path, images=np.asfortranarray(np.zeros((2, 3), np.uint8)))
    refused(path, r"images\.npy holds another order")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"no array")
    refused(path, "damaged")
    path.write_bytes(b"no archive")
    refused(path, "damaged")
    refused(tmp_path / "absent.npz", "missing")


@pytest.mark.parametrize(
    "shape", [b"(99999,), }", b"(-1,), }   ", b"(100,), }, "], ids=["longer", "negative", "no header"]
)
def test_an_array_whose_header_does_not_fit_is_refused(tmp_path, shape):
    path = tmp_path / "a.npz"
    artifacts.write_arrays(path, images=np.zeros(100, np.uint8))
    whole = path.read_bytes()
    assert b"(100,), }  " in whole
    path.write_bytes(whole.replace(b"(100,), }  ", shape))
    refused(path, "damaged")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (f"({2**62}, {2**62})", "|u1"),
        (f"({2**70},)", "|u1"),
        (f"({'-' * 4000}1,)", "|u1"),
        (f"({'+' * 9000}1,)", "|u1"),
        ("(True,)", "|u1"),
        ("(1,)", "|V1000000000"),
        ("(9,)", "|u1"),  # of the eight that there are: the next member's bytes would follow
    ],
)
@pytest.mark.filterwarnings("error")
def test_headers_of_any_numbers_and_any_depth_are_refused(tmp_path, shape, kind):
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", content)
    refused(tmp_path / "a.npz", "damaged")


def test_a_wrong_byte_anywhere_ends_in_no_traceback(tmp_path):
    path = tmp_path / "a.npz"
    artifacts.write_arrays(path, images=np.zeros(4, np.uint8))
    whole = path.read_bytes()
    refusals = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x21]) + whole[place + 1 :])
        try:
            artifacts.read_arrays(path)
        except UserError:
            refusals += 1
    assert refusals > len(whole) / 4


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path, dead):
    kept = {
        f".a.json.{os.getppid()}": "a living writer's",
        f".b.json.{dead}": "of another file",
        ".a.json.swp": "no writer's",
        f"a.json.{dead}": "no hidden file",
    }
    for name in (*kept, f".a.json.{dead}"):
        (tmp_path / name).write_bytes(b"half")
    artifacts.write_bytes(tmp_path / "a.json", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "a.json"}


def test_names_with_letters_that_mean_something_to_a_pattern_are_swept_too(tmp_path, dead):
    stray = tmp_path / f".a[1]*.json.{dead}"
    other = tmp_path / f".a1x.json.{dead}"
    for path in (stray, other):
        path.write_bytes(b"half")
    artifacts.write_bytes(tmp_path / "a[1]*.json", b"whole")
    assert not stray.exists() and other.exists()


def test_written_files_have_ordinary_permissions(tmp_path):
    artifacts.write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == Path(tmp_path / "b").stat().st_mode
