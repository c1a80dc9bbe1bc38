"""Canonical order, holding out and fingerprints: disjoint, exact and the same for the same images."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common import datasets, params
from stages.common.datasets import splits
from stages.common.errors import UserError
from tests.datasets.raw import OOD, choose, write_zips


def contents(split):
    return {image.tobytes() for image in split.images}


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


@given(st.permutations(range(12)))
def test_the_order_is_of_the_content_alone(order):
    pixels = np.random.default_rng(0).integers(0, 2, (12, 1, 2, 2), np.uint8)
    given_first = datasets.labelled({"b": pixels[:5], "a": pixels[5:]})
    moved = pixels[5:][[i for i in order if i < 7]]
    assert datasets.fingerprint(datasets.labelled({"a": moved, "b": pixels[:5]})) == datasets.fingerprint(given_first)
    assert given_first.classes == ("a", "b") and given_first.labels.tolist() == [0] * 7 + [1] * 5
    for label in (0, 1):
        rows = [image.tobytes() for image in given_first.images[given_first.labels == label]]
        assert rows == sorted(rows)


@given(
    content=st.lists(
        st.binary(min_size=12, max_size=12).map(lambda b: bytes(x % 2 for x in b)), min_size=1, max_size=12
    ),
    names=st.lists(st.sampled_from("ab"), min_size=12, max_size=12),
)
def test_order_of_images_that_begin_alike_is_that_of_all_their_bytes(content, names):
    """Found by a few bytes at a time, and the same for images that stand by class and in any order."""
    pixels = np.array([list(b) for b in content], np.uint8).reshape(-1, 1, 3, 4)
    names = names[: len(pixels)]
    with mock.patch.object(splits, "WINDOW", 2), mock.patch.object(splits.arrays, "PART", 20):
        by_class = {name: pixels[[n == name for n in names]] for name in "ab"}
        found = datasets.labelled(by_class)
        again = splits.of_classes(pixels, names, "ba")
        only = splits.of_classes(pixels, names, ["b"])
    wanted = [image for name in "ab" for image in sorted(p.tobytes() for p in by_class[name])]
    assert [image.tobytes() for image in found.images] == wanted
    assert datasets.fingerprint(again) == datasets.fingerprint(found)
    assert only.classes == ("b",) and np.array_equal(only.images, found.images[found.labels == 1])


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


def test_a_class_of_one_image_is_refused_by_its_name():
    whole = datasets.labelled(
        {"a": np.zeros((1, 1, 1, 1), np.uint8), "b": np.arange(9, dtype=np.uint8)[:, None, None, None]}
    )
    with pytest.raises(UserError, match=r"class 'a' has 1 images .*too few.*test_fraction = 0\.5"):
        datasets.hold_out(whole, 0.5, np.random.default_rng(0), "test_fraction")


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
