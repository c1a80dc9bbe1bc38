"""Samples are fair: every class has its share, its whole order is covered, a smaller sample lies in a larger one.

A prepared set is sorted by the bytes of its images, which is nearly by the brightness of a corner: whoever takes "the
first n", of a set or of each class, takes the dark ones.
"""

import ast
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.common import datasets, images, params, training
from stages.common.adversary import Adversary, Settings
from stages.common.audit.subject import Subject
from stages.common.images import ImageSet
from stages.common.training.recipe import ADAPTED
from tests.repository import ROOT

KNOBS = params.load(ROOT / "params.yaml")
PICTURES = (10, 18)
COUNTS = {
    "whitening": ADAPTED,
    "validation_images": KNOBS.train_robust.validation_images,
    "pgd_images": KNOBS.fgsm_sweep.pgd_images,
    "audit.images": KNOBS.audit.images,
    "audit.square_images": KNOBS.audit.square_images,
    "ood_attack.images": KNOBS.ood_attack.images,
    "breakdown.images": KNOBS.breakdown.images,
    "autoattack.images": KNOBS.autoattack.images,
    "corruption_sweep.images": KNOBS.corruption_sweep.images,
    "certify.images": KNOBS.certify.images,
    "attack_grid": PICTURES[0],
    "targeted_grids": PICTURES[1],
}
FEW = 3  # standard errors that a fair sample may be off by


def as_set(split: datasets.Split) -> ImageSet:
    return ImageSet(torch.from_numpy(split.images), torch.from_numpy(split.labels), list(split.classes))


@pytest.fixture(scope="module")
def handwritten(digits):
    """scikit-learn's digits in canonical order."""
    pixels, labels = digits.images.numpy(), digits.labels.numpy()
    return as_set(datasets.labelled({name: pixels[labels == i] for i, name in enumerate(digits.classes)}))


@pytest.fixture(scope="module")
def graded():
    """RGB noise in canonical order, of ten classes alike: in each, an image is brighter than the one before it."""
    rng = np.random.default_rng(0)
    brightness = np.linspace(0, 175, 600).astype(np.uint8)[:, None, None, None]
    pixels = {name: brightness + rng.integers(0, 80, (600, 3, 8, 8), np.uint8) for name in "abcdefghij"}
    for noisy in pixels.values():
        noisy[:, 0, 0, 0] = brightness[:, 0, 0, 0]
    return as_set(datasets.labelled(pixels))


def first_of_each_class(labels, count):
    """What not to do: as many of each class as go in, from the start of its order."""
    rank = torch.cat([torch.arange(size) for size in labels.bincount().tolist()])
    return rank.argsort(stable=True)[:count]


def errors(pixels, chosen):
    """How far the mean and the deviation of the chosen images' pixels are off, in standard errors of such a sample."""
    pixels = pixels.flatten(1).double() / 255
    mean, deviation = pixels.mean(), pixels.std(correction=0)
    found = [pixels[chosen].mean() - mean, pixels[chosen].std(correction=0) - deviation]
    by_image = [pixels.mean(1), (pixels - mean).square().mean(1) / (2 * deviation)]  # the latter to first order
    share = len(chosen) / len(pixels)  # drawn without replacement: the whole set has no error
    spread = [float(values.std()) * ((1 - share) / len(chosen)) ** 0.5 for values in by_image]
    return [abs(float(off)) / (error + 1e-12) for off, error in zip(found, spread, strict=True)]


@pytest.mark.parametrize("taker", COUNTS)
def test_pixels_of_a_sample_are_those_of_the_set(handwritten, graded, taker):
    """And those of the first of each class are not."""
    for image_set in (handwritten, graded):
        chosen = images.sample(image_set.labels, COUNTS[taker])
        assert len(chosen) == min(COUNTS[taker], len(image_set))
        assert max(errors(image_set.images, chosen)) < FEW
    assert min(errors(graded.images, first_of_each_class(graded.labels, COUNTS[taker]))) > FEW


def test_one_image_of_each_class_is_not_the_first_of_each(graded):
    """Ten pictures, one a class: some from the dark end of a class, some from the bright one."""
    ranks = images.sample(graded.labels, 10) % 600
    assert ranks.min() < 200 and ranks.max() > 400
    assert ranks.unique().numel() > 5


def test_every_stretch_of_the_order_of_a_class_is_sampled():
    labels = torch.arange(10).repeat_interleave(1000)
    for count in (100, 300, 500, 1000):
        ranks = images.sample(labels, count) % 1000
        shares = torch.histogram(ranks.float(), torch.linspace(0, 999, 11)).hist / count
        assert float((shares - 0.1).abs().max()) <= 10 / count + 1e-6  # one image more or less in each class
        assert abs(float(ranks.float().mean()) - 499.5) < 50


sizes = st.lists(st.integers(0, 60), min_size=1, max_size=5)
orders = st.sampled_from(["by class", "mixed"])


def labels_of(sizes, order):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return (
        labels if order == "by class" else labels[torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))]
    )


