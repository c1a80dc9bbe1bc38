"""Shared by all tests."""

import pytest

from stages.common import vision

vision.torchvision()  # the oracles of some tests import it


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits as an ImageSet: 1,797 grey images of 8x8 pixels in ten classes."""
    import torch
    from sklearn.datasets import load_digits

    from stages.common.images import ImageSet

    source = load_digits()
    pixels = torch.from_numpy((source.images * 255 / 16).round().astype("uint8")).unsqueeze(1)
    return ImageSet(pixels, torch.from_numpy(source.target).long(), list("0123456789"))
