"""Randomised smoothing: certificates that hold where the truth is known, and that no attack contradicts."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from stages import certify
from stages.common import attacks, evaluation, images, models, params, smoothing
from stages.common.audit import certificate, probes
from stages.common.audit.checks import CHECKS
from stages.common.audit.subject import Subject
from stages.common.errors import UserError
from stages.common.smoothing import ABSTAINED, Bounds, Smoothed
from tests.small import RECIPE, SETTINGS, against, fit

SIGMA = 0.12
DISTANCES = torch.linspace(0.1, 0.3, 5)
STEP = 0.04  # from a radius to the next
FINE = [STEP * count for count in range(12)]
RADII = (0.0, 0.1, 0.3, 0.6, 1.2)


class Linear(nn.Module):
    """Class 1 on one side of a plane through grey, class 0 on the other: at a signed distance d from the plane, noise
    leaves class 1 a probability of Phi(d / sigma), and d is the true radius of the smoothed classifier.
    """

    def __init__(self):
        super().__init__()
        normal = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
        self.normal = nn.Parameter(normal / normal.norm())

    def forward(self, x):
        distance = ((x - 0.5) * self.normal).sum((1, 2, 3))
        return 5 * torch.stack([-distance, distance], dim=1)

    def at(self, distances):
        """Images at these distances from the plane, each anywhere along it."""
        normal = self.normal.detach()
        along = torch.randn(len(distances), 1, 4, 4, generator=torch.Generator().manual_seed(1)) / 20
        along -= (along * normal).sum((1, 2, 3), keepdim=True) * normal
        return 0.5 + along + distances.view(-1, 1, 1, 1) * normal


def smoothed(model=None, **changes):
    given = {"model": model or Linear(), "classes": 2, "sigma": SIGMA, "samples": 1000, "selection_samples": 100}
    return Smoothed(**(given | {"alpha": 0.001} | changes))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def certified(classifier, x, seed=0):
    """The class and the radius of each image, by CERTIFY."""
    generator = seeded(seed)
    selected = classifier.counts(x, classifier.selection_samples, generator).argmax(1)
    counts = classifier.counts(x, classifier.samples, generator)
    return selected, smoothing.certify(selected, counts, sigma=classifier.sigma, alpha=classifier.alpha)


# Where the truth is known


def test_a_certified_radius_is_below_the_true_distance_and_near_it():
    distances = torch.cat([DISTANCES, -DISTANCES])
    selected, radii = certified(smoothed(samples=10_000), Linear().at(distances))
    assert torch.equal(selected, (distances > 0).long())
    assert (radii < distances.abs()).all() and (radii > 0.9 * distances.abs()).all()


@pytest.fixture(scope="module")
def plane():
    """What is found of images of class 1 at each of the distances."""
    model = Linear()
    return smoothing.bounds(smoothed(model), model.at(DISTANCES), torch.ones(5).long(), FINE, seeded())


def test_no_attack_breaks_what_is_within_the_distance_and_one_breaks_what_is_beyond(plane):
    assert (plane.answers == 1).all() and not smoothing.contradicted(plane).any()
    assert (plane.lower > 0).all() and (plane.lower <= DISTANCES).all()
    assert (plane.upper >= DISTANCES).all() and (plane.upper <= DISTANCES + SIGMA / 2 + STEP).all()
    assert all(low <= high for low, high in pairs(plane, FINE))


def test_a_certificate_that_claims_too_much_is_contradicted_and_its_curves_cross(plane):
    claimed = plane._replace(lower=3 * plane.lower)
    assert smoothing.contradicted(claimed).any()
    assert any(low > high for low, high in pairs(claimed, FINE))


@pytest.mark.parametrize(("count", "alpha"), [(100, 0.001), (1000, 0.001), (5, 0.01)])
def test_no_more_than_luck_explains_is_explained(count, alpha):
    explained, rate = smoothing.by_chance(count, FINE, alpha), alpha * (1 + len(FINE))
    assert stats.binom.sf(explained, count, rate) <= 0.01 < stats.binom.sf(explained - 1, count, rate)


def test_a_planted_contradiction_fails_the_audit(stage, monkeypatch, sound_subject):
    """A certificate three times too long, as the stage writes it and as the audit reads it."""
    bounds = smoothing.bounds

    def claimed(*given):
        found = bounds(*given)
        return found._replace(lower=torch.where(found.lower > 0, found.lower + 10, found.lower))

    for planted, verdict in ((bounds, "pass"), (claimed, "FAIL")):
        monkeypatch.setattr(smoothing, "bounds", planted)
        stage(20)
        read = certificate.read(Path("metrics/certify.json"), "robust")
        assert CHECKS["certificate_not_contradicted"](replace(sound_subject, certificate=read)).verdict == verdict
    assert certificate.read(Path("metrics/certify.json"), "standard") is None


def test_where_nothing_is_certified_the_audit_has_nothing_to_ask(stage):
    stage(0)
    assert certificate.read(Path("metrics/certify.json"), "robust") is None
    with pytest.raises(UserError, match=r"metrics/none.json is missing.*dvc repro certify"):
        certificate.read(Path("metrics/none.json"), "robust")


def pairs(found, radii):
    """Accuracies from below and from above, at each radius."""
    rows = list(smoothing.curves(found, radii, 0.95))
    assert [row["curve"] for row in rows] == ["certified", "attacked"] * len(radii)
    return [(low["accuracy"], high["accuracy"]) for low, high in zip(rows[::2], rows[1::2], strict=True)]


def test_an_image_of_another_class_is_broken_at_0_and_attacked_no_more(monkeypatch):
    model = Linear()
    monkeypatch.setattr(Smoothed, "attack", lambda *given: pytest.fail("attacked"))
    found = smoothing.bounds(smoothed(model), model.at(DISTANCES), torch.zeros(5).long(), [0.0, 0.1], seeded())
    assert (found.upper == 0).all() and found.lower.isneginf().all() and (found.answers == 1).all()
    assert pairs(found, [0.0, 0.1]) == [(0, 0), (0, 0)]


def test_on_the_boundary_both_abstain():
    """What is 1 in 2 is answered by chance alone, with a probability of alpha: of 100 images hardly once."""
    model = Linear()
    x, classifier = model.at(torch.zeros(100)), smoothed(model, samples=100)
    _, radii = certified(classifier, x)
    answers = smoothing.predict(classifier.counts(x, 100, seeded()), classifier.alpha)
    assert (radii > 0).sum() <= 2 and (answers != ABSTAINED).sum() <= 2
    found = smoothing.bounds(classifier, x[:5], torch.ones(5).long(), [0.0], seeded())
    assert found.lower.isneginf().all() and found.upper.isposinf().all()  # neither certain to be right, nor seen to err
    assert pairs(found, [0.0]) == [(0, 1)]


def test_few_samples_leave_open_what_many_decide():
    model = Linear()
    x = model.at(torch.full((8,), 0.02))  # class 1 has 0.566 of the noise
    answers = {n: smoothing.predict(smoothed(model).counts(x, n, seeded()), 0.001) for n in (50, 5000)}
    assert (answers[50] == ABSTAINED).all() and (answers[5000] == 1).all()


def test_radii_are_too_large_as_often_as_alpha_allows_and_not_much_more_seldom():
    model = Linear()
    _, radii = certified(smoothed(model, samples=60, alpha=0.1), model.at(torch.full((500,), 0.1)))
    assert 0.02 < float((radii > 0.1).double().mean()) < 0.14


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(any), st.floats(1e-4, 0.3))
def test_predict_answers_what_the_binomial_test_of_the_two_commonest_does(counts, alpha):
    second, first = sorted(counts)[-2:]
    decided = stats.binomtest(first, first + second).pvalue <= alpha
    expected = counts.index(first) if decided else ABSTAINED
    assert smoothing.predict(torch.tensor([counts]), alpha).tolist() == [expected]


# The noise


class Rough(nn.Module):
    """Four classes by random weights, in float64: no answer depends on the batch."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(75, 4, generator=torch.Generator().manual_seed(3)).double())

    def forward(self, x):
        return (x.double() - 0.5).flatten(1) @ self.weights


