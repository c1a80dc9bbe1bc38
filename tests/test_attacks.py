"""Attacks: equal to independent libraries, inside their budget, pointing the right way, leaving the model alone."""

import foolbox
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common import attacks, models

EPSILONS = [0.0, 0.01, 8 / 255, 0.05, 0.1, 0.3]


@pytest.fixture(scope="module")
def model():
    """A small model with trained-looking BatchNorm statistics: what it has learnt does not matter to an attack."""
    torch.manual_seed(0)
    model = models.build("whitened_cnn", channels=3, classes=list("abcde"), widths=[8, 8])
    model.adapt(torch.rand(64, 3, 16, 16))
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(64, 3, 16, 16))
        model.linear.weight.mul_(9)
    return model.eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(32, 3, 16, 16, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(5, (32,), generator=generator)


@pytest.mark.parametrize("eps", EPSILONS[1:])
def test_fgsm_equals_torchattacks_and_foolbox(model, batch, eps):
    ours = attacks.fgsm(model, *batch, eps)
    torch.testing.assert_close(ours, torchattacks.FGSM(model, eps=eps)(*batch), atol=1e-6, rtol=0)
    theirs = foolbox.attacks.LinfFastGradientAttack(random_start=False).run(
        foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), *batch, epsilon=eps
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_targeted_fgsm_equals_torchattacks(model, batch):
    images, labels = batch
    theirs = torchattacks.FGSM(model, eps=0.05)
    theirs.set_mode_targeted_by_label(quiet=True)
    ours = attacks.fgsm(model, images, (labels + 1) % 5, 0.05, targeted=True)
    torch.testing.assert_close(ours, theirs(images, (labels + 1) % 5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("targeted", [False, True])
def test_sweep_equals_a_loop_over_fgsm(model, batch, targeted):
    looped = [model(attacks.fgsm(model, *batch, eps, targeted=targeted)).argmax(1) for eps in EPSILONS]
    swept = attacks.fgsm_sweep(model, *batch, EPSILONS, targeted=targeted)
    assert torch.equal(swept, torch.stack(looped))
    assert len({tuple(row.tolist()) for row in swept}) > 1  # the budgets do make a difference


def test_pgd_is_as_strong_as_torchattacks(model, batch):
    images, labels = batch
    theirs = torchattacks.PGD(model, eps=0.05, alpha=0.0125, steps=10, random_start=True)(images, labels)
    generator = torch.Generator().manual_seed(0)
    ours = attacks.pgd(model, images, labels, 0.05, steps=10, step_size=0.0125, generator=generator)
    with torch.no_grad():
        losses = [float(F.cross_entropy(model(x), labels)) for x in (images, ours, theirs)]
    assert losses[1] > losses[0] and abs(losses[1] - losses[2]) < 0.05 * (losses[2] - losses[0])


@settings(max_examples=25, deadline=None)
@given(eps=st.floats(0, 1), seed=st.integers(0, 2**31), targeted=st.booleans())
def test_attacks_keep_their_budget_and_range(model, eps, seed, targeted):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 16, 16, generator=generator).round(decimals=1)  # 0 and 1, the ends, among them
    labels = torch.randint(5, (4,), generator=generator)
    for attacked in (
        attacks.fgsm(model, images, labels, eps, targeted=targeted),
        attacks.pgd(model, images, labels, eps, steps=2, targeted=targeted, generator=generator),
        attacks.sign_noise(images, eps, generator=generator),
    ):
        assert torch.isfinite(attacked).all()
        assert attacked.min() >= 0 and attacked.max() <= 1
        assert (attacked - images).abs().max() <= eps + 1e-6
        assert attacked.shape == images.shape and not attacked.requires_grad


def test_untargeted_raises_the_loss_and_targeted_lowers_the_targets(model, batch):
    """Fails if a sign is turned round: the reproduced study's targeted attack walked away from its target."""
    images, labels = batch
    goal = (labels + 1) % 5
    away, towards = attacks.fgsm(model, images, labels, 0.002), attacks.fgsm(model, images, goal, 0.002, targeted=True)

    def loss(x, y):
        return F.cross_entropy(model(x).double(), y, reduction="none")

    assert (loss(away, labels) > loss(images, labels)).float().mean() > 0.95
    assert (loss(towards, goal) < loss(images, goal)).float().mean() > 0.95


def test_images_outside_0_1_are_refused(model, batch):
    """The reproduced study attacked images scaled to [-1, 1] and clamped them to [0, 1]."""
    with pytest.raises(ValueError, match="before normalisation"):
        attacks.fgsm(model, batch[0] * 2 - 1, batch[1], 0.1)


@pytest.mark.parametrize("where", [0, 3, -1])  # alone, or among sound images
def test_pixels_that_are_no_numbers_are_refused(model, batch, where):
    """NaN is neither below 0 nor above 1: a check of these two alone lets it through."""
    images = batch[0].clone()
    images[where, 0, 0, 0] = float("nan")
    for attack in (
        lambda: attacks.fgsm(model, images, batch[1], 0.1),
        lambda: attacks.fgsm_sweep(model, images, batch[1], [0.0, 0.1]),
        lambda: attacks.pgd(model, images, batch[1], 0.1, steps=1),
    ):
        with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\]"):
            attack()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}, "float"),
        ({"images": torch.zeros(3, 16, 16)}, "N, C, H, W"),
        ({"labels": torch.zeros(2)}, "int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "int64"),
        ({"eps": -0.1}, "eps"),
        ({"eps": 1.1}, "eps"),
    ],
)
def test_wrong_arguments_are_named(model, change, message):
    arguments = {"images": torch.zeros(2, 3, 16, 16), "labels": torch.zeros(2, dtype=torch.int64), "eps": 0.1}
    with pytest.raises(ValueError, match=message):
        attacks.fgsm(model, **(arguments | change))


