"""Attacks bounded in L2: equal to independent libraries, inside ball and box, whatever the gradient's size."""

import math
from functools import partial

import eagerpy
import foolbox
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from stages.common import attacks, autoattack, images, models, robustness
from stages.common.attacks import L2
from stages.common.audit import probes

STEPS = 6
BUDGETS = [0.05, 0.5, 2.0]  # of 48 pixels: the sphere, the sphere cut by the box, mostly the box
seeds = st.integers(0, 2**31)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def lengths(change):
    return change.flatten(1).norm(dim=1)


@pytest.fixture(scope="module")
def model():
    """Smooth and in float64, so that sums of another order stay sums of another order, and no kink makes more of it."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(96, 5)).double().eval()
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=seeded()) / 2)
    return model


@pytest.fixture(scope="module")
def batch(model):
    """Black and white pixels among them; most images are classified correctly."""
    x = torch.rand(16, 3, 4, 4, generator=seeded(1), dtype=torch.float64).round(decimals=1)
    return x, torch.where(torch.rand(16, generator=seeded(2)) < 0.8, model(x).argmax(1), 0)


# Equal to others


def wrapped(model):
    return foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")


@pytest.mark.parametrize("eps", BUDGETS)
def test_fgsm_in_l2_equals_foolbox_s_fast_gradient_method(model, batch, eps):
    theirs = foolbox.attacks.L2FastGradientAttack().run(wrapped(model), *batch, epsilon=eps)
    torch.testing.assert_close(attacks.fgsm(model, *batch, eps, norm=L2), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("eps", BUDGETS)
def test_pgd_equals_foolbox_s_from_the_same_start(model, batch, eps, targeted):
    x, labels = batch
    goal = foolbox.criteria.TargetedMisclassification(labels) if targeted else labels
    theirs = foolbox.attacks.L2PGD(abs_stepsize=eps / 3, steps=STEPS, random_start=True)
    theirs.get_random_start = lambda x0, epsilon: eagerpy.astensor(L2(x, eps).start(seeded(4)))
    expected = theirs.run(wrapped(model), x, goal, epsilon=eps)
    ours = attacks.pgd(
        model, x, labels, eps, steps=STEPS, step_size=eps / 3, targeted=targeted, generator=seeded(4), norm=L2
    )
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("eps", BUDGETS)
def test_pgd_equals_torchattacks_from_the_image_itself(model, batch, monkeypatch, eps, targeted):
    monkeypatch.setattr(L2, "start", lambda ball, generator: ball.images)
    theirs = torchattacks.PGDL2(model, eps=eps, alpha=2.5 * eps / STEPS, steps=STEPS, random_start=False)
    theirs.eps_for_division = 1e-30  # its 1e-10 makes steps short where the loss of 16 images is nearly flat
    if targeted:
        theirs.set_mode_targeted_by_label(quiet=True)
    ours = attacks.pgd(model, *batch, eps, steps=STEPS, targeted=targeted, norm=L2)
    torch.testing.assert_close(ours, theirs(*batch), atol=1e-5, rtol=0)


# The ball


@settings(max_examples=25, deadline=None)
@given(epsilons=st.lists(st.floats(0, 8), min_size=1, max_size=4), each=st.booleans(), seed=seeds)
def test_whatever_the_gradient_each_image_stays_in_its_ball(epsilons, each, seed):
    """One budget for all, or one for each image; gradients that vanish, in float32 squared or at all, or are huge."""
    generator = seeded(seed)
    x = torch.rand(len(epsilons), 3, 4, 4, generator=generator).round(decimals=1)  # 0 and 1 among them
    before, eps = x.clone(), torch.tensor(epsilons) if each else torch.full((len(epsilons),), epsilons[0])
    ball, seen = L2(x, eps if each else epsilons[0]), []

    def uphill(attacked):
        seen.append(attacked.clone())
        powers = torch.randint(-44, 38, (len(x), 1, 1, 1), generator=generator)
        return torch.randn(x.shape, generator=generator) * 10.0**powers

    seen.append(attacks.ascend(uphill, ball, attacks.constant(ball, 3), start=ball.start(generator)))
    assert len(seen) == 4 and torch.equal(x, before)
    for found in seen:
        assert found.shape == x.shape and found.dtype == x.dtype and found.min() >= 0 and found.max() <= 1
        assert (lengths(found - x) <= eps + 1e-5).all()


@settings(max_examples=25, deadline=None)
@given(power=st.integers(-35, 36), size=st.floats(0.01, 0.5), seed=seeds)  # 0.5: the box is out of reach
def test_the_size_of_a_gradient_does_not_matter(power, size, seed):
    """In float32 the square of 1e-25 is 0, and that of 1e25 is infinite."""
    x, slope = torch.full((2, 3, 4, 4), 0.5), torch.randn(2, 3, 4, 4, generator=seeded(seed))
    moved = L2(x, 1.0).step(x, slope * 10.0**power, size) - x
    torch.testing.assert_close(moved, size * slope / lengths(slope).view(-1, 1, 1, 1), atol=1e-5, rtol=0)


def test_without_a_slope_an_image_stays_where_it_is_and_the_others_move():
    x = torch.rand(3, 3, 4, 4, generator=seeded())
    ball = L2(x, torch.tensor([0.3, 0.3, 0.0]))
    flat = torch.tensor([0.0, 1.0, 1.0]).view(-1, 1, 1, 1)
    start = ball.start(seeded(3))
    assert lengths(start - x)[:2].min() > 0.2 and torch.equal(start[2], x[2])
    ended = attacks.ascend(lambda attacked: flat.expand(x.shape).clone(), ball, [0.2] * 3, start=start)
    torch.testing.assert_close(ended[0], start[0], atol=1e-6, rtol=0)
    assert lengths(ended - start)[1] > 0.2 and torch.equal(ended[2], x[2])
    unmoved = attacks.ascend(torch.zeros_like, ball, [0.2] * 3, start=x)
    assert torch.equal(unmoved, x)


def test_a_constant_model_is_attacked_without_a_nan():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    nn.init.zeros_(model[1].weight)
    x, labels = torch.rand(4, 3, 4, 4, generator=seeded()), torch.arange(4) % 3
    assert torch.equal(attacks.fgsm(model, x, labels, 0.5, norm=L2), x)
    started = L2(x, 0.5).start(seeded(1))
    attacked = attacks.pgd(model, x, labels, 0.5, steps=3, generator=seeded(1), norm=L2)
    torch.testing.assert_close(attacked, started, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_budget_for_each_image_is_spent_whole_and_goes_no_further(sign):
    eps = torch.tensor([0.0, 0.01, 0.3, 0.9])
    x = torch.full((4, 3, 4, 4), 0.5)
    ball = L2(x, eps)
    attacked = attacks.ascend(lambda at: torch.full_like(at, sign * 1e-9), ball, [2.5 * ball.reach] * 40, start=x)
    expected = x + sign * eps.view(-1, 1, 1, 1) / math.sqrt(48)
    torch.testing.assert_close(attacked, expected, atol=1e-6, rtol=0)


def test_starts_are_uniform_in_a_disc():
    """Of two pixels: the square of the radius and the angle are uniform, and independent of each other."""
    x, eps = torch.full((4000, 1, 1, 2), 0.5, dtype=torch.float64), 0.3
    change = ((L2(x, eps).start(seeded(5)) - x) / eps).flatten(1)
    squares, angles = change.square().sum(1), torch.atan2(change[:, 0], change[:, 1]) / (2 * math.pi) + 0.5
    quarters = (4 * angles) % 1  # laid over each other: directions to a square's points crowd at its corners
    for uniform in (squares, angles, quarters, angles[squares < 0.5], angles[squares >= 0.5]):
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > 0.01
    assert squares.max() <= 1


def test_starts_in_many_dimensions_are_where_the_volume_is():
    """Of 48 pixels, all but 2 % of the ball lies beyond 0.92 of its radius; the box cuts off what is outside."""
    inner, corner = torch.full((500, 3, 4, 4), 0.5), torch.zeros(500, 3, 4, 4)
    radius = lengths(L2(inner, 0.5).start(seeded()) - inner) / 0.5
    assert stats.kstest((radius**48).numpy(), "uniform").pvalue > 0.01
    cut = L2(corner, 0.5).start(seeded())
    torch.testing.assert_close(cut, (corner + L2(inner, 0.5).start(seeded()) - inner).clamp(0, 1), atol=1e-6, rtol=0)


# The attacks


def attacked_by_all(model, x, labels, eps, seed=0):
    """By each attack that takes a norm."""
    return [
        attacks.fgsm(model, x, labels, eps, norm=L2),
        attacks.fgsm(model, x, labels, eps, targeted=True, norm=L2),
        attacks.pgd(model, x, labels, eps, steps=2, generator=seeded(seed), norm=L2),
        attacks.pgd(model, x, labels, eps, steps=2, targeted=True, generator=seeded(seed), norm=L2),
        attacks.pgd_until_broken(model, x, labels, eps, steps=3, generator=seeded(seed), norm=L2),
        attacks.pgd_until_broken(
            model, x, labels, eps, steps=3, climbed=attacks.margin_of, generator=seeded(seed), norm=L2
        ),
    ]


@settings(max_examples=10, deadline=None)
@given(eps=st.floats(0, math.sqrt(48)), seed=seeds)
def test_attacks_keep_budget_and_range_and_repeat_with_their_seed(model, batch, eps, seed):
    once, again = (attacked_by_all(model, *batch, eps, seed) for _ in range(2))
    for attacked, same in zip(once, again, strict=True):
        assert torch.equal(attacked, same) and attacked.shape == batch[0].shape and not attacked.requires_grad
        assert attacked.min() >= 0 and attacked.max() <= 1
        assert (lengths(attacked - batch[0]) <= eps + 1e-5).all()


def test_another_seed_starts_elsewhere(model, batch):
    one, other = (attacks.pgd(model, *batch, 0.5, steps=1, generator=seeded(seed), norm=L2) for seed in (0, 1))
    assert (lengths(one - other) > 0.01).all()


@pytest.mark.parametrize("train", [False, True])
def test_the_model_is_given_back_as_it_came(train):
    model = models.build("whitened_cnn", channels=3, classes=list("abcde"), widths=[8]).train(train)
    before = probes.state(model)
    attacked_by_all(model, torch.rand(4, 3, 16, 16, generator=seeded()), torch.arange(4), 0.5)
    assert not probes.changes(before, probes.state(model))


def test_an_image_is_attacked_alone_as_in_company_and_each_within_its_own_budget(model, batch):
    x, labels = batch
    eps = torch.linspace(0, 2, len(x), dtype=torch.float64)
    ball = L2(x, eps)
    start = ball.start(seeded())

    def hunt(ball, labels, start):
        return attacks.hunt(model, labels, attacks.loss_of(labels), ball, attacks.constant(ball, 4), start)

    with models.frozen(model):
        together = hunt(ball, labels, start)
        alone = [hunt(L2(x[i : i + 1], float(eps[i])), labels[i : i + 1], start[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-9, rtol=0)
    assert (lengths(together - x) <= eps + 1e-5).all()
    survived = attacks.withstood(model, together, labels)
    assert survived.any() and not survived.all()


def test_one_step_moves_an_image_alone_as_in_company(model, batch):
    x, labels = batch
    alone = [attacks.fgsm(model, x[i : i + 1], labels[i : i + 1], 0.5, norm=L2) for i in range(len(x))]
    torch.testing.assert_close(attacks.fgsm(model, x, labels, 0.5, norm=L2), torch.cat(alone), atol=1e-9, rtol=0)


def test_of_an_empty_batch_nothing_is_attacked(model, batch):
    assert [len(attacked) for attacked in attacked_by_all(model, batch[0][:0], batch[1][:0], 0.5)] == [0] * 6


@settings(max_examples=10, deadline=None)
@given(eps=st.floats(0.01, 0.3), seed=seeds)
def test_of_a_linear_model_one_step_breaks_all_that_lies_within_reach_and_pgd_nearly(eps, seed):
    """Its boundary is a plane, at a distance of margin / |w|: no attack can do better than this."""
    generator = seeded(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 2)).double()
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    x = 0.3 + 0.4 * torch.rand(60, 3, 3, 3, generator=generator, dtype=torch.float64)  # no border of [0, 1] in reach
    logits, weights = model(x).detach(), model[1].weight.detach()
    labels, distance = logits.argmax(1), (logits[:, 0] - logits[:, 1]).abs() / (weights[0] - weights[1]).norm()
    broken = ~attacks.withstood(model, attacks.fgsm(model, x, labels, eps, norm=L2), labels)
    assert torch.equal(broken, distance < eps)
    found = attacks.pgd_until_broken(model, x, labels, eps, steps=20, generator=generator, norm=L2)
    broken = ~attacks.withstood(model, found, labels)
    assert broken[distance < 0.8 * eps].all() and not broken[distance > eps].any()


@pytest.mark.parametrize("eps", [-0.1, 7.0, float("nan")])
def test_a_budget_that_no_two_images_are_apart_is_refused(model, batch, eps):
    """48 pixels are at most 6.93 apart; in L-infinity the limit stays 1."""
    for attack in (
        lambda: attacks.fgsm(model, *batch, eps, norm=L2),
        lambda: attacks.pgd(model, *batch, eps, steps=1, norm=L2),
    ):
        with pytest.raises(ValueError, match=r"eps must lie in \[0, 6.93\], got"):
            attack()
    with pytest.raises(ValueError, match=r"eps must lie in \[0, 1\], got"):
        attacks.fgsm(model, *batch, eps)


# A whole set


@pytest.fixture(scope="module")
def nearest_mean(digits):
    """The class whose mean is nearest: a linear model of digits."""
    x = images.to_float(digits.images).flatten(1)
    means = torch.stack([x[digits.labels == label].mean(0) for label in range(10)])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[1].weight.data.copy_(means)
    model[1].bias.data.copy_(-means.square().sum(1) / 2)
    return model.eval()


def test_accuracy_under_pgd_in_l2_falls_with_the_budget_and_is_not_that_in_l_infinity(digits, nearest_mean):
    few = digits.take(torch.arange(1600, 1797))
    x = images.to_float(few.images)

    def correct(eps, norm=L2):
        return robustness.pgd_predictions(nearest_mean, few, eps, steps=5, seed=0, norm=norm) == few.labels

    found = attacks.pgd_until_broken(nearest_mean, x, few.labels, 0.5, steps=5, generator=seeded(), norm=L2)
    assert torch.equal(correct(0.5), attacks.withstood(nearest_mean, found, few.labels))
    counts = [int(correct(eps).sum()) for eps in (0.0, 0.25, 0.5, 1.0)]
    assert len(few) > counts[0] > counts[1] > counts[2] > counts[3]
    # the ball of L2 holds that of L-infinity of eps / sqrt(d), and lies in that of eps
    in_linf = [int(correct(eps, attacks.Linf).sum()) for eps in (0.5 / 8, 0.5)]
    assert in_linf[0] > counts[2] > in_linf[1]


@pytest.mark.parametrize("eps", BUDGETS)
@pytest.mark.parametrize("attack", [autoattack.apgd, partial(autoattack.apgd_targeted, classes=4)])
def test_apgd_in_l2_stays_in_its_ball_and_finds_what_pgd_finds(model, batch, attack, eps):
    """By the same steps as in L-infinity: those of the ball that it is handed."""
    x, _ = batch
    y = model(x).argmax(1)
    found = attack(model, x, y, eps, steps=20, generator=seeded(), norm=L2)
    assert found.min() >= 0 and found.max() <= 1 and (lengths(found - x) <= eps * (1 + 1e-5)).all()
    by_pgd = attacks.pgd_until_broken(model, x, y, eps, steps=20, norm=L2, generator=seeded())
    left, left_by_pgd = (int(attacks.withstood(model, each, y).sum()) for each in (found, by_pgd))
    assert left <= left_by_pgd + 1
    assert eps < 2 or left < len(y)
