"""The optimizers' groups, the schedule of their rates, and Muon's step."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from stages.common import models
from stages.common.training import optimizer
from tests.small import RECIPE, new_model

OPTIONS = {"whitened_cnn": {"widths": [4]}, "simple_cnn": {}, "resnet18": {"width": 8}}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


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


def batchnorms(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("filter_rate", [None, 0.1])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_every_weight_that_is_trained_is_in_one_group(name, filter_rate):
    """The whitening, which is not trained, in none."""
    model = models.build(name, channels=1, classes=["a", "b"], **OPTIONS[name])
    found = optimizer.new_optimizers(model, replace(RECIPE, filter_rate=filter_rate))
    optimized = [id(parameter) for each in found for group in each.param_groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    muons = [each for each in found if isinstance(each, optimizer.Muon)]
    by_muon = {id(parameter) for muon in muons for group in muon.param_groups for parameter in group["params"]}
    filters = {id(parameter) for parameter in model.parameters() if parameter.requires_grad and parameter.ndim == 4}
    assert filters and by_muon == (filters if filter_rate else set())
    assert len(found) == (2 if filter_rate else 1) and isinstance(found[0], torch.optim.SGD)


@pytest.mark.parametrize("filter_rate", [None, 0.1])
def test_shifts_learn_faster_and_decay_as_much(digits, filter_rate):
    model = new_model(digits)
    weights, shifts = optimizer.new_optimizers(model, replace(RECIPE, filter_rate=filter_rate))[0].param_groups
    assert shifts["lr"] / weights["lr"] == optimizer.BIAS_RATE == weights["weight_decay"] / shifts["weight_decay"]
    assert {id(bias) for bias in shifts["params"]} == {id(module.bias) for module in batchnorms(model)}
    assert weights["momentum"] == RECIPE.momentum and weights["nesterov"]


def test_every_group_follows_the_schedule_from_its_own_peak(digits):
    found = optimizer.new_optimizers(new_model(digits), RECIPE)
    peaks = [RECIPE.learning_rate, RECIPE.learning_rate * optimizer.BIAS_RATE, RECIPE.filter_rate]
    for done in (0.0, 0.1, 0.6, 1.0):
        share = optimizer.triangle(done, RECIPE.warmup)
        assert optimizer.set_rate(found, done, RECIPE.warmup) == pytest.approx(share * RECIPE.learning_rate)
        rates = [group["lr"] for each in found for group in each.param_groups]
        assert rates == pytest.approx([share * peak for peak in peaks])


def test_no_batchnorm_no_momentum_and_no_filter_rate_is_plain_sgd():
    model = models.build("simple_cnn", channels=1, classes=["a", "b"])
    (sgd,) = optimizer.new_optimizers(model, replace(RECIPE, momentum=0.0, filter_rate=None))
    (group,) = sgd.param_groups
    assert len(group["params"]) == len(list(model.parameters())) and not group["nesterov"]


# Muon


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(matrix):
    """U, S and V of a matrix U S V^T, in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left, values, right.T


@DTYPES
@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, smallest=st.floats(0.1, 1), size=st.floats(-6, 6), seed=st.integers(0, 2**31))
def test_orthogonalized_keeps_the_directions_and_levels_their_lengths(dtype, shape, smallest, size, seed):
    """Of singular values from 1 down to `smallest`, of a matrix of any size, wide or tall: all of them about 1."""
    left, values, right = factors(normal(*shape, seed=seed))
    values = torch.linspace(1, smallest, len(values), dtype=torch.float64)
    found = optimizer.orthogonalized((10**size * left * values @ right.T).float(), dtype)
    assert found.shape == shape and found.dtype == torch.float32
    inner = left.T @ found.double() @ right
    along = inner.diagonal()
    assert along.min() > 0.39 and along.max() < 1.22  # 0.4 and 1.2, as far as bfloat16 goes
    assert (inner - along.diag()).abs().max() < 0.06  # nothing of one direction in another...
    assert (found.double() - left @ inner @ right.T).abs().max() < 0.06  # ...nor of any that was not there


@DTYPES
def test_a_direction_with_little_in_it_is_lifted_and_never_turned(dtype):
    left, _, right = factors(normal(12, 40))
    values = torch.logspace(0, -4, 12, dtype=torch.float64)
    along = (left.T @ optimizer.orthogonalized((left * values @ right.T).float(), dtype).double() @ right).diagonal()
    share = values / values.norm()
    small = (share < 0.01) & (share > 1e-3)  # below that, what is left of it is bfloat16's rounding
    assert small.sum() >= 2 and (along[small] > 10 * share[small]).all()
    assert (along[share >= 0.01] > 0.39).all() and along.max() < 1.22


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_orthogonalized_is_torch_s_own(shape, seed):
    """That of torch.optim.Muon, which is for matrices alone, with as few steps."""
    muon = pytest.importorskip("torch.optim._muon")
    matrix = normal(*shape, seed=seed)
    theirs = muon._zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 3, 1e-7).float()
    torch.testing.assert_close(optimizer.orthogonalized(matrix, torch.bfloat16), theirs, atol=2**-7, rtol=2**-7)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_float32_s_steps_are_a_polynomial_of_the_singular_values(shape, seed):
    """So they are in exact arithmetic, from a matrix of norm 1: nothing else of it changes."""
    left, values, right = factors(normal(*shape, seed=seed))
    values = values / values.norm()
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found = optimizer.orthogonalized(normal(*shape, seed=seed))
    torch.testing.assert_close(found.double(), left * values @ right.T, atol=1e-4, rtol=0)