@pytest.mark.parametrize("at_once", [1, 7, 500])
def test_counts_are_those_of_one_copy_after_another(monkeypatch, at_once):
    """75 numbers a copy: torch draws numbers by 16, and another draw for a batch of another size."""
    monkeypatch.setattr(sys.modules["stages.common.images.batches"], "BATCH_SIZE", at_once)
    model, x, generator = Rough(), torch.rand(5, 3, 5, 5, generator=seeded()), seeded()
    expected = torch.zeros(5, 4, dtype=torch.int64)
    for index, image in enumerate(x):
        for _ in range(11):
            noise = torch.empty(3, 5, 5).normal_(0, 0.3, generator=generator)
            expected[index, model((image + noise).unsqueeze(0)).argmax()] += 1
    counts = smoothed(model, classes=4, sigma=0.3).counts(x, 11, seeded())
    assert torch.equal(counts, expected) and len(counts.unique(dim=0)) > 1


def test_noise_is_not_clamped():
    class SeesBlackerThanBlack(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), (x.amin((1, 2, 3)) < 0).float()], dim=1)

    assert smoothed(SeesBlackerThanBlack()).counts(torch.zeros(2, 3, 8, 8), 10, seeded()).tolist() == [[0, 10]] * 2


# A trained classifier


@pytest.fixture(scope="module")
def net(digits, tmp_path_factory):
    return fit(digits, tmp_path_factory.mktemp("work"), RECIPE, against(SETTINGS))[0]


