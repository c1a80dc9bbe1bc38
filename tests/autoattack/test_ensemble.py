"""AutoAttack: each part as strong as torchattacks's, in turn on what is left, repeatable and resumable."""

import sys
from dataclasses import replace

import pytest
import torch
import torchattacks
from torch import nn

from stages.common import attacks, autoattack, images
from stages.common.autoattack import ensemble
from stages.common.images import ImageSet
from tests.small import RECIPE, SETTINGS, against, fit

ORDER = ["apgd_ce", "apgd_t", "fab_t", "square"]
EFFORT = ensemble.Effort(steps=25, queries=600)


@pytest.fixture(scope="module")
def few(digits):
    """Images that no model has seen."""
    return digits.take(torch.arange(1600, 1750))


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A classifier of digits trained on clean images, and one trained on N-FGSM examples; each with a budget that
    breaks some images and leaves some.
    """
    settings = replace(SETTINGS, fraction=1.0, overfitting_gap=0.3)
    plain = fit(digits, tmp_path_factory.mktemp("work"), replace(RECIPE, seed=1))[0]
    robust = fit(digits, tmp_path_factory.mktemp("work"), replace(RECIPE, epochs=8), against(settings))[0]
    return {"plain": (plain.eval(), 0.06), "robust": (robust.eval(), 0.12)}


class Square(torchattacks.Square):
    """Those of torchattacks, as the authors', never reach the last row and column, which counts on 8x8 pixels."""

    def random_int(self, low=0, high=1, shape=(1,)):
        return super().random_int(low, high + 1, shape)


THEIRS = {
    "apgd_ce": lambda model, eps: torchattacks.APGD(model, eps=eps, steps=EFFORT.steps, loss="ce"),
    "apgd_t": lambda model, eps: torchattacks.APGDT(model, eps=eps, steps=EFFORT.steps, n_classes=10),
    "fab_t": lambda model, eps: torchattacks.FAB(model, eps=eps, steps=EFFORT.steps, n_classes=10, multi_targeted=True),
    "square": lambda model, eps: Square(model, eps=eps, n_queries=EFFORT.queries),
}


@pytest.mark.parametrize("which", ["plain", "robust"])
@pytest.mark.parametrize("name", ORDER)
def test_a_part_breaks_the_images_that_torchattacks_breaks(trained, few, name, which):
    """As nearly as can be: from two starts torchattacks's own APGDT agrees with itself on 0.97 to 0.98 of the images,
    and Square's queries are random all the way.
    """
    model, eps = trained[which]
    x, y = images.to_float(few.images).contiguous(), few.labels  # contiguous: their FAB cannot take channels_last
    right = attacks.withstood(model, x, y)
    x, y = x[right], y[right]
    generator = torch.Generator().manual_seed(0)
    ours = attacks.withstood(model, autoattack.PARTS[name].attack(model, x, y, eps, EFFORT, generator), y)
    theirs = attacks.withstood(model, THEIRS[name](model, eps)(x, y), y)
    assert 0.3 < theirs.float().mean() < 0.8
    assert (ours == theirs).float().mean() >= (0.93 if name == "square" else 0.96)
    assert abs(ours.float().mean() - theirs.float().mean()) <= (0.03 if name == "square" else 0.02)


def survivors(model, image_set, eps, seed=0, done=None):
    return dict(autoattack.run(model, image_set, eps, steps=3, queries=10, seed=seed, done=done))


def test_whatever_is_done_already_the_rest_is_what_it_would_have_been(trained, few):
    model, eps = trained["robust"]
    whole = survivors(model, few, eps)
    assert list(whole) == ORDER
    alive = attacks.withstood(model, images.to_float(few.images), few.labels)
    for left in whole.values():
        assert left.dtype == torch.bool and not (left & ~alive).any()
        alive = left
    assert 0 < alive.sum() < whole["apgd_ce"].sum()
    for count in range(1, 5):
        rest = survivors(model, few, eps, done={name: whole[name] for name in ORDER[:count]})
        assert list(rest) == ORDER[count:]
        assert all(torch.equal(left, whole[name]) for name, left in rest.items())


# The order, the queue and the seeds, by attacks that note what they are given


