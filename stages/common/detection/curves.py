"""ROC and precision-recall curves, and how a curve of many points is drawn with few."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics

from stages.common.detection.measures import pooled_with_id, scores_of


def roc_curve(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, both ascending from 0 to 1: the shares of OOD and of ID images accepted.

    One point per distinct score; the trapezoid area is AUROC.
    """
    pooled, is_id = pooled_with_id(scores_of(id_scores, "ID"), scores_of(ood_scores, "OOD"))
    fpr, tpr, _ = metrics.roc_curve(is_id, pooled, drop_intermediate=False)
    return fpr, tpr


def pr_curve(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Recall, ascending from 0 to 1, and precision in [0, 1], with ID as the positive class.

    One point per distinct score, and (0, 1) by convention. The trapezoid area is close to ap_id but not equal to it:
    average precision is a sum of steps (Davis and Goadrich 2006).
    """
    pooled, is_id = pooled_with_id(scores_of(id_scores, "ID"), scores_of(ood_scores, "OOD"))
    precision, recall, _ = metrics.precision_recall_curve(is_id, pooled)
    return recall[::-1], precision[::-1]


def thin(x: ArrayLike, y: ArrayLike, points: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` (>= 12) of the points of a curve with ascending `x`, with both ends and nearly the same area.

    Points within a straight run go first. Then one point is kept from each stretch of equal length (|dx| + |dy|, each
    relative to its range): the one that brings the trapezoid area so far nearest to the full curve's. A quarter or half
    of `points` will do where it keeps the area to 5e-4; with all 500, the areas of ROC and PR curves move by less than
    1e-3.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    area = np.trapezoid(y, x)
    if len(x) > points // 4:
        x, y = _without_straight_runs(x, y)
    for count in (points // 4, points // 2, points):
        if len(x) <= count:
            return x, y
        kept = _one_per_stretch(x, y, count)
        if abs(np.trapezoid(y[kept], x[kept]) - area) <= 5e-4:
            break
    return x[kept], y[kept]


def _one_per_stretch(x: np.ndarray, y: np.ndarray, points: int) -> list[int]:
    steps = np.abs(np.diff(x)) / (np.ptp(x) or 1) + np.abs(np.diff(y)) / (np.ptp(y) or 1)
    length = np.cumsum(steps)[:-1]  # up to each inner point
    stretch = np.minimum(length / length[-1] * (points - 2), points - 3).astype(int)
    area = np.concatenate([[0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)])
    kept, excess = [0], 0.0
    for candidates in np.split(np.arange(1, len(x) - 1), np.flatnonzero(np.diff(stretch)) + 1):
        last = kept[-1]
        chords = (x[candidates] - x[last]) * (y[candidates] + y[last]) / 2
        excesses = excess + chords - (area[candidates] - area[last])
        best = np.argmin(np.abs(excesses))
        kept.append(int(candidates[best]))
        excess = float(excesses[best])
    return [*kept, len(x) - 1]


def _without_straight_runs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve's ends and corners. A set of one image makes two runs and a jump, whose corners carry all the area."""
    moved = np.concatenate([[True], (np.diff(x) != 0) | (np.diff(y) != 0)])
    x, y = x[moved], y[moved]
    dx, dy = np.diff(x), np.diff(y)
    straight = (dx[1:] * dy[:-1] == dx[:-1] * dy[1:]) & (dx[1:] * dx[:-1] + dy[1:] * dy[:-1] > 0)
    kept = np.concatenate([[True], ~straight, [True]])[-len(x) :]
    return x[kept], y[kept]
