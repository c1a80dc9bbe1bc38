"""Shared by all tests."""

import sys
import types

import pytest

# pytorch-ood, an oracle of the OOD tests, imports torchvision, whose compiled operators do not load beside every build
# of CPU torch ("operator torchvision::nms does not exist"). Nothing here calls them: an empty module in place of the
# one that registers their shapes lets the rest of torchvision load.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits as an ImageSet: 1,797 grey images of 8x8 pixels in ten classes."""
    import torch
    from sklearn.datasets import load_digits

    from stages.common.images import ImageSet

    source = load_digits()
    pixels = torch.from_numpy((source.images * 255 / 16).round().astype("uint8")).unsqueeze(1)
    return ImageSet(pixels, torch.from_numpy(source.target).long(), list("0123456789"))
