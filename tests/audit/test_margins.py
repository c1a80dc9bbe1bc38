"""Attacks on margins keep their budget, are repeatable, and find what the cross-entropy hides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.common import attacks
from stages.common.audit import margins
from tests.small import all_right


@pytest.fixture(scope="module")
def case(digits):
    return all_right(digits)


def attacked(case, eps, classes=9, steps=5, seed=0):
    model, x, y = case
    generator = torch.Generator().manual_seed(seed)
    return margins.multi_targeted(model, x, y, eps, classes=classes, steps=steps, generator=generator)


@settings(max_examples=15, deadline=None)
@given(eps=st.floats(0, 0.5), classes=st.integers(1, 12), steps=st.integers(1, 6))
def test_budget_and_range_are_kept(case, eps, classes, steps):
    found = attacked(case, eps, classes, steps)
    assert (found - case[1]).abs().max() <= eps + 1e-6 and found.min() >= 0 and found.max() <= 1


def test_equal_seeds_give_equal_examples_and_what_survives_comes_back_clean(case):
    model, x, y = case
    found = attacked(case, 0.02)
    assert torch.equal(found, attacked(case, 0.02))
    survivors = model(found).argmax(1) == y
    assert survivors.any() and torch.equal(found[survivors], x[survivors])


def test_a_search_in_bfloat16_keeps_its_budget_and_finds_as_much(case):
    """What it calls broken is broken in float32, and what it does not is given back clean."""
    model, x, y = case
    exact = attacked(case, 0.03, steps=10)
    with attacks.searching(bfloat16=True):
        found = attacked(case, 0.03, steps=10)
    assert not torch.equal(found, exact) and found.dtype == torch.float32
    assert (found - x).abs().max() <= 0.03 + 1e-6 and found.min() >= 0 and found.max() <= 1
    survivors = model(found).argmax(1) == y
    assert torch.equal(found[survivors], x[survivors]) and survivors.any() and not survivors.all()
    assert abs(int(survivors.sum()) - int((model(exact).argmax(1) == y).sum())) <= 2


def test_more_classes_break_no_less(case):
    model, _, y = case
    left = [int((model(attacked(case, 0.05, classes)).argmax(1) == y).sum()) for classes in (1, 3, 9)]
    assert left == sorted(left, reverse=True)


def test_a_saturated_softmax_does_not_stop_it(case):
    """Logits times 1e6: the cross-entropy's gradient is 0, the margin's sign is what it was."""
    model, x, y = case
    saturated = nn.Sequential(model, Scale(1e6))
    assert int((attacks.input_gradient(saturated, x, y) == 0).all((1, 2, 3)).sum()) > len(x) / 2
    assert torch.equal(attacked((saturated, x, y), 0.05), attacked(case, 0.05))


@settings(max_examples=25, deadline=None)
@given(eps=st.floats(0.001, 0.2), steps=st.integers(1, 5), seed=st.integers(0, 999))
def test_of_a_linear_model_it_breaks_all_that_can_be_broken(eps, steps, seed):
    """There eps shifts a margin by eps times the 1-norm of its weights: no attack can do better."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    x = 0.2 + 0.6 * torch.rand(60, 3, 3, 3, generator=generator)  # no border of [0, 1] within reach
    logits, weights = model(x).detach(), model[1].weight.detach()
    y = logits.argmax(1)
    reach = eps * (weights[y].unsqueeze(1) - weights).abs().sum(2)  # of the margin to each class
    slack = (reach - (logits.amax(1, keepdim=True) - logits)).scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
    found = margins.multi_targeted(model, x, y, eps, classes=5, steps=steps, generator=generator)
    broken, clear = model(found).argmax(1) != y, slack.abs() > 1e-4
    assert torch.equal(broken[clear], slack[clear] > 0)


class Scale(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, z):
        return z * self.by


def test_arguments_that_make_no_sense_are_refused(case):
    with pytest.raises(ValueError, match="at least 1"):
        attacked(case, 0.1, classes=0)
    with pytest.raises(ValueError, match="at least 1"):
        attacked(case, 0.1, steps=0)
    with pytest.raises(ValueError, match="eps"):
        attacked(case, -0.1)
