"""The optimizers: Muon on the filters, Nesterov SGD on the rest, one schedule for the rates of both."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stages.common.training.recipe import Recipe

BIAS_RATE = 64  # BatchNorm's shifts learn this much faster than the weights (airbench94)
FILTER_MOMENTUM = 0.6  # Muon's, as airbench94_muon has it: steps of equal length need less smoothing
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at 0, so that few steps lift small singular values
NEWTON_SCHULZ_STEPS = 3


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for filters (outputs, ...) of any shape: a step goes along the orthogonalised momentum.

    Every direction in which a filter bank can change is moved alike, however small its gradient. A filter bank is set
    to length sqrt(outputs) before each step, which BatchNorm after it undoes, and which makes `lr` the step's length
    beside it (airbench94_muon). torch.optim.Muon takes matrices alone, scales nothing, and multiplies in bfloat16
    wherever it is, which takes a processor without instructions for it forty times as long as float32.
    """

    def __init__(self, filters: Iterable[Tensor], lr: float, dtype: torch.dtype = torch.float32):
        super().__init__(filters, {"lr": lr, "peak": lr})
        self.dtype = dtype  # of the products that orthogonalise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; gradients that are None are passed over."""
        assert closure is None
        for group in self.param_groups:
            for filters in group["params"]:
                if (gradient := filters.grad) is None:
                    continue
                state = self.state[filters]
                momentum = state["momentum"] if state else state.setdefault("momentum", torch.zeros_like(gradient))
                momentum.mul_(FILTER_MOMENTUM).add_(gradient)
                ahead = gradient.add(momentum, alpha=FILTER_MOMENTUM)  # Nesterov
                filters.mul_(len(filters) ** 0.5 / filters.norm().clamp_min(1e-12))
                filters.sub_(orthogonalized(ahead.flatten(1), self.dtype).view_as(filters), alpha=group["lr"])


def orthogonalized(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of a matrix (m, n) = U S V^T, by Newton-Schulz steps in `dtype`: (m, n), of the matrix's own type.

    Singular values come out between 0.4 and 1.21 where they were at least a hundredth of the matrix's norm; smaller
    ones are lifted towards that (Jordan 2024).
    """
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp_min(1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def new_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """SGD on all that is trained, but for the filters of convolutions where the recipe has a `filter_rate`: those are
    Muon's, in the precision of the recipe's steps. Each group keeps its highest rate under `peak`.
    """
    shifts = [module.bias for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    banks = {id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d)}
    filters = [parameter for parameter in trained if id(parameter) in banks] if recipe.filter_rate else []
    elsewhere = {id(parameter) for parameter in (*shifts, *filters)}
    weights = [parameter for parameter in trained if id(parameter) not in elsewhere]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    groups = [{"params": weights, "lr": rate, "peak": rate, "weight_decay": decay}]
    if shifts:
        peak = rate * BIAS_RATE
        groups.append({"params": shifts, "lr": peak, "peak": peak, "weight_decay": decay / BIAS_RATE})
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    ]
    if filters and recipe.filter_rate:
        dtype = torch.bfloat16 if recipe.bfloat16 else torch.float32
        optimizers.append(Muon(filters, recipe.filter_rate, dtype))
    return optimizers


def set_rate(optimizers: Sequence[torch.optim.Optimizer], done: float, warmup: float) -> float:
    """Give every group its rate when `done` of the training, 0 to 1, has passed. Returns the first group's."""
    share = triangle(done, warmup)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
    return float(optimizers[0].param_groups[0]["lr"])


def triangle(done: float, warmup: float) -> float:
    """The learning rate's share of its peak when `done` of the training, 0 to 1, has passed: 0.2 up to 1, down to 0."""
    return float(np.interp(done, [0, warmup, 1], [0.2, 1, 0]))