@given(sizes, orders, st.integers(1, 300))
def test_every_class_has_its_share(sizes, order, count):
    """Never more than one image above it; what is missing from it is the one that every other class has at least."""
    labels = labels_of(sizes, order)
    chosen = images.sample(labels, count)
    assert chosen.tolist() == sorted(set(chosen.tolist())) and len(chosen) == min(count, len(labels))
    assert chosen.dtype == torch.int64 and torch.equal(images.sample(labels, count), chosen)
    taken = labels[chosen].bincount(minlength=len(sizes)).tolist()
    for size, number in zip(sizes, taken, strict=True):
        share = Fraction(len(chosen) * size, len(labels) or 1)
        assert share - Fraction(sum(map(bool, sizes)) * size, len(labels) or 1) <= number <= share + 1


@given(sizes, orders, st.integers(1, 300), st.integers(1, 300))
def test_a_smaller_sample_is_a_part_of_a_larger_one(sizes, order, one, other):
    labels = labels_of(sizes, order)
    smaller, larger = (set(images.sample(labels, count).tolist()) for count in sorted((one, other)))
    assert smaller <= larger


def test_more_than_all_is_all_and_of_nothing_comes_nothing():
    labels = torch.tensor([1, 0, 1, 3])
    assert images.sample(labels, 4).tolist() == images.sample(labels, 99).tolist() == [0, 1, 2, 3]
    assert images.sample(torch.empty(0, dtype=torch.int64), 5).tolist() == []


def test_what_is_fitted_and_judged_on_a_sample_is_fitted_and_judged_on_a_fair_one(graded):
    """The whitening's moments, the validation images of adversarial training and those that Square attacks."""
    overrides = {"model.name": "simple_cnn", "train_robust.validation_images": 200, "audit.square_images": 100}
    knobs = params.load(ROOT / "params.yaml", overrides=overrides)
    model = training.new_model(knobs, "standard", graded)
    bright = graded.images.double() / 255
    found = torch.cat([model.normalize.mean.flatten(), model.normalize.std.flatten()])
    wanted = torch.cat([bright.mean((0, 2, 3)), bright.std((0, 2, 3))])
    torch.testing.assert_close(found.double(), wanted, atol=0.005, rtol=0)  # the first 500 of each class: 0.06 darker

    held_out = Adversary(model, graded, Settings.from_params(knobs)).held_out
    subject = Subject.from_params(knobs, model=model, other=model, defended=True, image_set=graded)
    for taken, count in ((held_out.images, 200), (graded.images[subject.square_sample], 100)):
        assert len(taken) == count
        error = float(bright.mean((1, 2, 3)).std()) / count**0.5
        assert abs(float(taken.double().mean() / 255 - bright.mean())) < FEW * error


@pytest.mark.parametrize("shape", [(70, 50), (32, 32), (8, 40)])
def test_windows_lie_all_over_their_images(shape):
    """And are whole images where these are no larger."""
    rows = torch.arange(shape[0], dtype=torch.uint8).view(-1, 1).expand(shape)
    columns = torch.arange(shape[1], dtype=torch.uint8).expand(shape)
    pixels = torch.stack([rows, columns]).expand(300, -1, -1, -1).contiguous()
    chosen = torch.arange(0, 300, 3)
    found = images.windows(pixels, chosen, 32)
    height, width = (min(side, 32) for side in shape)
    assert found.shape == (100, 2, height, width)
    assert (found[:, 0, 1:] - found[:, 0, :-1] == 1).all() and (found[:, 1, :, 1:] - found[:, 1, :, :-1] == 1).all()
    for corners, room in ((found[:, 0, 0, 0], shape[0] - height), (found[:, 1, 0, 0], shape[1] - width)):
        assert corners.unique().tolist() == list(range(room + 1))
        assert abs(float(corners.float().mean()) - room / 2) <= 1


# Every sample that the pipeline takes


def prefixes(code: str) -> list[str]:
    """The places in `code` where the first n of an image set are taken, whatever n is."""
    found = []
    for node in ast.walk(ast.parse(code)):
        named = {getattr(node, key, None) for key in ("id", "attr", "name")}
        taking = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "take"
        inside = [part for argument in node.args for part in ast.walk(argument)] if taking else []
        direct = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute)
        if (
            "first_per_class" in named
            or any(isinstance(part, ast.Call) and ast.unparse(part.func).endswith("range") for part in inside)
            or any(is_prefix(part) for part in inside)
            or (direct and node.value.attr in ("images", "labels") and is_prefix(node))
        ):
            found.append(ast.unparse(node))
    return found


def is_prefix(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and node.slice.lower is None


def test_no_stage_takes_the_first_of_a_set():
    """Guards against samples that go past `images.sample`: `take` of a range or of indices cut off, `set.images[:n]`,
    and the former `first_per_class`. The files of images/ themselves are left out: batches are cut there.
    """
    files = [path for path in (ROOT / "stages").rglob("*.py") if path.parent.name != "images"]
    assert len(files) > 20
    assert {path.name: prefixes(path.read_text(encoding="utf-8")) for path in files} == {
        path.name: [] for path in files
    }


@pytest.mark.parametrize(
    "code",
    [
        "subset = test.take(torch.arange(knobs.pgd_images))",
        "subset = test.take(torch.arange(0, 100))",
        "chosen = others.take(order[:columns])",
        "model.adapt(to_float(train_set.images[:ADAPTED]))",
        "val_set.take(images.first_per_class(val_set.labels, 10))",
        "from stages.common.images import first_per_class",
    ],
)
def test_a_prefix_would_be_noticed(code):
    assert prefixes(code)
    assert not prefixes("test.take(images.sample(test.labels, n)).take(right.nonzero().squeeze(1)); batch.images[2:]")
