"""APGD: the authors' climb step by step, within its budget, its steps halved when they should be."""

import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.common import attacks, models
from stages.common.audit import probes
from stages.common.autoattack import apgd, apgd_targeted
from stages.common.autoattack.apgd import checks, climb, ratio_of
from tests.small import all_right


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


ATTACKS = {
    "untargeted": lambda model, x, y, eps, steps, seed, **norm: apgd(
        model, x, y, eps, steps=steps, generator=generator(seed), **norm
    ),
    "targeted": lambda model, x, y, eps, steps, seed, **norm: apgd_targeted(
        model, x, y, eps, classes=3, steps=steps, generator=generator(seed), **norm
    ),
}
both = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


@pytest.fixture(scope="module")
def case(digits):
    return all_right(digits)


class Net(nn.Module):
    """A small model in float64, in which no sum depends on the batch to speak of. It keeps where it was climbed."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 5)).double()
        self.seen = []

    def forward(self, x):
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        return self.layers(x.contiguous() * 8)


def small(count, eps, seed=0, norm=attacks.Linf):
    """A net, what it says of some images, the ball round these, and a start in it."""
    model, source = Net(seed), generator(seed)
    x = torch.rand(count, 3, 4, 4, generator=source, dtype=torch.float64)
    ball = norm(x, eps)
    return model, model(x).argmax(1).detach(), ball, ball.start(source)


# As the authors do it


def test_sizes_are_checked_when_the_paper_says():
    assert checks(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}


@settings(max_examples=50)
@given(st.integers(1, 300))
def test_checks_come_ever_sooner_and_none_after_the_last_step(steps):
    found = checks(steps)
    lengths, times = list(found.values()), list(found)
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] >= 1 and times[-1] <= steps
    assert [after - before for before, after in zip([0, *times], times, strict=False)] == lengths
    assert times[-1] + lengths[-1] > steps


@pytest.fixture
def in_float64():
    """torchattacks keeps losses in torch's default type: in float32 it takes the last small rises for none."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.03), ("L2", 0.2)])
def test_points_are_those_of_torchattacks(in_float64, norm, eps):
    """From the same start: who is broken, and where the value was highest of who is not.

    torchattacks, as the authors' code, counts the first step as a rise because its loss is above 0, not above the
    start's: images whose first step leads down are left out. One by one: its L2 steps are all of the first one's size.
    """
    steps = 40
    model, y, ball, _ = small(60, eps, norm=getattr(attacks, norm))
    theirs = torchattacks.APGD(model, norm=norm, eps=eps, steps=steps, loss="ce")
    left, same = torch.zeros(2, 60).bool()
    for i in range(60):
        one = torch.tensor([i])
        image, label, around = ball.images[one], y[one], ball.take(one)
        loss = attacks.loss_of(label)
        torch.manual_seed(i)
        highest, correct, _, _ = theirs.attack_single_run(image, label)
        torch.manual_seed(i)
        noise = 2 * torch.rand(image.shape) - 1 if norm == "Linf" else torch.randn(image.shape)
        start = (image + eps * noise / torch.linalg.vector_norm(noise, float(norm[1:]))).clamp(0, 1)
        climbed = lambda x, loss=loss: loss(model(x), torch.tensor([0]))  # noqa: E731
        first = around.step(start, attacks.gradient(climbed, start), 2 * eps)
        same[i] = climbed(first) > climbed(start)
        with models.frozen(model):
            found = climb(model, label, loss, around, steps, start)
        left[i] = model(found).argmax(1) == label
        if same[i]:
            assert left[i] == correct
        if same[i] and left[i]:
            torch.testing.assert_close(found, highest, atol=1e-7, rtol=0)
    assert same.sum() > 50 and 12 < left.sum() < 48


