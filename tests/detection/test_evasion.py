"""Evading detectors: every budget misleads at least as much as the smaller ones, and stays within its bounds."""

import numpy as np
import pytest

from stages.common import attacks, detection, images
from stages.common.detection import detectors, evasion
from stages.common.detection.evasion import ATTACKS, DOWN, UP

BUDGETS = (0.0, 0.01, 0.1)
EVADED = ("max_logit", "knn", "deep_knn_entropy")  # of the logits, of the features, of every layer and a mirror image


@pytest.fixture(scope="module")
def some(digits):
    return digits.take(images.sample(digits.labels, 60))


@pytest.fixture(scope="module")
def evade(model, fitted, sight, some):
    """`evade(detector, way, seed)`: what `evasion.attack` finds on `some`."""

    def attack(name, way, seed=0, steps=3):
        alone = {name: fitted[name]}
        return evasion.attack(model, alone, some, way, BUDGETS, sight=sight, steps=steps, seed=seed)[name]

    return attack


@pytest.mark.parametrize("way", [DOWN, UP])
@pytest.mark.parametrize("name", EVADED)
def test_a_larger_budget_misleads_at_least_as_much(evade, model, fitted, sight, some, name, way):
    clean = detectors.score(fitted, detectors.see(model, some, sight))[name].numpy()
    found = evade(name, way)
    assert tuple(found) == ATTACKS
    for confidences in found.values():
        assert confidences.shape == (len(BUDGETS), len(some))
        np.testing.assert_allclose(confidences[0], clean, rtol=1e-4, atol=1e-4)  # of other batches
        assert (way * np.diff(confidences, axis=0) >= 0).all()
    noise, fgsm, pgd = (way * np.median(found[attack][-1] - clean) for attack in ATTACKS)
    assert fgsm > noise >= 0 and pgd > noise  # an aim is worth more than the budget alone


def test_equal_seeds_give_equal_results(evade):
    one, same, other = (evade("max_logit", DOWN, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one[attack], same[attack]) for attack in ATTACKS)
    differs = {attack: not np.array_equal(one[attack], other[attack]) for attack in ATTACKS}
    assert differs == {"noise": True, "fgsm": False, "pgd": True}


def test_no_attack_leaves_its_budget(evade, some, monkeypatch):
    seen, views = [], detectors.views

    def spy(model, batch, *given):
        if not batch.requires_grad:  # judged, not climbed
            seen.append(batch.clone())
        return views(model, batch, *given)

    monkeypatch.setattr(detectors, "views", spy)
    evade("knn", UP)
    x = images.to_float(some.images)
    expected = [*BUDGETS, *BUDGETS[1:], *BUDGETS[1:]]  # noise, FGSM, PGD
    assert len(seen) == len(expected)
    for eps, batch in zip(expected, seen, strict=True):
        reach = float((batch - x).abs().max())
        assert reach == pytest.approx(eps, abs=1e-6)  # all of the budget, and no more
        assert float(batch.min()) >= 0 and float(batch.max()) <= 1


def test_many_detectors_are_attacked_as_each_alone(evade, model, fitted, sight, some):
    """One look at noise serves them all."""
    many = {name: fitted[name] for name in EVADED}
    together = evasion.attack(model, many, some, DOWN, BUDGETS, sight=sight, steps=3, seed=0)
    for name in EVADED:
        alone = evade(name, DOWN)
        for attack in ATTACKS:
            np.testing.assert_array_equal(together[name][attack], alone[attack])


