"""The strongest attack: one for the audit and for whoever tells images apart, on what stands and on nothing else."""

from types import SimpleNamespace

import pytest
import torch

from stages import breakdown
from stages.common import evaluation, images, robustness
from stages.common.audit import strongest
from stages.common.audit.margins import multi_targeted

EPS = 0.12
KNOBS = SimpleNamespace(
    eps=EPS, seed=3, breakdown=SimpleNamespace(pgd_steps=10), audit=SimpleNamespace(pgd_steps=10, restarts=2)
)


@pytest.fixture(scope="module")
def asked(sound, subject):
    return subject(sound, eps=EPS, seed=3)


def test_what_tells_images_apart_finds_what_the_audit_does(asked, sound):
    """As nearly as random starts allow, which differ with the images that are attacked beside one; and exactly what the
    one function finds of those that its own PGD has left.
    """
    _, taken = breakdown.attacked(sound, asked.image_set, KNOBS)
    survivors = taken["strongest"] == asked.image_set.labels
    assert 0.2 < survivors.double().mean() < 0.8 and (survivors == asked.strongest).double().mean() > 0.95
    first = torch.where(taken["clean"] == asked.image_set.labels, taken["pgd"], taken["clean"])
    found = strongest.strongest_attack(sound, asked.image_set, EPS, first, steps=10, restarts=2, seed=3)
    assert torch.equal(found.strongest, taken["strongest"])
    assert (survivors <= (first == asked.image_set.labels)).all()


def test_what_is_broken_stays_what_it_was_broken_to(asked, sound):
    image_set = asked.image_set
    first = torch.where(torch.arange(len(image_set)) % 2 == 0, (image_set.labels + 1) % 10, image_set.labels)
    found = strongest.strongest_attack(sound, image_set, EPS, first, steps=5, restarts=3, seed=0)
    for taken in found:
        assert torch.equal(taken[::2], first[::2]) and taken.dtype == torch.int64
    assert (found.restarted != first).sum() < (found.strongest != first).sum()


def test_each_attack_meets_what_the_ones_before_left(asked, sound, monkeypatch):
    """A start a seed, the first excepted, which was made before; then the margins."""
    met = []

    def pgd(model, image_set, eps, *, seed, steps, norm, description):
        met.append((seed, len(image_set)))
        return torch.where(image_set.labels == seed, 0, image_set.labels)

    def margins(model, x, y, eps, *, classes, steps, generator):
        met.append(("margins", len(y)))
        return multi_targeted(model, x, y, 0.0, classes=1, steps=1, generator=generator)

    monkeypatch.setattr(robustness, "pgd_predictions", pgd)
    monkeypatch.setattr(strongest, "multi_targeted", margins)
    image_set, labels = asked.image_set, asked.image_set.labels
    strongest.strongest_attack(sound, image_set, EPS, labels, steps=5, restarts=3, seed=6)
    counts = [int((labels == k).sum()) for k in (7, 8)]
    assert met == [(7, len(labels)), (8, len(labels) - counts[0]), ("margins", len(labels) - sum(counts))]


def test_one_start_is_the_one_that_was_made(asked, sound):
    first = evaluation.predictions(sound, asked.image_set.images)
    found = strongest.strongest_attack(sound, asked.image_set, EPS, first, steps=5, restarts=1, seed=0)
    assert torch.equal(found.restarted, first)


def test_by_pgd_in_turn_is_pgd_on_what_stands(asked, sound):
    few = asked.image_set.take(images.sample(asked.image_set.labels, 60))
    clean = evaluation.predictions(sound, few.images)
    found = strongest.by_pgd(sound, few, EPS, clean, steps=5, seeds=[1])
    chosen = strongest.standing(clean, few)
    assert torch.equal(found[chosen], robustness.pgd_predictions(sound, few.take(chosen), EPS, steps=5, seed=1))
