"""The interval of an accuracy, of images and of a share that was found on so many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common import wilson


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.5, 0.95]))
def test_a_share_of_so_many_images_has_the_interval_of_these_images(case, confidence):
    count, images = case
    right = np.arange(images) < count
    assert wilson.figures_of_shares({"a": count / images}, images, confidence) == wilson.figures(
        {"a": right}, confidence
    )


def test_a_share_of_no_image_is_refused():
    with pytest.raises(ValueError):
        wilson.figures_of_shares({"a": 0.0}, 0, 0.95)