def test_the_ratio_is_torchattacks_s_and_as_blind_to_scale_and_shift():
    logits = torch.randn(50, 7, generator=generator(), dtype=torch.float64)
    labels, goals = torch.randint(7, (2, 50), generator=generator(1))
    chosen = torch.arange(50).flip(0)  # an image is known by its number, wherever it stands in the batch
    found = ratio_of(labels, goals)(logits, chosen)
    theirs = torchattacks.APGDT(Net(), n_classes=7).dlr_loss_targeted(logits, labels[chosen], goals[chosen])
    torch.testing.assert_close(found, theirs)
    torch.testing.assert_close(ratio_of(labels, goals)(300 * logits - 5, chosen), theirs)


def test_each_image_climbs_by_itself_until_it_is_broken_or_to_its_highest_point():
    steps = 12
    model, y, ball, start = small(30, 0.03, seed=1)
    with models.frozen(model):
        together = climb(model, y, attacks.loss_of(y), ball, steps, start)
        broken = model(together).argmax(1) != y
        for i in range(30):
            one = torch.tensor([i])
            model.seen.clear()
            alone = climb(model, y[one], attacks.loss_of(y[one]), ball.take(one), steps, start[one])
            torch.testing.assert_close(alone[0], together[i], atol=1e-12, rtol=0)
            path = torch.cat(model.seen)
            logits = model(path)
            wrong = logits.argmax(1) != y[i]
            assert wrong.nonzero().flatten().tolist() == ([len(path) - 1] if broken[i] else [])
            assert broken[i] or len(path) == steps + 1
            highest = nn.functional.cross_entropy(logits, y[i].expand(len(path)), reduction="none").argmax()
            assert torch.equal(alone[0], path[-1] if broken[i] else path[highest])
    assert 5 < broken.sum() < 25


# Step sizes


class Spied(attacks.Linf):
    """A ball that keeps the sizes of the steps."""

    def __init__(self, *args):
        super().__init__(*args)
        self.sizes = []

    def step(self, attacked, gradient, size):
        self.sizes.append(float(size))
        return super().step(attacked, gradient, size)


def rising(step):
    return float(step)


def level(step):
    return 0.0


def rising_below_the_start(step):
    return float(step) if step else 1e3


def rises(count):
    """So many of the steps up to the first check lead up, though to ever new heights; later ones all do."""
    return lambda step: float(step if step <= count else count - step if step <= 22 else step)


@pytest.mark.parametrize(
    ("script", "halved"),
    [
        (rising, []),
        (level, [22, 41, 57, 70, 80, 87, 93, 99]),
        (
            rising_below_the_start,
            [41, 70, 87, 99],
        ),  # of two checks in a row the second says nothing of the smaller size
        (rises(16), [22]),  # of 22 steps, less than 75 %
        (rises(17), []),
    ],
    ids=["rising", "level", "rising below the start", "too few rises", "enough rises"],
)
def test_steps_are_halved_by_the_two_conditions(script, halved):
    ball, steps = Spied(torch.full((1, 1, 1, 1), 0.5), 0.25), iter(range(101))

    def value(logits, chosen):
        return logits[:, 0] * 0 + script(next(steps))

    climb(nn.Flatten(), torch.zeros(1, dtype=torch.int64), value, ball, 100, ball.images)  # one class: never broken
    assert ball.sizes == [0.5 / 2 ** sum(step > check for check in halved) for step in range(1, 101)]


def test_each_image_comes_near_its_own_peak_where_steps_of_one_size_jump_over_it():
    goals = torch.linspace(0.3, 0.7, 9)
    ball = attacks.Linf(torch.full((9, 1, 1, 1), 0.5), 0.25)

    def value(logits, chosen):
        return -((logits[:, 0] - goals[chosen]) ** 2)

    found = climb(nn.Flatten(), torch.zeros(9, dtype=torch.int64), value, ball, 100, ball.images)
    assert ((found.flatten() - goals).abs() < 0.25 / 2**6).all()


# What every attack keeps


