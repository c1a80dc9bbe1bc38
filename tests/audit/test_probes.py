"""The probes of the loss: what they promise, on models whose answer is known in closed form."""

import pytest
import torch
from torch import nn

from stages.common.audit import probes


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


def test_the_bisection_is_right_to_its_last_halving():
    x = torch.linspace(0.5, 0.9, 41).view(-1, 1, 1, 1).repeat(1, 3, 8, 8)[1:]
    labels, generator = torch.ones(40).long(), torch.Generator().manual_seed(0)
    exact = x.mean((1, 2, 3)) - 0.5
    for found in (
        probes.smallest_fgsm_eps(Linear(), x, labels),
        probes.smallest_pgd_eps(Linear(), x, labels, steps=10, generator=generator),
    ):
        assert ((found - exact).abs() <= probes.LARGEST / 2**probes.HALVINGS + 1e-6).all()


def test_gradients_of_a_linear_model_agree_and_of_a_wavy_one_do_not():
    class Wavy(Linear):
        def forward(self, x):
            return super().forward(x + torch.sin(300 * x))

    x, labels = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(20).long()
    generator = torch.Generator().manual_seed(1)
    assert probes.gradient_alignment(Linear(), x, labels, 0.05, generator=generator).min() > 0.99
    assert probes.gradient_alignment(Wavy(), x, labels, 0.05, generator=generator).mean() < 0.2


def test_the_state_has_every_buffer_also_those_that_no_checkpoint_keeps():
    model = nn.BatchNorm2d(1).eval()
    model.register_buffer("seen", torch.zeros(1), persistent=False)
    before = probes.state(model)
    assert before.keys() >= {"weight", "weight.grad", "weight.requires_grad", "running_mean", "seen", ".training"}
    assert probes.changes(before, probes.state(model)) == []
    model.seen += 1
    model.running_mean += 1
    assert set(probes.changes(before, probes.state(model))) == {"seen", "running_mean"}


def test_the_loss_climbs_along_fgsm_and_not_along_noise():
    x, labels = torch.full((4, 3, 8, 8), 0.6), torch.ones(4).long()
    surface = probes.loss_surface(Linear(), x, labels, [-0.1, 0.0, 0.1], generator=torch.Generator().manual_seed(0))
    assert surface.shape == (3, 3) and (surface[1:] > surface[:-1]).all()
    assert (surface[:, 2] - surface[:, 0]).abs().max() < 0.5 * (surface[2] - surface[0]).min()
