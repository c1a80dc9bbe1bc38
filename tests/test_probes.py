"""Square and the probes of the loss: what they promise, on models whose answer is known in closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.common import blackbox, probes


class Linear(nn.Module):
    """Two classes, told apart by the mean pixel against a threshold: the distance to the boundary is known."""

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        margin = x.mean((1, 2, 3)) - self.threshold
        return torch.stack([-margin, margin], dim=1) * 20


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).repeat(1, 3, 8, 8)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_the_smallest_eps_is_the_distance_to_the_boundary(attack):
    x, labels = flat(0.55, 0.7, 0.2, 0.9, 0.4), torch.tensor([1, 1, 0, 1, 1])
    generator = torch.Generator().manual_seed(0)
    found = (
        probes.smallest_fgsm_eps(Linear(), x, labels)
        if attack == "fgsm"
        else probes.smallest_pgd_eps(Linear(), x, labels, steps=10, generator=generator)
    )
    assert found[:4].tolist() == pytest.approx([0.05, 0.2, 0.3, 0.4], abs=0.003)
    assert found[4] == 0  # wrong without an attack


def test_what_no_budget_changes_is_infinitely_far():
    x, labels = flat(0.9), torch.tensor([1])
    assert probes.smallest_fgsm_eps(Linear(threshold=-1), x, labels).item() == float("inf")


def test_gradients_of_a_linear_model_agree_and_of_a_wavy_one_do_not():
    class Wavy(Linear):
        def forward(self, x):
            return super().forward(x + torch.sin(300 * x))

    x, labels = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(20).long()
    generator = torch.Generator().manual_seed(1)
    assert probes.gradient_alignment(Linear(), x, labels, 0.05, generator=generator).min() > 0.99
    assert probes.gradient_alignment(Wavy(), x, labels, 0.05, generator=generator).mean() < 0.2


def test_the_loss_climbs_along_fgsm_and_not_along_noise():
    x, labels = torch.full((4, 3, 8, 8), 0.6), torch.ones(4).long()
    surface = probes.loss_surface(Linear(), x, labels, [-0.1, 0.0, 0.1], generator=torch.Generator().manual_seed(0))
    assert surface.shape == (3, 3) and (surface[1:] > surface[:-1]).all()
    assert (surface[:, 2] - surface[:, 0]).abs().max() < 0.5 * (surface[2] - surface[0]).min()


@settings(deadline=None, max_examples=25)
@given(st.floats(0.01, 0.5), st.integers(1, 40), st.sampled_from([8, 13, 32]), st.integers(0, 99))
def test_square_keeps_its_budget_and_never_gives_back_what_it_won(eps, queries, size, seed):
    x = torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(seed))
    labels = (x.mean((1, 2, 3)) > 0.5).long()
    attacked = blackbox.square(Linear(), x, labels, eps, queries=queries, generator=torch.Generator().manual_seed(seed))
    assert attacked.shape == x.shape and attacked.min() >= 0 and attacked.max() <= 1
    assert (attacked - x).abs().max() <= eps + 1e-6
    start = blackbox.square(Linear(), x, labels, eps, queries=1, generator=torch.Generator().manual_seed(seed))
    assert (blackbox._margin(Linear(), attacked, labels) <= blackbox._margin(Linear(), start, labels)).all()


def test_square_finds_what_lies_within_reach_and_repeats():
    x, labels = flat(0.55, 0.95), torch.tensor([1, 1])
    found = [
        blackbox.square(Linear(), x, labels, 0.1, queries=300, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(*found)
    assert Linear()(found[0]).argmax(1).tolist() == [0, 1]


def test_square_refuses_no_queries():
    with pytest.raises(ValueError, match="queries"):
        blackbox.square(Linear(), flat(0.5), torch.tensor([1]), 0.1, queries=0, generator=torch.Generator())
