"""What accuracies on a sample say of all images: their intervals, two models on the same images, class by class.

`correct` is bool (N,) on the CPU, N >= 1: which images of the sample a model has right. `confidence`, the level of an
interval, and `alpha`, the risk of a bound, lie in (0, 1). Anything else raises ValueError.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from stages.common.wilson import check_share, figures, interval, interval_of_count, mask_of

__all__ = [
    "by_class",
    "clopper_pearson_lower",
    "confusion",
    "figures",
    "interval",
    "interval_of_count",
    "mcnemar",
    "worst",
]

HALVINGS = 60  # of an interval of at most 2, in search of a bound: to what float64 can tell apart

Row = dict[str, Any]  # of a table: each function says of which columns


def clopper_pearson_lower(count: ArrayLike, n: int, alpha: float) -> np.ndarray:
    """A share that is above the true one with a risk of at most `alpha`, for each `count`, ints (...), of `n` >= 1.

    The one-sided bound of Clopper and Pearson (1934): float64 (...) in [0, 1), the share at which as many as `count` of
    `n` have the probability alpha. A certificate needs it (Cohen 2019), for what it says must hold whatever the share.
    """
    counts = np.asarray(count)
    check_share(alpha, "alpha")
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
    a, b = mask_of(correct_a), mask_of(correct_b)
    if len(a) != len(b):
        raise ValueError(f"a paired test needs the same images: {len(a)} against {len(b)}")
    check_share(confidence, "confidence")
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
    right = mask_of(correct)
    truth = _indices(labels, "labels", right.shape, classes)
    sizes, counts = (np.bincount(part, minlength=len(classes)).tolist() for part in (truth, truth[right]))
    rows = []
    for name, size, count in zip(classes, sizes, counts, strict=True):
        if size > 0:
            low, high = interval_of_count(count, size, confidence)
            rows.append({"class": name, "images": size, "accuracy": count / size, "low": low, "high": high})
    return rows


def confusion(labels: ArrayLike, taken: ArrayLike, classes: Sequence[str]) -> Iterator[Row]:
    """The confusion matrix, a row a cell: class, taken_for, and share, in [0, 1], of the first one's images those that
    are taken for the second; 0 where it has none. `labels` and `taken` are ints (N,), N >= 1, that index `classes`.
    """
    count, shape = len(classes), np.asarray(labels).shape[:1]
    truth, found = (_indices(of, name, shape, classes) for name, of in (("labels", labels), ("taken", taken)))
    cells = np.bincount(truth * count + found, minlength=count**2).reshape(count, count)
    shares = cells / cells.sum(1, keepdims=True).clip(min=1)
    for name, row in zip(classes, shares.tolist(), strict=True):
        for other, share in zip(classes, row, strict=True):
            yield {"class": name, "taken_for": other, "share": share}


def _indices(values: ArrayLike, name: str, shape: tuple[int, ...], classes: Sequence[str]) -> np.ndarray:
    """`values` as ints of this shape that index `classes`, or a ValueError that says what they are."""
    found = np.asarray(values)
    if found.shape != shape or found.dtype.kind not in "iu":
        raise ValueError(f"{name} must be ints {shape}, got {found.dtype} {found.shape}")
    if found.min() < 0 or found.max() >= len(classes):
        raise ValueError(f"{name} must lie in [0, {len(classes)}), got [{found.min()}, {found.max()}]")
    return found


def worst(rows: Sequence[Row]) -> Row:
    """The row of the lowest accuracy, the first among equals. Picked for being low, it is the lower for bad luck."""
    return min(rows, key=lambda row: float(row["accuracy"]))
