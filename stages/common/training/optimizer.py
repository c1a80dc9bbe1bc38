"""Nesterov SGD with a triangular learning rate, as airbench94 (Jordan 2024)."""

import numpy as np
import torch
from torch import nn

from stages.common.training.recipe import Recipe

BIAS_RATE = 64  # BatchNorm's shifts learn this much faster than the weights (airbench94)


def new_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD on all that is trained; each group keeps its highest rate under `peak`."""
    shifts = [module.bias for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    fast = {id(bias) for bias in shifts}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in fast]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    groups = [{"params": weights, "lr": rate, "peak": rate, "weight_decay": decay}]
    if shifts:
        peak = rate * BIAS_RATE
        groups.append({"params": shifts, "lr": peak, "peak": peak, "weight_decay": decay / BIAS_RATE})
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def set_rate(optimizer: torch.optim.Optimizer, done: float, warmup: float) -> float:
    """Give every group its rate when `done` of the training, 0 to 1, has passed. Returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * triangle(done, warmup)
    return float(optimizer.param_groups[0]["lr"])


def triangle(done: float, warmup: float) -> float:
    """The learning rate's share of its peak when `done` of the training, 0 to 1, has passed: 0.2 up to 1, down to 0."""
    return float(np.interp(done, [0, warmup, 1], [0.2, 1, 0]))
