"""Prepared sets are read as they were written, mapped and not loaded, and faults are named."""

import numpy as np
import pytest
import torch

from stages.common import artifacts, images
from stages.common.errors import UserError
from stages.common.images import ImageSet


def write(path, **changes):
    rng = np.random.default_rng(0)
    content = {
        "images": rng.integers(0, 256, (6, 3, 8, 8), np.uint8),
        "labels": np.array([0, 0, 1, 1, 2, 2]),
        "classes": np.array(["near/cat", "near/dog", "far/noise"]),
    } | changes
    artifacts.write_arrays(path, **{name: array for name, array in content.items() if array is not None})
    return content


def test_a_set_is_read_by_name_or_path_and_a_change_to_it_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = write(artifacts.PREPARED / "test.npz")
    before = (artifacts.PREPARED / "test.npz").read_bytes()
    for name in ("test", "data/prepared/test.npz"):
        found = images.read(name)
        assert len(found) == 6 and found.classes == written["classes"].tolist()
        assert found.images.dtype == torch.uint8 and np.array_equal(found.images, written["images"])
        assert found.labels.dtype == torch.int64 and found.labels.tolist() == written["labels"].tolist()
        found.images.fill_(7)
    assert (artifacts.PREPARED / "test.npz").read_bytes() == before


def test_a_set_without_its_parts_is_refused(tmp_path):
    for part in ("images", "labels", "classes"):
        write(tmp_path / "a.npz", **{part: None})
        with pytest.raises(UserError, match=r"a\.npz lacks.*dvc repro"):
            images.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"images": np.zeros((6, 3, 8, 8), np.float32)},
        {"images": np.zeros((6, 192), np.uint8)},
        {"images": np.zeros(6, [("a", "u1")])},
        {"labels": np.zeros(5, np.int64)},
        {"labels": np.zeros((6, 1), np.int64)},
        {"labels": np.zeros(6)},
        {"labels": np.array([0, 0, 1, 1, 2, 3])},
        {"labels": np.array([0, 0, 1, 1, 2, -1])},
        {"classes": np.array([["a", "b", "c"]])},
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(tmp_path, changes):
    write(tmp_path / "a.npz", **changes)
    with pytest.raises(UserError, match=r"a\.npz holds no images with labels.*dvc repro"):
        images.read(tmp_path / "a.npz")


def test_images_are_taken_with_their_labels_in_the_order_asked_for():
    whole = ImageSet(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([5, 6, 7, 8]), list("abcdefghi"))
    taken = whole.take(torch.tensor([3, 0, 0]))
    assert taken.images.flatten().tolist() == [3, 0, 0] and taken.labels.tolist() == [8, 5, 5]
    assert taken.classes == whole.classes


def test_sets_in_one_file_are_taken_apart_with_names_and_labels_of_their_own(tmp_path):
    written = write(tmp_path / "extra.npz")
    parts = images.by_prefix(images.read(tmp_path / "extra.npz"))
    assert {name: part.classes for name, part in parts.items()} == {"near": ["cat", "dog"], "far": ["noise"]}
    assert parts["near"].labels.tolist() == [0, 0, 1, 1] and parts["far"].labels.tolist() == [0, 0]
    assert np.array_equal(parts["far"].images, written["images"][4:])
