"""What accuracies on a sample say of all images: their intervals, two models on the same images, class by class.

`correct` is bool (N,) on the CPU, N >= 1: which images of the sample a model has right. `confidence`, the level of an
interval, and `alpha`, the risk of a bound, lie in (0, 1). Anything else raises ValueError.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

HALVINGS = 60  # of an interval of at most 2, in search of a bound: to what float64 can tell apart

Row = dict[str, Any]  # class, images, accuracy, low and high


def interval(correct: ArrayLike, confidence: float) -> tuple[float, float]:
    """A two-sided interval of the accuracy, in [0, 1], with the sample's own in it: see `interval_of_count`."""
    right = _mask(correct)
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
    _check_share(confidence, "confidence")
    if not 0 <= count <= images or images < 1:  # a newer scipy answers with NaN
        raise ValueError(f"count must lie in [0, images], and images be at least 1, got {count} of {images}")
    low, high = stats.binomtest(count, images).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def clopper_pearson_lower(count: ArrayLike, n: int, alpha: float) -> np.ndarray:
    """A share that is above the true one with a risk of at most `alpha`, for each `count`, ints (...), of `n` >= 1.

    The one-sided bound of Clopper and Pearson (1934): float64 (...) in [0, 1), the share at which as many as `count` of
    `n` have the probability alpha. A certificate needs it (Cohen 2019), for what it says must hold whatever the share.
    """
    counts = np.asarray(count)
    _check_share(alpha, "alpha")
    if n < 1 or (counts < 0).any() or (counts > n).any():
        found = f"[{counts.min()}, {counts.max()}] and n {n}"
        raise ValueError(f"counts must lie in [0, n], and n be at least 1, got {found}")
    some = np.maximum(counts, 1)
    return np.where(counts > 0, stats.beta.ppf(alpha, some, n - some + 1), 0.0)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike, confidence: float) -> dict[str, float]:
    """Do two models differ in accuracy on the same images? (McNemar 1947, exact and two-sided.)

    Entry i of `correct_a` and of `correct_b` belong to one image. Returns difference, accuracy of a less that of b, in
    [-1, 1]; low and high, its score interval (Tango 1998) at level `confidence`; p_value in [0, 1], of the images that
    only one of the two has right falling to one side as unevenly by the toss of a coin. The interval is that of
    McNemar's statistic, which is less cautious than the exact test: where the p-value is little above 1 - confidence,
    it may leave out 0.
    """
    a, b = _mask(correct_a), _mask(correct_b)
    if len(a) != len(b):
        raise ValueError(f"a paired test needs the same images: {len(a)} against {len(b)}")
    _check_share(confidence, "confidence")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    quantile = -float(stats.norm.ppf((1 - confidence) / 2))
    return {
        "difference": (only_a - only_b) / len(a),
        "low": _lowest_difference(only_a, only_b, len(a), quantile),
        "high": -_lowest_difference(only_b, only_a, len(a), quantile),
        "p_value": min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5))),
    }


def _lowest_difference(only_a: int, only_b: int, images: int, quantile: float) -> float:
    """The lower end of Tango's interval (1998): the difference that is `quantile` deviations below the one found.

    The deviation is that at the likeliest shares of the two kinds of images that differ by so much. By bisection, since
    it is 0 where no image, or every image, is one that a alone has right: there a root of the equation says nothing.
    """
    inside = (only_a - only_b) / images
    outside = -1.0
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        linear = (2 * images - only_a + only_b) * middle - only_a - only_b
        constant = -only_b * middle * (1 - middle)
        of_b = (np.sqrt(max(linear**2 - 8 * images * constant, 0.0)) - linear) / (4 * images)
        deviation = np.sqrt(max(images * (2 * of_b + middle * (1 - middle)), 0.0))
        if only_a - only_b - images * middle > quantile * deviation:
            outside = middle
        else:
            inside = middle
    return inside


def by_class(labels: ArrayLike, correct: ArrayLike, classes: Sequence[str], confidence: float) -> list[Row]:
    """A row for each of `classes` that has images, in their order: class, images, accuracy, and its interval's ends low
    and high. `labels` are ints (N,) that index `classes`.

    Each interval is of its class alone: of ten classes at 95 %, some interval misses in two samples of five.
    """
    truth, right = np.asarray(labels), _mask(correct)
    if truth.shape != right.shape or truth.dtype.kind not in "iu":
        raise ValueError(f"labels must be ints {right.shape}, got {truth.dtype} {truth.shape}")
    if truth.min() < 0 or truth.max() >= len(classes):
        raise ValueError(f"labels must lie in [0, {len(classes)}), got [{truth.min()}, {truth.max()}]")
    sizes, counts = (np.bincount(part, minlength=len(classes)).tolist() for part in (truth, truth[right]))
    rows = []
    for name, size, count in zip(classes, sizes, counts, strict=True):
        if size > 0:
            low, high = interval_of_count(count, size, confidence)
            rows.append({"class": name, "images": size, "accuracy": count / size, "low": low, "high": high})
    return rows


def worst(rows: Sequence[Row]) -> Row:
    """The row of the lowest accuracy, the first among equals. Picked for being low, it is the lower for bad luck."""
    return min(rows, key=lambda row: float(row["accuracy"]))


def _mask(values: ArrayLike) -> np.ndarray:
    """`values` as bool (N,), N >= 1, or a ValueError that says what they are."""
    mask = np.asarray(values)
    if mask.dtype != np.bool_ or mask.ndim != 1 or len(mask) == 0:
        raise ValueError(f"which images are correct must be bool (N,), N >= 1, got {mask.dtype} {mask.shape}")
    return mask


def _check_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value}")
