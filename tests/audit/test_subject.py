"""The accuracies that several checks share: consistent with each other, and with the attacks that they name."""

import pytest
import torch

from stages.common import attacks, images, params, robustness
from stages.common.audit import strongest
from stages.common.audit.margins import MARGIN_CLASSES, multi_targeted
from stages.common.audit.subject import TRANSFER_STEPS, Subject
from tests.small import SETTINGS

EPS, EIGHT = SETTINGS.eps, 8 / 255


@pytest.fixture(scope="module")
def asked(sound, plain, subject):
    return subject(sound, other=plain)


def test_budgets_are_the_sweep_s_and_eps_without_0(subject, sound):
    assert subject(sound, eps=0.1, epsilons=(0.0, 0.2, 0.1, 0.02)).budgets == (0.02, 0.1, 0.2)
    assert subject(sound, eps=0.0, epsilons=(0.0,)).budgets == ()


def test_what_attacks_more_leaves_no_more(asked):
    """Restarts break what one start does and more, the margins what the restarts do and more."""
    once, restarted, strongest = asked.pgd_once[EPS], asked.pgd_restarted, asked.strongest
    assert (once <= asked.correct).all() and (restarted <= once).all() and (strongest <= restarted).all()
    assert strongest.any() and strongest.sum() < asked.correct.sum()
    assert all(asked.fgsm_worst[eps] <= asked.fgsm[eps] for eps in asked.budgets)
    worst = list(asked.fgsm_worst.values())
    assert worst == sorted(worst, reverse=True)


def test_survivors_withstand_what_broke_the_others(asked, sound):
    """Of the survivors of PGD's starts the strongest attack spares those that the attack on the margins does."""
    left = asked.image_set.take(asked.pgd_restarted.nonzero().squeeze(1))
    x, y = images.to_float(left.images), left.labels
    given = {"classes": MARGIN_CLASSES, "steps": asked.pgd_steps, "generator": asked.generator()}
    found = attacks.withstood(sound, multi_targeted(sound, x, y, EPS, **given), y)
    assert torch.equal(asked.strongest[asked.pgd_restarted], found)


@pytest.mark.parametrize("epsilons", [(0.0, 0.02), (EIGHT, 0.1)], ids=["not in the sweep", "in the sweep"])
def test_the_strongest_at_a_budget_is_the_same_whatever_eps_is(digits, sound, subject, epsilons):
    few = digits.take(torch.arange(1600, 1700))
    beside = subject(sound, image_set=few, eps=0.05, epsilons=epsilons)
    at_eps = subject(sound, image_set=few, eps=EIGHT)
    assert torch.equal(at_eps.strongest, beside.strongest_at(EIGHT))
    assert torch.equal(at_eps.strongest, at_eps.strongest_at(EIGHT))
    assert not torch.equal(beside.strongest, beside.strongest_at(EIGHT))


@pytest.mark.parametrize("epsilons", [(0.0, 0.2), (EIGHT, 0.2)], ids=["not in the sweep", "in the sweep"])
def test_an_image_survives_if_it_does_so_from_every_start(sound, subject, monkeypatch, epsilons):
    """Starts that each break one class, told from the others by their seeds: as many as asked for, and no two alike."""

    def breaking(model, image_set, eps, *, seed, **_):
        return torch.where(image_set.labels == seed, seed + 1, image_set.labels)

    monkeypatch.setattr(robustness, "pgd_predictions", breaking)
    monkeypatch.setattr(strongest, "by_margins", lambda model, image_set, eps, taken, **_: taken)
    asked = subject(sound, restarts=3, seed=4, eps=EPS, epsilons=epsilons)
    labels = asked.image_set.labels
    expected = asked.correct & ~torch.isin(labels, torch.tensor([4, 5, 6]))
    assert torch.equal(asked.strongest_at(EIGHT), expected) and torch.equal(asked.pgd_restarted, expected)
    assert asked.pgd[EPS] == asked.pgd_at(EPS, 1) == float((asked.correct & (labels != 4)).double().mean())


def test_nothing_is_broken_with_a_budget_of_0(sound, subject):
    asked = subject(sound, eps=0.0)
    assert torch.equal(asked.strongest, asked.correct) and torch.equal(asked.pgd_restarted, asked.correct)
    assert asked.pgd[0.0] == float(asked.correct.double().mean())


def test_examples_of_the_model_itself_transfer_as_pgd_does(sound, subject):
    asked = subject(sound, other=sound, pgd_steps=TRANSFER_STEPS, eps=0.1, epsilons=(0.0,))
    assert asked.transfer[0.1] - 0.02 < asked.pgd[0.1] <= asked.transfer[0.1]  # PGD counts what is broken on the way
    assert asked.pgd_at(0.1, TRANSFER_STEPS) == asked.pgd[0.1]


def test_square_attacks_a_fair_sample(asked):
    assert torch.equal(asked.square_sample, images.sample(asked.image_set.labels, 50))
    assert asked.square.shape == (50,) and (asked.square <= asked.correct[asked.square_sample]).all()


def test_the_smallest_budgets_agree_with_the_accuracies(asked):
    smallest = asked.smallest_eps
    for found in smallest.values():
        assert torch.equal(found == 0, ~asked.correct)
    assert smallest["pgd"].median() <= smallest["fgsm"].median()
    broken_at = float((smallest["fgsm"] <= EPS).double().mean())
    assert broken_at >= 1 - asked.fgsm_worst[EPS] - 0.03  # bisection may step over a hollow of FGSM's ray


def test_rows_hold_every_attack_at_every_budget_and_shares_only_grow(asked):
    rows = list(asked.curves())
    order = ["noise", "transfer", "FGSM", "FGSM, worst case", "PGD"]
    assert [(row["attack"], row["eps"]) for row in rows] == [(a, e) for a in order for e in (0.0, *asked.budgets)]
    assert {row["accuracy"] for row in rows if row["eps"] == 0} == {float(asked.correct.double().mean())}
    epsilons = [0.0, 0.05, 0.1, 0.5]
    shares = list(asked.shares_changed(epsilons))
    for attack in ("fgsm", "pgd"):
        found = [row["share"] for row in shares if row["attack"] == attack]
        assert found == sorted(found) and len(found) == len(epsilons)
        assert found[0] == pytest.approx(1 - rows[0]["accuracy"])


def test_equal_seeds_give_equal_audits_and_other_seeds_other_starts(sound, subject):
    one, again, other = (subject(sound, seed=seed, square_queries=5) for seed in (0, 0, 1))
    assert torch.equal(one.strongest, again.strongest) and torch.equal(one.square, again.square)
    assert one.noise == again.noise
    draws = [torch.rand(3, generator=asked.generator()) for asked in (one, again, other)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_params_yaml_says_what_a_model_is_audited_with(sound, digits):
    knobs = params.load(overrides={"dataset": "digits", "eps": 0.07, "seed": 3, "audit.restarts": 4})
    asked = Subject.from_params(knobs, model=sound, other=sound, defended=False, image_set=digits)
    assert (asked.eps, asked.seed, asked.restarts, asked.target, asked.defended) == (0.07, 3, 4, 9, False)
    assert asked.epsilons == tuple(knobs.fgsm_sweep.epsilons)
    given = (asked.pgd_steps, asked.square_images, asked.square_queries)
    assert given == (knobs.audit.pgd_steps, knobs.audit.square_images, knobs.audit.square_queries)