@pytest.mark.parametrize("train", [False, True])
def test_the_model_is_given_back_as_it_came(model, batch, train):
    model.train(train)
    model.zero_grad(set_to_none=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    attacks.fgsm(model, *batch, 0.05)
    attacks.fgsm_sweep(model, *batch, EPSILONS)
    attacks.pgd(model, *batch, 0.05, steps=2)
    attacks.withstood(model, *batch)
    assert model.training is train
    model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_image_is_attacked_the_same_in_any_batch(model, batch):
    images, labels = batch
    whole = attacks.fgsm(model, images, labels, 0.05)
    parts = torch.cat([attacks.fgsm(model, images[i : i + 4], labels[i : i + 4], 0.05) for i in range(0, 32, 4)])
    assert (whole != parts).float().mean() < 1e-3  # a gradient of 1e-9 may change its sign with the order of sums


def test_worst_case_never_rises_and_never_exceeds_the_curve():
    correct = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]]).bool()
    worst = attacks.worst_case(correct)
    assert worst.tolist() == [[True, True, False], [False, True, False], [False, False, False]]


def test_same_generator_same_start(model, batch):
    runs = [
        attacks.pgd(model, *batch, 0.05, steps=1, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_sign_noise_spends_its_whole_budget():
    change = (attacks.sign_noise(torch.full((2, 3, 8, 8), 0.5), 0.1) - 0.5).abs()
    torch.testing.assert_close(change, torch.full_like(change, 0.1))


# What every iterated attack is made of


def slopes(images, generator):
    """Any gradient: of any size, 0 in places."""
    return torch.randn(images.shape, generator=generator) * torch.randint(0, 2, images.shape, generator=generator) * 1e3


@settings(max_examples=50, deadline=None)
@given(
    epsilons=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    each=st.booleans(),
    steps=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_whatever_the_gradient_ascend_keeps_each_image_in_its_ball(epsilons, each, steps, seed):
    """One budget for all, or one for each image."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(len(epsilons), 3, 4, 4, generator=generator).round(decimals=1)  # 0 and 1 among them
    before, eps = images.clone(), torch.tensor(epsilons)
    ball = attacks.Linf(images, eps if each else epsilons[0])
    sizes = attacks.constant(ball, steps) if steps else []
    seen = []

    def uphill(attacked):
        seen.append(attacked.clone())
        return slopes(attacked, generator)

    attacked = attacks.ascend(uphill, ball, sizes, generator=generator)
    assert len(seen) == steps and torch.equal(images, before)
    for found in (*seen, attacked):
        assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
        change = (found - images).abs().amax((1, 2, 3))
        assert (change <= (eps if each else epsilons[0]) + 1e-6).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_is_ascend_along_the_models_gradient(model, batch, targeted):
    images, labels = batch

    def uphill(attacked):
        slope = attacks.input_gradient(model, attacked, labels)
        return -slope if targeted else slope

    ball = attacks.Linf(images, 0.05)
    ours = attacks.ascend(uphill, ball, attacks.constant(ball, 4), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(attacks.pgd(model, *batch, 0.05, steps=4, targeted=targeted, generator=generator), ours)


def test_a_budget_for_each_image_is_spent_whole_and_goes_no_further():
    """Straight uphill 2.5 budgets lead to the far side of the ball from anywhere in it."""
    images, eps = torch.full((4, 3, 8, 8), 0.5), torch.tensor([0.0, 0.01, 0.1, 0.7])
    for sign in (1, -1):
        ball = attacks.Linf(images, eps)
        attacked = attacks.ascend(lambda x, sign=sign: torch.full_like(x, sign * 1e-9), ball, attacks.constant(ball, 5))
        expected = (images + sign * eps.view(-1, 1, 1, 1)).clamp(0, 1)
        torch.testing.assert_close(attacked, expected, atol=1e-6, rtol=0)


def test_without_a_slope_an_image_stays_at_its_start():
    images = torch.rand(2, 3, 8, 8)
    ball = attacks.Linf(images, 0.1)
    started = ball.start(torch.Generator().manual_seed(3))
    ended = attacks.ascend(torch.zeros_like, ball, [0.1] * 3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(ended, started) and not torch.equal(started, images)
    assert (started - images).abs().max() > 0.09  # the start is anywhere in the ball, not near its middle alone


def test_who_withstood_is_who_is_still_classified_as_its_label(model, batch):
    images, labels = batch
    with torch.no_grad():
        expected = model(images).argmax(1) == labels
    assert torch.equal(attacks.withstood(model, images, labels), expected) and expected.any() and not expected.all()
