"""Attacks: equal to independent libraries, inside their budget, pointing the right way, leaving the model alone."""

from typing import NamedTuple

import foolbox
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

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


class Watched(nn.Module):
    """A model that notes of each forward pass how many images it saw, whether to climb, and in which precision."""

    def __init__(self, model):
        super().__init__()
        self.model, self.passes = model, []

    def forward(self, x):
        self.passes.append((len(x), x.requires_grad, torch.is_autocast_enabled("cpu")))
        return self.model(x)

    def images(self, *, climbed):
        """How many images were seen in passes of one kind, all in all."""
        return sum(count for count, climbing, _ in self.passes if climbing == climbed)


@pytest.mark.parametrize(("epsilons", "spared"), [(EPSILONS, 1), (EPSILONS[1:], 0), ([0.0], 1), ([0.1, 0.0, 0.0], 2)])
def test_a_sweep_takes_eps_0_from_the_gradient_s_own_pass(model, batch, epsilons, spared):
    watched = Watched(model)
    swept = attacks.fgsm_sweep(watched, *batch, epsilons)
    assert watched.images(climbed=True) == 32
    assert watched.images(climbed=False) == 32 * (len(epsilons) - spared)
    looped = [model(attacks.fgsm(model, *batch, eps)).argmax(1) for eps in epsilons]
    assert torch.equal(swept, torch.stack(looped))


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

    attacked = attacks.ascend(uphill, ball, sizes, start=ball.start(generator))
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
    ours = attacks.ascend(uphill, ball, attacks.constant(ball, 4), start=ball.start(torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(attacks.pgd(model, *batch, 0.05, steps=4, targeted=targeted, generator=generator), ours)


def test_a_budget_for_each_image_is_spent_whole_and_goes_no_further():
    """Straight uphill 2.5 budgets lead to the far side of the ball from anywhere in it."""
    images, eps = torch.full((4, 3, 8, 8), 0.5), torch.tensor([0.0, 0.01, 0.1, 0.7])
    for sign in (1, -1):
        ball = attacks.Linf(images, eps)
        uphill = lambda x, sign=sign: torch.full_like(x, sign * 1e-9)  # noqa: E731
        attacked = attacks.ascend(uphill, ball, attacks.constant(ball, 5), start=ball.start(None))
        expected = (images + sign * eps.view(-1, 1, 1, 1)).clamp(0, 1)
        torch.testing.assert_close(attacked, expected, atol=1e-6, rtol=0)


def test_without_a_slope_an_image_stays_at_its_start():
    images = torch.rand(2, 3, 8, 8)
    ball = attacks.Linf(images, 0.1)
    started = ball.start(torch.Generator().manual_seed(3))
    ended = attacks.ascend(torch.zeros_like, ball, [0.1] * 3, start=started)
    assert torch.equal(ended, started) and not torch.equal(started, images)
    assert (started - images).abs().max() > 0.09  # the start is anywhere in the ball, not near its middle alone


def test_who_withstood_is_who_is_still_classified_as_its_label(model, batch):
    images, labels = batch
    with torch.no_grad():
        expected = model(images).argmax(1) == labels
    assert torch.equal(attacks.withstood(model, images, labels), expected) and expected.any() and not expected.all()


# The hunt: PGD that leaves alone what it has broken


class Hunted(NamedTuple):
    """A small model in float64, in which no sum depends on the batch to speak of, and what is to be attacked."""

    model: nn.Module
    ball: attacks.Linf
    labels: torch.Tensor
    start: torch.Tensor
    sizes: list
    path: list  # all points of `ascend` from the same start, first and last among them

    def hunt(self, model=None, value=None):
        climbed = attacks.loss_of(self.labels) if value is None else value
        return attacks.hunt(model or self.model, self.labels, climbed, self.ball, self.sizes, self.start)

    def right(self, images):
        return self.model(images).argmax(1) == self.labels


def hunted(count, eps, steps, seed=0, sizes=None):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        parameter.requires_grad_(False)
    images = torch.rand(count, 3, 2, 2, generator=generator, dtype=torch.float64).round(decimals=1)
    labels = torch.where(torch.rand(count, generator=generator) < 0.8, model(images).argmax(1), 0)  # most are right
    ball = attacks.Linf(images, eps)
    start = ball.start(generator)
    sizes, path = attacks.constant(ball, steps) if sizes is None else sizes, [start]

    def uphill(attacked):
        return attacks.input_gradient(model, attacked, labels)

    for size in sizes:
        path.append(ball.step(path[-1], uphill(path[-1]), size))
    assert torch.equal(attacks.ascend(uphill, ball, sizes, start=start), path[-1])
    return Hunted(model.eval(), ball, labels, start, sizes, path)


HUNTS = {
    "count": st.integers(1, 8),
    "eps": st.floats(0, 1),
    "steps": st.integers(1, 6),
    "seed": st.integers(0, 2**31),
}


@settings(max_examples=100, deadline=None)
@given(**HUNTS)
def test_a_hunt_is_ascend_that_leaves_each_image_where_it_is_first_broken(count, eps, steps, seed):
    case = hunted(count, eps, steps, seed)
    found, start = case.hunt(), case.start.clone()
    expected = case.path[-1].clone()
    for point in case.path[-2::-1]:
        broken = ~case.right(point)
        expected[broken] = point[broken]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert torch.equal(case.start, start) and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1 and (found - case.ball.images).abs().max() <= eps + 1e-9
    assert not (case.right(found) & ~case.right(case.path[-1])).any()  # what ascend breaks is broken


@settings(max_examples=50, deadline=None)
@given(**HUNTS)
def test_no_pass_is_spent_on_what_is_broken(count, eps, steps, seed):
    """Each image is climbed until it breaks, and looked at once more then to be sure."""
    case = hunted(count, eps, steps, seed)
    watched = Watched(case.model)
    found = case.hunt(watched)
    alive, climbed = torch.ones(count, dtype=torch.bool), 0
    for point in case.path[:-1]:
        climbed += int(alive.sum())
        alive &= case.right(point)
    assert watched.images(climbed=True) == climbed
    assert watched.images(climbed=False) <= int((~alive).sum())
    assert (case.right(found) <= alive).all()


def test_a_hunt_climbs_the_value_it_is_given():
    """The margin to class 2 of each image, by the image's own number, though others are gone from the batch."""
    case = hunted(40, 0.3, 8, seed=3)
    weight = torch.linspace(-1, 1, 40, dtype=torch.float64)  # some are climbed, some descended

    def value(logits, chosen):
        assert len(logits) == len(chosen)
        return logits[:, 2] * weight[chosen]

    found, point = case.hunt(value=value), case.start
    expected, alive = point.clone(), torch.ones(40, dtype=torch.bool)
    for size in case.sizes:
        alive &= case.right(point)
        slope = attacks.gradient(lambda x: case.model(x)[:, 2] * weight, point)
        point = case.ball.step(point, slope, size)
        expected[alive] = point[alive]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert 0 < int(alive.sum()) < 40


def test_of_an_empty_batch_and_of_one_that_is_all_wrong_nothing_is_hunted(model, batch):
    images, labels = batch
    wrong = (model(images).argmax(1) + 1) % 5
    for x, y in ((images[:0], labels[:0]), (images, wrong)):
        watched, ball = Watched(model), attacks.Linf(x, 0.0)
        with models.frozen(model):
            found = attacks.hunt(watched, y, attacks.loss_of(y), ball, attacks.constant(ball, 5), x)
        assert torch.equal(found, x) and watched.images(climbed=True) == len(x)


def test_a_hunt_takes_a_budget_and_steps_for_each_image():
    """One at a time they are hunted as they are together."""
    eps = torch.tensor([0.0, 0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    case = hunted(5, eps, 4, seed=1)
    found = case.hunt()
    assert ((found - case.ball.images).abs().amax((1, 2, 3)) <= eps + 1e-9).all()
    for i in range(5):
        ball, y = attacks.Linf(case.ball.images[i : i + 1], float(eps[i])), case.labels[i : i + 1]
        alone = attacks.hunt(case.model, y, attacks.loss_of(y), ball, attacks.constant(ball, 4), case.start[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-12, rtol=0)


class Viewing(nn.Module):
    """As many models do it: with a view that torch refuses of an empty batch."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.contiguous().view(x.size(0), -1))


def test_a_hunt_shows_a_model_no_empty_batch():
    case = hunted(8, 0.05, 4)
    assert case.right(case.start).any()
    torch.testing.assert_close(case.hunt(Viewing(case.model)), case.hunt())


# The search in bfloat16, the verdict in float32


@pytest.fixture
def right(model, batch):
    """Images, and the classes that the model says."""
    return batch[0], model(batch[0]).argmax(1)


def searches(model, right):
    """Each iterated attack, on a model that is watched: what it found, and its passes."""
    images, labels = right
    for attack in ("pgd", "hunt"):
        watched, ball = Watched(model), attacks.Linf(images, 0.05)
        if attack == "pgd":
            generator = torch.Generator().manual_seed(0)
            found = attacks.pgd(watched, images, labels, 0.05, steps=3, step_size=0.02, generator=generator)
        else:
            start = ball.start(torch.Generator().manual_seed(0))
            with models.frozen(watched):
                found = attacks.hunt(watched, labels, attacks.loss_of(labels), ball, [0.02] * 3, start)
        yield found, watched.passes


def test_a_search_is_in_bfloat16_where_it_is_told_and_the_verdict_never(model, right):
    exact = list(searches(model, right))
    assert all(not autocast for _, passes in exact for _, _, autocast in passes)
    with attacks.searching(bfloat16=True):
        rough = list(searches(model, right))
        with attacks.searching(bfloat16=False):
            inner = list(searches(model, right))
        assert all(autocast for _, climbing, autocast in next(searches(model, right))[1] if climbing)
        assert attacks.withstood(model, *right).all()
    for (one, _), (other, _), (found, passes) in zip(exact, inner, rough, strict=True):
        assert torch.equal(one, other) and not torch.equal(one, found)
        assert {(climbing, autocast) for _, climbing, autocast in passes} <= {(True, True), (False, False)}
        assert found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 1
        assert (found - right[0]).abs().max() <= 0.05 + 1e-6
        broken = [int((~attacks.withstood(model, attacked, right[1])).sum()) for attacked in (one, found)]
        assert abs(broken[0] - broken[1]) <= 2  # as strong
    assert all(torch.equal(one[0], other[0]) for one, other in zip(exact, searches(model, right), strict=True))


def test_an_error_ends_a_search_in_bfloat16(model, right):
    def in_bfloat16():
        return any(autocast for _, passes in searches(model, right) for _, _, autocast in passes)

    with pytest.raises(KeyError), attacks.searching(bfloat16=True):
        assert in_bfloat16()
        raise KeyError
    assert not in_bfloat16()


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_s_one_gradient_is_float32_s_wherever_it_is_taken(model, batch, targeted):
    exact = attacks.fgsm(model, *batch, 0.05, targeted=targeted)
    swept = attacks.fgsm_sweep(model, *batch, EPSILONS, targeted=targeted)
    watched = Watched(model)
    with attacks.searching(bfloat16=True):
        assert torch.equal(attacks.fgsm(watched, *batch, 0.05, targeted=targeted), exact)
        assert torch.equal(attacks.fgsm_sweep(watched, *batch, EPSILONS, targeted=targeted), swept)
        assert torch.equal(attacks.input_gradient(model, *batch), attacks.input_gradient(model, *batch))
    assert len(watched.passes) > 2 and not any(autocast for _, _, autocast in watched.passes)


class Fickle(nn.Module):
    """Says another class in bfloat16 than in float32."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        return logits.roll(1, 1) if torch.is_autocast_enabled("cpu") else logits


def test_what_seems_broken_in_bfloat16_is_hunted_on_until_it_is_broken_in_float32(model, batch):
    """Every image of a budget of next to nothing, which breaks none."""
    images = batch[0]
    labels, ball, sizes = model(images).argmax(1), attacks.Linf(images, 1e-7), [1e-8] * 3
    watched = Watched(Fickle(model))
    with models.frozen(watched), attacks.searching(bfloat16=True):
        attacks.hunt(watched, labels, attacks.loss_of(labels), ball, sizes, images)
    assert watched.images(climbed=True) == 3 * len(images)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 2**16))
def test_the_margin_is_above_0_where_and_only_where_a_wrong_class_wins(classes, count, seed):
    """And of the images that are asked for alone; its gradient pulls two logits with all of its weight."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (2 * count,), generator=generator)
    chosen = torch.randperm(2 * count, generator=generator)[:count]
    logits.requires_grad_(True)
    margins = attacks.margin_of(labels)(logits, chosen)
    right = labels[chosen]
    assert torch.equal(margins > 0, logits.argmax(1) != right)
    for row, margin in enumerate(margins):
        others = [float(z) for k, z in enumerate(logits[row].detach()) if k != right[row]]
        assert float(margin.detach()) == pytest.approx(max(others) - float(logits[row, right[row]].detach()), abs=1e-6)
    slope = torch.autograd.grad(margins.sum(), logits)[0]
    assert torch.equal(slope.gather(1, right.unsqueeze(1)), torch.full((count, 1), -1.0))
    assert torch.equal(slope.abs().sum(1), torch.full((count,), 2.0)) and torch.equal(slope.sum(1), torch.zeros(count))