@pytest.mark.parametrize("name", EVADED)
def test_an_image_that_ranks_last_already_is_left_and_no_rank_changes(
    model, fitted, sight, some, evade, monkeypatch, name
):
    """Both sides together against each one attacked to the end: every AUROC and interval is the same, for less work."""
    climbed, ascend = [], attacks.ascend

    def spy(uphill, ball, sizes, *, start):
        climbed.append(len(start))
        return ascend(uphill, ball, sizes, start=start)

    monkeypatch.setattr(attacks, "ascend", spy)
    to_the_end = {kind: (evade(name, DOWN)[kind], evade(name, UP)[kind]) for kind in ATTACKS}
    work = sum(climbed)
    climbed.clear()
    alone = {name: fitted[name]}
    found = evasion.both_sides(model, alone, some, some, BUDGETS, sight=sight, steps=3, seed=0)[name]
    expected, rows = (list(evasion.rows({"m": {name: pairs}}, BUDGETS, 0.95)) for pairs in (to_the_end, found))
    for one, other in zip(expected, rows, strict=True):
        assert one == pytest.approx(other)
    assert 0 < sum(climbed) < work


@pytest.mark.parametrize("name", EVADED)
def test_in_bfloat16_only_pgd_looks_for_its_way(evade, name):
    """Noise has none to look for, and FGSM's one gradient is float32's."""
    exact = evade(name, DOWN)
    with attacks.searching(bfloat16=True):
        rough = evade(name, DOWN)
    same = {attack: np.array_equal(exact[attack], rough[attack]) for attack in ATTACKS}
    assert same == {"noise": True, "fgsm": True, "pgd": False}
    spread = np.std(exact["pgd"][0])
    assert np.median(rough["pgd"] - exact["pgd"], axis=1).max() < 0.15 * spread  # pushed down about as far


def test_the_attack_climbs_the_confidence_of_that_very_detector(evade, model, fitted, sight, some):
    """One FGSM step of its own, written out."""
    x = images.to_float(some.images)
    gradient = detectors.confidence_gradient(model, "knn", fitted["knn"], x, sight)
    stepped = [(x - eps * gradient.sign()).clamp(0, 1) for eps in BUDGETS]
    confidences = [detectors.confidence(model, "knn", fitted["knn"], batch, sight).numpy() for batch in stepped]
    np.testing.assert_array_equal(evade("knn", DOWN)["fgsm"], np.minimum.accumulate(confidences))


def test_rows_pair_the_attacked_side_with_the_other_one_clean():
    draw = np.random.default_rng(0)
    pairs = {attack: (draw.normal(1, 1, (2, 30)), draw.normal(0, 1, (2, 20))) for attack in ATTACKS}
    rows = list(evasion.rows({"robust": {"knn": pairs}}, (0.0, 0.1), 0.9))
    assert len(rows) == len(ATTACKS) * 2 * 3
    assert {(row["model"], row["score"]) for row in rows} == {("robust", "knn")}
    by_key = {(row["attack"], row["side"], row["eps"]): row for row in rows}
    inside, outside = pairs["pgd"]
    for side, pair in {
        "ID down": (inside[1], outside[0]),
        "OOD up": (inside[0], outside[1]),
        "both": (inside[1], outside[1]),
    }.items():
        row = by_key["pgd", side, 0.1]
        assert row["auroc"] == detection.auroc(*pair)
        assert (row["auroc_low"], row["auroc_high"]) == detection.auroc_interval(*pair, confidence=0.9)
        assert by_key["pgd", side, 0.0]["auroc"] == detection.auroc(inside[0], outside[0])


def test_the_stronger_the_attack_the_less_the_detector_is_worth(evade):
    """AUROC of both sides attacked falls with the budget, whatever the attack."""
    down, up = evade("max_logit", DOWN), evade("max_logit", UP)
    found = {"standard": {"max_logit": {attack: (down[attack], up[attack]) for attack in ATTACKS}}}
    for attack in ATTACKS:
        areas = [
            row["auroc"]
            for row in evasion.rows(found, BUDGETS, 0.95)
            if (row["attack"], row["side"]) == (attack, "both")
        ]
        assert areas == sorted(areas, reverse=True) and areas[0] == 0.5  # both sides are the same images here
    assert areas[-1] < 0.1
