"""Arrays on disk hold what arrays in memory hold, leave no file, and memory does not grow with them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common import arrays
from tests.repository import ROOT


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Every array is a large one, and a few rows are a part."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name, value in {"LARGE": 0, "PART": 100, "SCATTERED": 3}.items():
        monkeypatch.setattr(arrays, name, value)


def rows(count=37):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 4, 2), np.uint8)


def test_rows_are_stacked_taken_and_gone_through_as_in_memory(tiny):
    wanted, order = rows(), np.random.default_rng(1).permutation(37)
    found = arrays.stack(iter(wanted), len(wanted) + 5, wanted.shape[1:])  # five could not be read
    assert isinstance(found, np.memmap) and np.array_equal(found, wanted)
    assert np.array_equal(arrays.take(found, order), wanted[order])
    some, out = order[order < 15], arrays.empty(found.shape)
    arrays.take(found[5:20], some, out[2:17])
    assert np.array_equal(out[2:17], wanted[5:20][some]) and not out[:2].any() and not out[17:].any()
    again = rows()
    parts = list(arrays.parts(again))
    assert len(parts) > 5 and np.array_equal(np.concatenate([again[part] for part in parts]), again)
    assert list(arrays.parts(again[:0])) == [] and len(arrays.take(again, np.arange(0))) == 0


@given(start=st.integers(0, 40_000), length=st.integers(0, 40_000))
def test_what_is_given_back_is_still_there(tmp_path_factory, start, length):
    """Also what was just written, and what lies beside it on the same page."""
    whole = np.memmap(tmp_path_factory.getbasetemp() / "map", np.uint8, "w+", shape=(40_000,))
    whole[:] = np.arange(40_000) % 251
    arrays.give_back(whole[start : start + length].reshape(-1, 1))
    assert np.array_equal(whole, np.arange(40_000) % 251)
    memory = np.arange(10)
    arrays.give_back(memory[2:5])
    assert np.array_equal(memory, np.arange(10))


def test_an_array_on_disk_has_no_name_and_room_from_the_start(tiny, monkeypatch):
    array = arrays.empty((1000, 50))
    array[-1] = 7
    assert list(Path("data").iterdir()) == []
    assert array[:-1].sum() == 0

    def full(file, start, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        arrays.empty((1000, 50))


MEMORY = """
from pathlib import Path

import numpy as np
from torch import nn

from stages.common import arrays

arrays.LARGE, arrays.PART, arrays.SCATTERED = 2**22, 2**22, 8
from stages.common import artifacts, datasets, evaluation, images, training
from stages.common.datasets import Account, copies
from tests.small import RECIPE


def go_through(count, shape=(3, 224, 224)):
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (16, *shape), np.uint8)
    made = arrays.stack((some[i % 16] + np.uint8(i // 16) for i in range(count)), count, shape)
    whole = datasets.labelled({"a": made[: count // 2], "b": made[count // 2 :]})
    train, val = datasets.hold_out(whole, 0.1, rng, "validation_fraction")
    copies.find({name: train for name in ("train", "val", "test", "ood")}, Account())
    artifacts.write_arrays("train.npz", images=train.images, labels=train.labels, classes=np.array(train.classes))
    assert datasets.fingerprint(train)

    train_set = images.read("train.npz")
    model = nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 2))
    half = train_set.take(images.sample(train_set.labels, count // 2))
    assert evaluation.accuracy(model, train_set) > 0
    images.windows(train_set.images, images.sample(train_set.labels, count), 32)
    recipe = training.Recipe(**vars(RECIPE) | {"epochs": 1, "batch_size": 16, "flip": True})
    training.train(model, train_set, half, recipe, resume_in=Path(), name="test")
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


print(go_through(100), go_through(500))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has had in memory at most is asked of Linux")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Preparing, writing, evaluating and training, with five times as many images: 57 MB more in every array."""
    whole = "glibc.malloc.mmap_threshold=1048576"  # large blocks go back when freed: what a heap keeps is no matter
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLIBC_TUNABLES": whole}
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    few, many = map(float, done.stdout.split()[-2:])
    assert many - few < 50, f"{few:.0f} MB, then {many:.0f} MB"