@pytest.fixture(scope="module")
def held_out(digits):
    return digits.take(torch.arange(1600, 1640))


@pytest.fixture(scope="module")
def case(net, held_out):
    """The smoothed net, images and labels."""
    classifier = smoothed(net, classes=10, samples=200, selection_samples=50)
    return classifier, images.to_float(held_out.images), held_out.labels


@pytest.fixture(scope="module")
def found(case):
    return smoothing.bounds(*case, RADII, seeded())


def test_the_curves_of_a_net_never_cross_and_only_fall(found):
    assert not smoothing.contradicted(found).any()
    low, high = zip(*pairs(found, RADII), strict=True)
    assert all(below <= above for below, above in zip(low, high, strict=True))
    assert list(low) == sorted(low, reverse=True) and list(high) == sorted(high, reverse=True)
    assert low[0] > low[1] > 0.3 and high[-1] < high[0] / 2  # there is something that might have crossed


def test_no_radius_is_certified_beyond_what_unanimous_samples_allow(found):
    largest = SIGMA * stats.norm.ppf(0.001 ** (1 / 200))
    assert found.lower.max() == pytest.approx(largest)


def test_equal_seeds_give_equal_bounds_and_other_seeds_other_counts(case, found):
    again = smoothing.bounds(*case, RADII, seeded())
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    classifier, x, _ = case
    assert not torch.equal(*(classifier.counts(x, 50, seeded(seed)) for seed in (0, 1)))


def test_the_attack_misleads_noisy_copies_more_than_a_random_change_of_its_size(case):
    classifier, x, y = case
    attacked, moved = classifier.attack(x, y, 0.6, seeded()), attacks.L2(x, 0.6).start(seeded(2))
    left = [
        classifier.counts(at, 200, seeded(1)).gather(1, y.unsqueeze(1)).double().mean() for at in (x, moved, attacked)
    ]
    assert left[2] < 0.7 * min(left[:2])


@settings(max_examples=8, deadline=None)
@given(radius=st.floats(0, 2), seed=st.integers(0, 99), bfloat16=st.booleans())
def test_the_attack_keeps_its_radius_and_range(case, radius, seed, bfloat16):
    classifier, x, y = case
    with attacks.searching(bfloat16=bfloat16):
        attacked = classifier.attack(x[:5], y[:5], radius, seeded(seed))
    assert attacked.shape == x[:5].shape and attacked.dtype == torch.float32 and not attacked.requires_grad
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert ((attacked - x[:5]).flatten(1).norm(dim=1) <= radius + 1e-5).all()


def test_only_the_attack_searches_in_bfloat16(case):
    classifier, x, y = case
    exact, counts = classifier.attack(x[:5], y[:5], 0.3, seeded()), classifier.counts(x[:5], 20, seeded())
    with attacks.searching(bfloat16=True):
        assert not torch.equal(classifier.attack(x[:5], y[:5], 0.3, seeded()), exact)
        assert torch.equal(classifier.counts(x[:5], 20, seeded()), counts)


