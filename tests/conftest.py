"""Shared by all tests."""

import pytest

from stages.common import vision

vision.torchvision()  # the oracles of some tests import it


@pytest.fixture(scope="session")
def digits():
    """As tests.small has them, which is slow to import and not always needed."""
    from tests import small

    return small.digits()
