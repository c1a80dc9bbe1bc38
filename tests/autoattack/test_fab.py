"""FAB: its projection is the nearest, its points within the budget, and of a linear model it finds the boundary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchattacks import FAB
from torchattacks.attacks.fab import projection_linf

from stages.common.audit import probes
from stages.common.autoattack import fab
from stages.common.autoattack.fab import to_plane
from tests.small import all_right


@pytest.fixture(scope="module")
def case(digits):
    return all_right(digits)


# The projection


def planes(count, seed):
    """Points, some at 0 and 1, normals, some pixels of which are 0, and gaps: some 0, some out of reach."""
    source = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 2, 3, 3, generator=source, dtype=torch.float64).round(decimals=1)
    normal = torch.randn(points.shape, generator=source, dtype=torch.float64)
    normal *= torch.randint(4, points.shape, generator=source) > 0
    gap = torch.randn(count, generator=source, dtype=torch.float64) * torch.randint(5, (count,), generator=source)
    return points, normal, gap


def gained(step, normal):
    return (step * normal).flatten(1).sum(1)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_the_projection_is_torchattacks_s(count, seed):
    points, normal, gap = planes(count, seed)
    offset = gap + (normal * points).flatten(1).sum(1)
    theirs = projection_linf(points.flatten(1), normal.flatten(1), offset).view(points.shape)
    found = to_plane(points, normal, gap)
    reached = gained(found, normal).sub(gap).abs() < 1e-9
    torch.testing.assert_close(found[reached], theirs[reached], atol=1e-9, rtol=0)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_a_step_reaches_its_plane_or_the_end_of_the_box_and_no_shorter_one_does(count, seed):
    points, normal, gap = planes(count, seed)
    found = to_plane(points, normal, gap)
    assert (points + found).min() >= 0 and (points + found).max() <= 1
    way = normal.sign() * gap.sign().view(-1, 1, 1, 1)
    room = torch.where(way > 0, 1 - points, points)
    most = gained(way * room, normal).abs()
    torch.testing.assert_close(gained(found, normal), gap.sign() * torch.minimum(gap.abs(), most), atol=1e-9, rtol=0)
    length = found.abs().amax((1, 2, 3), keepdim=True)
    shorter = gained(way * torch.minimum(room, 0.99 * length), normal).abs()  # the best that such a step can do
    assert (shorter < gained(found, normal).abs())[length.flatten() > 1e-9].all()


def test_without_a_slope_or_a_gap_there_is_no_step():
    points, normal = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    assert not to_plane(points, normal * 0, torch.tensor([1.0, -1.0, 0.0])).any()
    assert not to_plane(points, normal, torch.zeros(3)).any()


# The attack


def attacked(case, eps, classes=9, steps=5):
    return fab(*case, eps, classes=classes, steps=steps)


@settings(max_examples=10, deadline=None)
@given(eps=st.floats(0, 0.5), classes=st.integers(1, 12), steps=st.integers(1, 6))
def test_budget_and_range_are_kept_and_what_survives_comes_back_clean(case, eps, classes, steps):
    model, x, y = case
    found = attacked(case, eps, classes, steps)
    assert found.shape == x.shape and (found - x).abs().max() <= eps and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1
    left = model(found).argmax(1) == y
    assert torch.equal(found[left], x[left])


def test_its_points_are_those_of_torchattacks():
    """Towards the likeliest wrong class of a much bent model: a budget breaks what theirs breaks nearer than that. One
    or two of the images may round to another side of a bend.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 5))
    model[1].weight.data *= 20
    x = torch.rand(200, 3, 4, 4)
    y = model(x).argmax(1)
    nearest = FAB(model, eps=1.0, steps=8, multi_targeted=True, n_classes=2)(x, y)
    distance = (nearest - x).abs().amax((1, 2, 3))
    for share in (0.3, 0.6, 0.9):
        eps = float(distance.quantile(share))
        broken = model(attacked((model, x, y), eps, classes=1, steps=8)).argmax(1) != y
        clear = (distance - eps).abs() > 1e-5
        assert (broken != (distance < eps))[clear].sum() <= 2 and clear.sum() > 190


def test_it_is_repeatable_leaves_the_model_alone_and_looks_at_each_image_by_itself(case):
    model, x, y = case
    before = probes.state(model.train())
    found = attacked(case, 0.02)
    assert not probes.changes(before, probes.state(model))
    assert torch.equal(found, attacked(case, 0.02))
    model.eval()
    alone = torch.cat([attacked((model, x[i : i + 1], y[i : i + 1]), 0.02) for i in range(8)])
    torch.testing.assert_close(alone, found[:8], atol=1e-5, rtol=0)
    broken = model(found).argmax(1) != y
    assert broken.any() and not broken.all()


def test_what_is_wrong_already_comes_back_clean(case):
    model, x, y = case
    wrong = torch.arange(len(y)) % 2 == 0
    found = attacked((model, x, torch.where(wrong, (y + 1) % 10, y)), 0.05)
    assert torch.equal(found[wrong], x[wrong]) and not torch.equal(found, x)


@settings(max_examples=25, deadline=None)
@given(eps=st.floats(0.001, 0.3), classes=st.integers(2, 6), seed=st.integers(0, 999))
def test_of_a_linear_model_it_breaks_what_can_be_broken(eps, classes, seed):
    """The nearest boundary lies at the smallest margin over the 1-norm of its weights; FAB comes within 2 % of it."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, classes))
    x = 0.35 + 0.3 * torch.rand(40, 3, 3, 3)  # no border of [0, 1] within reach
    logits, weight = model(x).detach(), model[1].weight.detach()
    y = logits.argmax(1)
    margins = logits.amax(1, keepdim=True) - logits
    distance = (margins / (weight[y].unsqueeze(1) - weight).abs().sum(2)).scatter(1, y.unsqueeze(1), torch.inf).amin(1)
    broken = model(fab(model, x, y, eps, classes=9, steps=15)).argmax(1) != y
    assert broken[distance < 0.98 * eps].all() and not broken[distance > eps + 1e-5].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": 0.1, "steps": 0}, "steps must be at least 1"),
        ({"eps": 0.1, "classes": 0}, "classes must be at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(case, arguments, message):
    with pytest.raises(ValueError, match=message):
        attacked(case, **arguments)
