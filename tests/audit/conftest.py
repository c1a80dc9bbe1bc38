"""Models to audit, and what they are audited with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stages.common.audit.certificate import Certificate
from stages.common.audit.subject import Subject
from tests.small import RECIPE, SETTINGS, against, fit


@pytest.fixture(scope="session")
def sound(digits, tmp_path_factory):
    """A classifier of digits, trained for a few epochs on N-FGSM examples."""
    settings = replace(SETTINGS, fraction=1.0, overfitting_gap=0.3)
    return fit(digits, tmp_path_factory.mktemp("work"), replace(RECIPE, epochs=8), against(settings))[0]


@pytest.fixture(scope="session")
def plain(digits, tmp_path_factory):
    """Another one, trained on clean images."""
    return fit(digits, tmp_path_factory.mktemp("work"), replace(RECIPE, epochs=8, seed=1))[0]


@pytest.fixture(scope="session")
def subject(digits) -> Callable[..., Subject]:
    """`subject(model, **changes)`: a model under audit with images that none of these has seen."""

    def make(model: nn.Module, **changes: Any) -> Subject:
        given = {
            "model": model,
            "other": model,
            "defended": True,
            "image_set": digits.take(torch.arange(1600, 1797)),
            "target": 3,
            "eps": SETTINGS.eps,
            "epsilons": (0.0, 0.02, 0.05, 0.2),
            "pgd_steps": 10,
            "restarts": 2,
            "square_images": 50,
            "square_queries": 50,
            "eps_l2": 0.5,
            "confidence": 0.95,
            "seed": 0,
            "certificate": Certificate(images=100, contradicted=0, by_chance=3),
        }
        return Subject(**(given | changes))

    return make
