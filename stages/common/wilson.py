"""The interval of an accuracy: of a share of the images of a sample, right or wrong (Wilson 1927).

`correct` is bool (N,) on the CPU, N >= 1, and `confidence`, the level, lies in (0, 1); anything else raises ValueError.
A module of its own, so that what is trained depends on nothing else that is said of accuracies.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def interval(correct: ArrayLike, confidence: float) -> tuple[float, float]:
    """A two-sided interval of the accuracy, in [0, 1], with the sample's own in it: see `interval_of_count`."""
    right = mask_of(correct)
    return interval_of_count(int(right.sum()), len(right), confidence)


def figures(correct: Mapping[str, ArrayLike], confidence: float) -> dict[str, float]:
    """Each accuracy under its name, and its interval under name_low and name_high: how metrics/ state them."""
    found: dict[str, float] = {}
    for name, right in correct.items():
        low, high = interval(right, confidence)
        found |= {name: float(np.asarray(right).mean()), f"{name}_low": low, f"{name}_high": high}
    return found


def interval_of_count(count: int, images: int, confidence: float) -> tuple[float, float]:
    """The same of `count` right among `images` >= 1: the score interval (Wilson 1927).

    Over the accuracies it covers the truth as often as it says on average, which Brown, Cai and DasGupta (2001)
    recommend; the exact one of Clopper and Pearson (1934) covers it more often than it says, and is wider. Only where
    less than one image in the sample is expected right, or wrong, may it cover far less: 0.84 at 95 %.
    """
    check_share(confidence, "confidence")
    if not 0 <= count <= images or images < 1:  # a newer scipy answers with NaN
        raise ValueError(f"count must lie in [0, images], and images be at least 1, got {count} of {images}")
    low, high = stats.binomtest(count, images).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def figures_of_shares(shares: Mapping[str, float], images: int, confidence: float) -> dict[str, float]:
    """As `figures`, of accuracies that were found on so many images each."""
    found: dict[str, float] = {}
    for name, share in shares.items():
        low, high = interval_of_count(round(share * images), images, confidence)
        found |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return found


def mask_of(values: ArrayLike) -> np.ndarray:
    """`values` as bool (N,), N >= 1, or a ValueError that says what they are."""
    mask = np.asarray(values)
    if mask.dtype != np.bool_ or mask.ndim != 1 or len(mask) == 0:
        raise ValueError(f"which images are correct must be bool (N,), N >= 1, got {mask.dtype} {mask.shape}")
    return mask


def check_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value}")