@both
@pytest.mark.parametrize(("norm", "order"), [(attacks.Linf, torch.inf), (attacks.L2, 2)])
@settings(max_examples=10, deadline=None)
@given(eps=st.floats(0, 0.5), steps=st.integers(1, 6), seed=st.integers(0, 99))
def test_budget_and_range_are_kept(case, attack, norm, order, eps, steps, seed):
    found = attack(*case, eps, steps, seed, norm=norm)
    assert found.shape == case[1].shape and not found.requires_grad
    assert torch.linalg.vector_norm(found - case[1], order, dim=(1, 2, 3)).max() <= eps + 1e-6
    assert found.min() >= 0 and found.max() <= 1


@both
def test_equal_seeds_give_equal_bytes_and_the_model_is_left_alone(case, attack):
    model, x, y = case
    before, given = probes.state(model.train()), x.clone()
    runs = [attack(model, x, y, 0.03, 5, seed) for seed in (0, 0, 1)]
    assert not probes.changes(before, probes.state(model)) and torch.equal(x, given)
    model.eval()
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    left = model(runs[0]).argmax(1) == y
    assert left.any() and not left.all()


@both
def test_what_is_wrong_already_comes_back_clean(case, attack):
    model, x, y = case
    wrong = torch.arange(len(y)) % 2 == 0
    found = attack(model, x, torch.where(wrong, (y + 1) % 10, y), 0.05, 5, 0)
    assert torch.equal(found[wrong], x[wrong])
    assert not (found[~wrong] == x[~wrong]).flatten(1).all(1).all()
    assert torch.equal(attack(model, x, (y + 1) % 10, 0.05, 5, 0), x)


def test_targeted_what_survives_comes_back_clean(case):
    model, x, y = case
    found = ATTACKS["targeted"](model, x, y, 0.02, 5, 0)
    left = model(found).argmax(1) == y
    assert left.any() and not left.all() and torch.equal(found[left], x[left])


@both
def test_it_computes_in_float32_where_a_search_may_be_in_bfloat16(case, attack):
    model, x, y = case
    exact = attack(model, x, y, 0.03, 10, 0)
    with attacks.searching(bfloat16=True):
        assert torch.equal(attack(model, x, y, 0.03, 10, 0), exact)


@settings(max_examples=25, deadline=None)
@given(eps=st.floats(0.001, 0.2), seed=st.integers(0, 999))
def test_of_a_linear_model_of_two_classes_it_breaks_all_that_can_be_broken(eps, seed):
    """There eps shifts the margin by eps times the 1-norm of its weights: no attack can do better."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 2))
    x = 0.2 + 0.6 * torch.rand(60, 3, 3, 3)  # no border of [0, 1] within reach
    logits, weight = model(x).detach(), model[1].weight.detach()
    slack = eps * (weight[0] - weight[1]).abs().sum() - (logits[:, 0] - logits[:, 1]).abs()
    y = logits.argmax(1)
    broken = model(apgd(model, x, y, eps, steps=2, generator=generator(seed))).argmax(1) != y
    clear = slack.abs() > 1e-5
    assert torch.equal(broken[clear], slack[clear] > 0)


@both
@pytest.mark.parametrize(("eps", "steps", "message"), [(-0.1, 5, "eps"), (0.1, 0, "steps must be at least 1, got 0")])
def test_arguments_that_make_no_sense_are_refused(case, attack, eps, steps, message):
    with pytest.raises(ValueError, match=message):
        attack(*case, eps, steps, 0)


def test_targeted_it_asks_for_a_class_to_go_to_and_for_four_to_compare():
    x, three = torch.rand(2, 3, 3, 3), nn.Sequential(nn.Flatten(), nn.Linear(27, 3))
    y = three(x).argmax(1)
    with pytest.raises(ValueError, match="classes must be at least 1"):
        apgd_targeted(three, x, y, 0.1, classes=0, steps=1, generator=generator())
    with pytest.raises(ValueError, match=r"needs 4 classes, the model has 3.*multi_targeted"):
        apgd_targeted(three, x, y, 0.1, classes=2, steps=1, generator=generator())