def test_the_model_is_given_back_as_it_came(digits, held_out):
    torch.manual_seed(0)
    model = models.build("whitened_cnn", channels=1, classes=digits.classes, widths=[8])
    model.adapt(images.to_float(digits.images))
    model.train()
    before = probes.state(model)
    classifier = smoothed(model, classes=10, samples=5, selection_samples=5)
    smoothing.bounds(classifier, images.to_float(held_out.images[:3]), held_out.labels[:3], [0.1], seeded())
    assert not probes.changes(before, probes.state(model))


# The rows, and what is refused


def test_curves_count_what_is_certain_and_what_stands():
    inf = torch.inf
    known = Bounds(torch.tensor([1, 0, 0]), torch.tensor([-inf, 0.1, 0.3]), torch.tensor([0, inf, 0.4]))
    known = Bounds(known.answers, known.lower.double(), known.upper.double())
    shares = [(round(3 * low), round(3 * high)) for low, high in pairs(known, [0.0, 0.2, 0.35, 0.45])]
    assert shares == [(2, 2), (1, 2), (0, 2), (0, 1)]
    for row in smoothing.curves(known, [0.0, 0.2], 0.9):
        interval = stats.binomtest(round(3 * row["accuracy"]), 3).proportion_ci(0.9, method="wilson")
        assert (row["low"], row["high"]) == (interval.low, interval.high)


def test_without_an_image_there_is_no_curve():
    empty = torch.empty(0)
    with pytest.raises(ValueError, match="N >= 1"):
        list(smoothing.curves(Bounds(empty, empty, empty), [0.0], 0.95))


@pytest.mark.parametrize(
    "change", [{"sigma": 0.0}, {"samples": 0}, {"selection_samples": 0}, {"alpha": 0.0}, {"alpha": 1.0}]
)
def test_numbers_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match="smoothing needs"):
        smoothed(**change)


@pytest.mark.parametrize(("x", "radius", "message"), [(2.0, 0.1, "pixels"), (0.5, -0.1, "eps"), (0.5, 4.1, "eps")])
def test_images_and_radii_that_make_no_sense_are_refused(x, radius, message):
    with pytest.raises(ValueError, match=message):
        smoothing.bounds(smoothed(), torch.full((1, 1, 4, 4), x), torch.zeros(1).long(), [radius, 0.2], seeded())


# The stage


@pytest.fixture
def sound_subject(net, held_out):
    knobs = params.load(overrides={"dataset": "digits"})
    return Subject.from_params(knobs, model=net, other=None, defended=True, image_set=held_out)


@pytest.fixture
def stage(monkeypatch, tmp_path, net, held_out):
    """`stage(images)`: what the stage writes of so many images: metrics and table."""

    def run(count):
        chosen = {"images": count, "sigma": SIGMA, "samples": 200, "selection_samples": 50, "alpha": 0.001}
        knobs = SimpleNamespace(
            certify=SimpleNamespace(**chosen, radii=[0.0, 0.1, 0.6]),
            device="cpu",
            precision="float32",
            seed=0,
            confidence=0.95,
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(params, "load_prepared", lambda: knobs)
        monkeypatch.setattr(images, "read", lambda name: held_out)
        monkeypatch.setattr(evaluation, "load_both", lambda image_set, where: {"robust": net})
        certify.main()
        return json.loads((tmp_path / "metrics/certify.json").read_text()), pd.read_csv(
            tmp_path / "plots/certified.csv"
        )

    return run


def test_the_stage_writes_both_curves_and_their_figures(stage, capsys):
    metrics, table = stage(10)
    robust = metrics["robust"]
    assert set(robust) == {"smoothed", "abstained", "certified", "attacked", "images", "contradicted", "by_chance"}
    assert (robust["images"], robust["contradicted"]) == (10, 0) and 0.5 < robust["smoothed"] <= 1 - robust["abstained"]
    assert list(table) == ["radius", "curve", "accuracy", "low", "high"]
    for curve in ("certified", "attacked"):
        drawn = table[table["curve"] == curve]
        assert robust[curve] == dict(zip(["0", "0.1", "0.6"], drawn["accuracy"].tolist(), strict=True))
    assert "within 0.1 in L2" in capsys.readouterr().out


def test_the_stage_says_that_it_looked_at_nothing(stage, capsys):
    metrics, table = stage(0)
    assert metrics == {"robust": {}} and len(table) == 0 and "accuracy" in table
    assert "n/a" in capsys.readouterr().out