@DTYPES
def test_no_gradient_at_all_is_orthogonalized_to_none(dtype):
    assert torch.equal(optimizer.orthogonalized(torch.zeros(3, 8), dtype), torch.zeros(3, 8))


class Products(TorchDispatchMode):
    """Notes what matrices are multiplied in."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.dtypes.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_muon_multiplies_in_the_precision_of_the_steps(digits, bfloat16):
    """A processor without instructions for bfloat16 would emulate it, forty times as slow."""
    model = new_model(digits)
    for filters in model.parameters():
        filters.grad = torch.ones_like(filters)
    _, muon = optimizer.new_optimizers(model, replace(RECIPE, bfloat16=bfloat16))
    with Products() as products:
        muon.step()
    assert products.dtypes == {torch.bfloat16 if bfloat16 else torch.float32}


def by_definition(filters, gradients, rates):
    """Muon written out: each step from a length of sqrt(outputs), along the Nesterov momentum, orthogonalised."""
    momentum = torch.zeros_like(filters)
    for gradient, rate in zip(gradients, rates, strict=True):
        momentum = 0.6 * momentum + gradient
        ahead = (gradient + 0.6 * momentum).flatten(1)
        filters = filters / filters.norm() * len(filters) ** 0.5
        filters = filters - rate * optimizer.orthogonalized(ahead).view(filters.shape)
    return filters


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (16, 1, 2, 2), (5, 6, 3)])  # wide, tall, of a 1-d convolution
def test_steps_are_those_of_the_definition(shape):
    started, gradients, rates = normal(*shape, seed=1), [normal(*shape, seed=i) for i in (2, 3, 4)], [0.1, 0.3, 0.2]
    given = started.clone()
    given = given.contiguous(memory_format=torch.channels_last) if given.ndim == 4 else given
    filters = torch.nn.Parameter(given)
    muon = optimizer.Muon([filters], lr=0.0)
    for gradient, rate in zip(gradients, rates, strict=True):
        muon.param_groups[0]["lr"] = rate
        filters.grad = gradient.clone()
        muon.step()
        assert torch.equal(filters.grad, gradient)
    torch.testing.assert_close(filters.detach(), by_definition(started, gradients, rates), atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 16), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
    scale=st.floats(-4, 4),
    loudness=st.floats(-4, 4),
    seed=st.integers(0, 2**31),
)
def test_a_step_is_as_long_whatever_the_length_of_filters_and_gradient(shape, scale, loudness, seed):
    filters = torch.nn.Parameter(10**scale * normal(*shape, seed=seed))
    gradient = normal(*shape, seed=seed + 1)
    unit = filters.detach() / filters.detach().norm() * shape[0] ** 0.5
    muon = optimizer.Muon([filters], lr=0.1)
    filters.grad = 10**loudness * gradient
    muon.step()
    moved = unit - filters.detach()
    expected = 0.1 * optimizer.orthogonalized(gradient.flatten(1)).view(shape)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
    muon.param_groups[0]["lr"] = 0.0
    muon.step()
    assert float(filters.detach().norm()) == pytest.approx(shape[0] ** 0.5, rel=1e-4)  # a rate of 0 sets the length


def test_filters_without_a_gradient_stay_as_they_are():
    still, moving = (torch.nn.Parameter(normal(4, 2, 3, 3, seed=seed)) for seed in (0, 1))
    before, moved = still.detach().clone(), moving.detach().clone()
    muon = optimizer.Muon([still, moving], lr=0.1)
    moving.grad = normal(4, 2, 3, 3)
    muon.step()
    assert torch.equal(still, before) and still not in muon.state and not torch.equal(moving, moved)


def test_the_length_of_filters_is_nothing_to_a_net_with_batchnorm(digits):
    """So that a step of rate 0, which sets it, leaves the answers as they are."""
    model = new_model(digits).train()
    x = digits.images[:64] / 255
    before = model(x)
    _, muon = optimizer.new_optimizers(model, RECIPE)
    muon.param_groups[0]["lr"] = 0.0
    before.sum().backward()
    muon.step()
    for group in muon.param_groups:
        for filters in group["params"]:
            assert float(filters.detach().norm()) == pytest.approx(len(filters) ** 0.5, rel=1e-5)
    torch.testing.assert_close(model(x), before, atol=1e-3, rtol=1e-2)