class Reader(nn.Module):
    """Says the class that the first channel of an image holds."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, x):
        return -(x[:, 0].mean((1, 2)).unsqueeze(1) * 255 - torch.arange(self.classes)).abs()


@pytest.fixture
def numbered(monkeypatch):
    """`numbered(classes)`: ten images, in batches of four, whose second channel is their number; the first one's class
    is misread.
    """
    monkeypatch.setattr(sys.modules["stages.common.images.batches"], "BATCH_SIZE", 4)

    def make(classes):
        labels = torch.arange(10) % classes
        pixels = torch.stack([labels, torch.arange(10)], 1).view(10, 2, 1, 1).to(torch.uint8)
        return ImageSet(pixels, torch.cat([(labels[:1] + 1) % classes, labels[1:]]), [str(k) for k in range(classes)])

    return make


@pytest.fixture
def noted(monkeypatch):
    """What every part was given: its name, the numbers of the images, its effort and its first random number. A part
    breaks the images of its `victims`.
    """
    calls, victims = [], {"apgd_ce": [9], "apgd_t": [3, 4], "fab_t": [], "square": [1, 9]}

    def noting(name):
        def attack(model, x, y, eps, effort, generator):
            numbers = (x[:, 1].flatten() * 255).round().int().tolist()
            calls.append((name, numbers, effort, float(torch.rand(1, generator=generator))))
            attacked = x.clone()
            attacked[[number in victims[name] for number in numbers], 0] = 0.0  # the class of none of these
            return attacked

        return attack

    for name, part in ensemble.PARTS.items():
        monkeypatch.setitem(ensemble.PARTS, name, part._replace(attack=noting(name)))
    return calls


def test_each_part_attacks_what_the_ones_before_left(noted, numbered):
    found = {
        name: left.nonzero().flatten().tolist() for name, left in autoattack.run(Reader(5), numbered(5), 0.1, seed=0)
    }
    assert found == {
        "apgd_ce": [1, 2, 3, 4, 5, 6, 7, 8],
        "apgd_t": [1, 2, 5, 6, 7, 8],
        "fab_t": [1, 2, 5, 6, 7, 8],
        "square": [2, 5, 6, 7, 8],
    }
    assert [(name, numbers) for name, numbers, *_ in noted] == [
        ("apgd_ce", [1, 2, 3, 4]),
        ("apgd_ce", [5, 6, 7, 8]),
        ("apgd_ce", [9]),
        ("apgd_t", [1, 2, 3, 4]),
        ("apgd_t", [5, 6, 7, 8]),
        ("fab_t", [1, 2, 5, 6]),
        ("fab_t", [7, 8]),
        ("square", [1, 2, 5, 6]),
        ("square", [7, 8]),
    ]
    assert {effort for _, _, effort, _ in noted} == {ensemble.Effort(100, 5000, attacks.Linf)}
    assert ensemble.TARGETS == 9


def test_every_batch_of_every_part_has_a_randomness_of_its_own(noted, numbered):
    image_set = numbered(5)
    drawn = []
    for seed in (0, 0, 1):
        noted.clear()
        whole = dict(autoattack.run(Reader(5), image_set, 0.1, seed=seed))
        drawn.append([random for *_, random in noted])
    assert drawn[0] == drawn[1] and len({*drawn[0], *drawn[2]}) == 2 * len(drawn[0])
    noted.clear()
    list(autoattack.run(Reader(5), image_set, 0.1, seed=1, done={name: whole[name] for name in ORDER[:2]}))
    assert [random for *_, random in noted] == drawn[2][5:]


def test_a_part_is_known_before_the_next_begins(noted, numbered):
    progress = autoattack.run(Reader(5), numbered(5), 0.1, seed=0)
    assert next(progress)[0] == "apgd_ce" and {name for name, *_ in noted} == {"apgd_ce"}


@pytest.mark.parametrize(("classes", "names"), [(4, ORDER), (3, ["apgd_ce", "fab_t", "square"])])
def test_a_part_that_needs_more_classes_is_left_out(noted, numbered, classes, names):
    assert list(dict(autoattack.run(Reader(classes), numbered(classes), 0.1, seed=0))) == names
    assert autoattack.parts(classes) == names


def test_of_another_norm_the_parts_that_know_it_attack_by_it(noted, numbered):
    names = ["apgd_ce", "apgd_t"]
    found = dict(autoattack.run(Reader(5), numbered(5), 0.1, steps=7, queries=8, seed=0, norm=attacks.L2))
    assert list(found) == autoattack.parts(5, attacks.L2) == names
    assert {(name, effort) for name, _, effort, _ in noted} == {(name, (7, 8, attacks.L2)) for name in names}


def test_where_nothing_is_right_nothing_is_attacked(noted, numbered):
    image_set = numbered(5)
    wrong = ImageSet(image_set.images, (image_set.images[:, 0, 0, 0].long() + 1) % 5, image_set.classes)
    found = dict(autoattack.run(Reader(5), wrong, 0.1, seed=0))
    assert list(found) == ORDER and not torch.stack(list(found.values())).any() and not noted


@pytest.mark.parametrize(
    ("done", "message"),
    [
        ({"apgd_t": torch.ones(10).bool()}, r"done must hold the first of apgd_ce, apgd_t.*; it holds apgd_t"),
        ({"apgd_ce": torch.ones(10).bool(), "pgd": torch.ones(10).bool()}, "it holds apgd_ce, pgd"),
        ({"apgd_ce": torch.ones(9).bool()}, r"done\['apgd_ce'\] must be bool \(10,\), got torch.bool \(9,\)"),
        ({"apgd_ce": torch.ones(10)}, "got torch.float32"),
    ],
)
def test_what_is_done_must_be_the_first_parts_of_these_images(noted, numbered, done, message):
    with pytest.raises(ValueError, match=message):
        next(autoattack.run(Reader(5), numbered(5), 0.1, seed=0, done=done))
    assert not noted
