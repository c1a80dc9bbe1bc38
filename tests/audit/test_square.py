"""Square: inside its budget, never worse than its start, and blind: it asks for no gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.common.audit.square import square_attack


class Linear(nn.Module):
    """Two classes, told apart by the mean pixel against 0.5: the distance to the boundary is known."""

    def __init__(self):
        super().__init__()
        self.asked = 0  # images, in all queries

    def forward(self, x):
        self.asked += len(x)
        margin = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-margin, margin], dim=1) * 20


def margin(x, labels):
    """By how much the true class leads."""
    logits = Linear()(x)
    return logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, 1 - labels.unsqueeze(1))


def attacked(x, labels, eps, *, queries, seed=0, model=None):
    generator = torch.Generator().manual_seed(seed)
    return square_attack(model or Linear(), x, labels, eps, queries=queries, generator=generator)


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).repeat(1, 3, 8, 8)


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 0.5), st.integers(1, 40), st.sampled_from([(8, 8), (13, 13), (9, 16)]), st.integers(0, 99))
def test_budget_and_range_are_kept_and_nothing_won_is_given_back(eps, queries, size, seed):
    x = torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(seed))
    labels = (x.mean((1, 2, 3)) > 0.5).long()
    found = attacked(x, labels, eps, queries=queries, seed=seed)
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
    assert (found - x).abs().max() <= eps + 1e-6
    start = attacked(x, labels, eps, queries=1, seed=seed)
    assert (margin(found, labels) <= margin(start, labels) + 1e-6).all()  # sums round otherwise in another batch


def test_what_lies_within_reach_is_found_and_found_again():
    x, labels = flat(0.55, 0.95), torch.tensor([1, 1])
    found = [attacked(x, labels, 0.1, queries=300, seed=3) for _ in range(2)]
    assert torch.equal(*found)
    assert Linear()(found[0]).argmax(1).tolist() == [0, 1]


def test_queries_are_spent_on_what_stands_and_no_more_than_allowed():
    model = Linear()
    attacked(flat(0.95), torch.tensor([1]), 0.1, queries=25, model=model)  # out of reach: every query is spent
    assert model.asked == 25
    model = Linear()
    attacked(flat(0.35, 0.35), torch.tensor([1, 1]), 0.1, queries=25, model=model)  # wrong already: the start alone
    assert model.asked == 2


def test_a_model_without_a_gradient_is_no_obstacle():
    class Steps(Linear):
        def forward(self, x):
            return (super().forward(x) * 8).round().detach() / 8

    x, labels = flat(0.55), torch.tensor([1])
    assert Steps()(attacked(x, labels, 0.2, queries=300, model=Steps())).argmax(1).item() == 0


@pytest.mark.parametrize(("queries", "eps", "message"), [(0, 0.1, "queries"), (1, -0.1, "eps"), (1, 1.1, "eps")])
def test_arguments_that_make_no_sense_are_refused(queries, eps, message):
    with pytest.raises(ValueError, match=message):
        attacked(flat(0.5), torch.tensor([1]), eps, queries=queries)
