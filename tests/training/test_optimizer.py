"""The optimizer's groups and the schedule of their rates."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.common import models
from stages.common.training import optimizer
from tests.small import RECIPE, new_model


def test_the_triangle_s_corners():
    assert [optimizer.triangle(done, 0.25) for done in (0, 0.25, 0.625, 1)] == pytest.approx([0.2, 1, 0.5, 0])


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.99))
def test_rates_rise_up_to_the_peak_and_fall_after_it(one, other, warmup):
    one, other = sorted((one, other))
    early, late = optimizer.triangle(one, warmup), optimizer.triangle(other, warmup)
    assert 0 <= early <= 1 and 0 <= late <= 1
    if other <= warmup:
        assert early <= late
    if one >= warmup:
        assert early >= late


def test_every_weight_that_is_trained_is_in_one_group_and_shifts_learn_faster(digits):
    model = new_model(digits)
    weights, shifts = optimizer.new_optimizer(model, RECIPE).param_groups
    assert shifts["lr"] / weights["lr"] == optimizer.BIAS_RATE == weights["weight_decay"] / shifts["weight_decay"]
    assert {id(bias) for bias in shifts["params"]} == {
        id(module.bias) for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)
    }
    optimized = [id(parameter) for group in (weights, shifts) for parameter in group["params"]]
    assert sorted(optimized) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert weights["momentum"] == RECIPE.momentum and weights["nesterov"]


def test_every_group_follows_the_schedule_from_its_own_peak(digits):
    found = optimizer.new_optimizer(new_model(digits), RECIPE)
    for done in (0.0, 0.1, 0.6, 1.0):
        share = optimizer.triangle(done, RECIPE.warmup)
        assert optimizer.set_rate(found, done, RECIPE.warmup) == pytest.approx(share * RECIPE.learning_rate)
        rates = [group["lr"] for group in found.param_groups]
        assert rates == pytest.approx(
            [share * RECIPE.learning_rate, share * RECIPE.learning_rate * optimizer.BIAS_RATE]
        )


def test_no_batchnorm_and_no_momentum_is_plain_sgd():
    model = models.build("simple_cnn", channels=1, classes=["a", "b"])
    (group,) = optimizer.new_optimizer(model, replace(RECIPE, momentum=0.0)).param_groups
    assert len(group["params"]) == len(list(model.parameters())) and not group["nesterov"]
