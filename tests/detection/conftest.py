"""A classifier that is no constant, and every detector fitted to it."""

import pytest
import torch
import torch.nn.functional as F

from stages.common import images, models
from stages.common.detection import detectors
from stages.common.detection.detectors import Sight
from stages.common.detection.scores import Options

OPTIONS = Options(temperature=0.5, neighbours=5, gen_gamma=0.1, gen_classes=100, vim_share=0.5, guides=10)


@pytest.fixture(scope="session")
def sight():
    return Sight(mirror=True, odin_temperature=1000.0, odin_eps=0.0014)


@pytest.fixture(scope="session")
def options():
    return OPTIONS


@pytest.fixture(scope="session")
def model(digits):
    torch.manual_seed(0)
    model = models.build("whitened_cnn", channels=1, classes=digits.classes, widths=[8, 16])
    model.adapt(images.to_float(digits.images))
    learnt = [p for p in model.parameters() if p.requires_grad]
    for step in range(60):
        part = slice(25 * step, 25 * step + 25)
        loss = F.cross_entropy(model(images.to_float(digits.images[part])), digits.labels[part])
        with torch.no_grad():
            for p, g in zip(learnt, torch.autograd.grad(loss, learnt), strict=True):
                p -= 0.3 * g
    return model.eval()


@pytest.fixture(scope="session")
def fitted(model, digits, sight):
    return detectors.fit_on(model, digits.take(images.sample(digits.labels, 300)), sight, OPTIONS)
