"""A model that is looked at is given back as it came."""

import pytest
import torch

from stages.common import models


def flags(model):
    return [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]


@pytest.fixture
def model():
    """A model in training with flags of every kind: one part in eval mode, weights with and without gradients."""
    model = models.build("whitened_cnn", channels=1, classes=["a", "b"], widths=[8]).train()
    model.first_norm.eval()
    assert all(len(set(kind)) == 2 for kind in flags(model))
    return model


def test_a_frozen_model_stands_still_and_gradients_reach_the_input_alone(model):
    images = torch.rand(4, 1, 8, 8, requires_grad=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with models.frozen(model):
        assert not any(any(kind) for kind in flags(model))
        model(images).sum().backward()
    assert images.grad is not None and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("fault", [None, RuntimeError, KeyboardInterrupt])
def test_every_flag_is_put_back_even_after_an_exception(model, fault):
    before = flags(model)
    if fault is None:
        with models.frozen(model), models.frozen(model):
            pass
    else:
        with pytest.raises(fault), models.frozen(model):
            raise fault
    assert flags(model) == before
