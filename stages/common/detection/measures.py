"""How well confidences tell in-distribution (ID) images from out-of-distribution (OOD) ones.

Confidences are finite numbers of shape (N,), larger = more in-distribution, and ID is the positive class. Every figure
depends on ranks alone, and ties are handled as ties. Empty or non-finite confidences raise ValueError.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats
from sklearn import metrics


def evaluate(id_scores: ArrayLike, ood_scores: ArrayLike, *, confidence: float = 0.95) -> dict[str, float]:
    """The six figures of one score on one model, all fractions in [0, 1].

    auroc: the probability that an ID image scores above an OOD one, ties counted half.
    auroc_low, auroc_high: its interval at level `confidence` (see `auroc_interval`).
    ap_id, ap_ood: average precision with ID, or OOD, as the positive class. Chance is the share of that class.
    fpr95: the share of OOD images accepted at the highest threshold that accepts 95 % of ID images (scores at the
    threshold are accepted).
    """
    inside, outside = scores_of(id_scores, "ID"), scores_of(ood_scores, "OOD")
    low, high = auroc_interval(inside, outside, confidence=confidence)
    pooled, is_id = pooled_with_id(inside, outside)
    return {
        "auroc": _auroc(_placements(inside, outside)),
        "auroc_low": low,
        "auroc_high": high,
        "ap_id": float(metrics.average_precision_score(is_id, pooled)),
        "ap_ood": float(metrics.average_precision_score(~is_id, -pooled)),
        "fpr95": float(np.mean(outside >= _accepting(inside, 0.95))),
    }


def auroc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """The probability that an ID image scores above an OOD one, ties counted half."""
    return _auroc(_placements(scores_of(id_scores, "ID"), scores_of(ood_scores, "OOD")))


def balanced(id_scores: ArrayLike, ood_scores: ArrayLike) -> dict[str, float]:
    """The figures that assume as many OOD as ID images, however many there are: fractions in [0, 1].

    ap_id_balanced, ap_ood_balanced: average precision of either class with both weighing the same; chance is 0.5.
    detection_accuracy: the best mean of the two classes' accuracies over all thresholds (Liang 2018), at least 0.5.
    """
    inside, outside = scores_of(id_scores, "ID"), scores_of(ood_scores, "OOD")
    pooled, is_id = pooled_with_id(inside, outside)
    weights = np.where(is_id, 1 / len(inside), 1 / len(outside))
    fpr, tpr, _ = metrics.roc_curve(is_id, pooled, drop_intermediate=False)
    return {
        "ap_id_balanced": float(metrics.average_precision_score(is_id, pooled, sample_weight=weights)),
        "ap_ood_balanced": float(metrics.average_precision_score(~is_id, -pooled, sample_weight=weights)),
        "detection_accuracy": float(np.max(tpr + 1 - fpr) / 2),
    }


def at_threshold(
    val_scores: ArrayLike, id_scores: ArrayLike, ood_scores: ArrayLike, *, accept: float
) -> dict[str, float]:
    """The rates at a threshold set before the test: the highest that accepts the share `accept` of `val_scores`.

    Returns the shares of ID and of OOD images accepted (scores at the threshold are). `accept` is in (0, 1].
    """
    known, inside, outside = (
        scores_of(val_scores, "validation"),
        scores_of(id_scores, "ID"),
        scores_of(ood_scores, "OOD"),
    )
    threshold = _accepting(known, accept)
    return {"id_accepted": float(np.mean(inside >= threshold)), "ood_accepted": float(np.mean(outside >= threshold))}


def _accepting(scores: np.ndarray, share: float) -> float:
    """The highest threshold that accepts at least `share` of `scores`."""
    exact = Fraction(str(share)) * len(scores)  # 0.95 * N in floats may land above the exact product
    return float(np.sort(scores)[-math.ceil(exact)])


def auroc_interval(id_scores: ArrayLike, ood_scores: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """A two-sided interval for AUROC that contains the estimate and stays in [0, 1].

    DeLong's variance (DeLong 1988) from midranks in O(N log N) (Sun and Xu 2014), on the logit scale (Pepe 2003). It is
    0 for perfect separation or constant scores and unknown for a set of one image. There AUROC is treated as the share
    of successes in min(N_ID, N_OOD) trials, which has the largest variance that AUROC can have (Birnbaum and Klose
    1957), with the exact interval of Clopper and Pearson (1934): too wide rather than too narrow.
    """
    inside, outside = scores_of(id_scores, "ID"), scores_of(ood_scores, "OOD")
    placements = _placements(inside, outside)
    auroc, trials = _auroc(placements), min(len(inside), len(outside))
    tail = (1 - confidence) / 2
    variance = _covariance([placements])[0, 0] if trials > 1 else 0.0
    if variance > 0 and 0 < auroc < 1:
        half = -stats.norm.ppf(tail) * np.sqrt(variance) / (auroc * (1 - auroc))
        low, high = special.expit(special.logit(auroc) + np.array([-half, half]))
    else:
        hits = auroc * trials
        low = stats.beta.ppf(tail, hits, trials - hits + 1) if hits > 0 else 0.0
        high = stats.beta.ppf(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    return float(min(low, auroc)), float(max(high, auroc))  # min, max: against rounding when the interval is tiny


def delong_test(
    id_a: ArrayLike, ood_a: ArrayLike, id_b: ArrayLike, ood_b: ArrayLike, *, confidence: float = 0.95
) -> dict[str, float]:
    """Do two scores, or one score on two models, differ in AUROC on the same images? (DeLong 1988, paired, two-sided.)

    Entry i of `id_a` and of `id_b` belong to one image, and so for `ood_a` and `ood_b`. Returns difference, AUROC of a
    less that of b, in [-1, 1]; low and high, its interval at level `confidence`; p_value in [0, 1]. Where DeLong's
    variance is 0 or unknown, the interval is put together from both `auroc_interval`s (Newcombe 1998), and the p value
    is the one that such an interval implies. Raises ValueError also when the sets differ in size.
    """
    a = scores_of(id_a, "ID"), scores_of(ood_a, "OOD")
    b = scores_of(id_b, "ID"), scores_of(ood_b, "OOD")
    if len(a[0]) != len(b[0]) or len(a[1]) != len(b[1]):
        raise ValueError(
            f"a paired test needs the same images: {len(a[0])} ID and {len(a[1])} OOD scores"
            f" against {len(b[0])} and {len(b[1])}"
        )
    placements_a, placements_b = _placements(*a), _placements(*b)
    auroc_a, auroc_b = _auroc(placements_a), _auroc(placements_b)
    difference = auroc_a - auroc_b
    quantile = -stats.norm.ppf((1 - confidence) / 2)
    covariance = _covariance([placements_a, placements_b]) if min(len(a[0]), len(a[1])) > 1 else np.zeros((2, 2))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if variance > 1e-15:  # what rounding leaves of an exact 0; N = 10^6 images give 1e-7
        below = above = quantile * np.sqrt(variance)
    else:
        low_a, high_a = auroc_interval(*a, confidence=confidence)
        low_b, high_b = auroc_interval(*b, confidence=confidence)
        below = np.hypot(auroc_a - low_a, high_b - auroc_b)
        above = np.hypot(high_a - auroc_a, auroc_b - low_b)
    towards_zero = below if difference > 0 else above
    deviation = 0.0 if difference == 0 else quantile * abs(difference) / towards_zero
    return {
        "difference": difference,
        "low": float(max(difference - below, -1)),
        "high": float(min(difference + above, 1)),
        "p_value": float(2 * stats.norm.sf(deviation)),
    }


def scores_of(values: ArrayLike, name: str) -> np.ndarray:
    """Finite scores float64 (N,), or a ValueError that says what is wrong with the `name` scores."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"{name} scores have the shape {scores.shape}: one number per image is needed")
    if len(scores) == 0:
        raise ValueError(f"there are no {name} scores")
    faulty = int((~np.isfinite(scores)).sum())
    if faulty:
        raise ValueError(f"{faulty} of {len(scores)} {name} scores are not finite")
    return scores


def pooled_with_id(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All scores (N + M,), and which are of ID images, bool (N + M,)."""
    return np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) < len(inside)


def _placements(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each ID image the share of OOD images below it, for each OOD image the share of ID images above it."""
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    of_id = (ranks[: len(inside)] - stats.rankdata(inside)) / len(outside)
    of_ood = 1 - (ranks[len(inside) :] - stats.rankdata(outside)) / len(inside)
    return of_id, of_ood


def _auroc(placements: tuple[np.ndarray, np.ndarray]) -> float:
    return float(np.clip(placements[0].mean(), 0, 1))


def _covariance(scores: list[Any]) -> np.ndarray:
    """DeLong's covariance of the AUROCs of S scores on the same images, (S, S), from their placements."""
    of_id, of_ood = (np.stack(side) for side in zip(*scores, strict=True))
    return np.atleast_2d(np.cov(of_id)) / of_id.shape[1] + np.atleast_2d(np.cov(of_ood)) / of_ood.shape[1]
