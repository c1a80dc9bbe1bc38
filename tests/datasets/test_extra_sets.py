"""More OOD sets: near, far and a user's own, told apart by their names."""

import numpy as np

from stages.common import class_names, datasets, params
from stages.common.datasets import noise
from stages.common.images import by_prefix, read
from tests.datasets.raw import COUNTS, OOD, choose, cifar_images, outcome, refused, write_class, write_zips
from tests.repository import ROOT


def test_extra_sets_stand_in_one_file_with_names_that_tell_them_apart(place):
    """Near, far and a user's own, for one classifier: each class is named <set>/<class>."""
    sets = cifar_images()
    rng = np.random.default_rng(1)
    for name in set(class_names.CIFAR100) - set(OOD):
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
        "noise/plain": noise.COUNT,
        "more/mug": 6,
    }
    assert len(counts) == 100 + 10 + 3 + 1
    parts = by_prefix(read("extra"))
    assert {name: len(part) for name, part in parts.items()} == {
        "cifar100": 200,
        "digits": 1797,
        "more": 6,
        "noise": 3 * noise.COUNT,
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
    refused("absent is not a folder", "extra_sets", *datasets.EXTRA)
    choose("digits", extra_sets=["digits"])
    refused("datasets.digits.prepare.extra_sets = 'digits'", "not beside digits")
    choose("digits", extra_sets=["noise", "my/noise"])
    refused("a name of its own")


def test_noise_is_of_any_shape_and_repeats_with_the_seed():
    knobs = [params.load(ROOT / "params.yaml", overrides={"seed": seed}) for seed in (0, 0, 1)]
    for shape in ((3, 32, 32), (1, 8, 8), (3, 33, 9)):
        one, again, other = (noise.extra(knob, shape) for knob in knobs)
        assert {name: images.shape for name, images in one.items()} == dict.fromkeys(one, (noise.COUNT, *shape))
        assert all(np.array_equal(one[name], again[name]) and (one[name] != other[name]).any() for name in one)
        assert (one["plain"] == one["plain"][:, :, :1, :1]).all()
        assert (one["coarse"][:, :, :4, :4] == one["coarse"][:, :, :1, :1]).all()
        assert (one["fine"][:, :, 0, 0] != one["fine"][:, :, 0, 1]).any()
