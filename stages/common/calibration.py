"""Is a classifier right as often as it says? The reliability diagram and its error (Guo 2017).

`probabilities` are float (N, K) in [0, 1], N >= 1, each row with the sum 1, and `labels` int64 (N,) in [0, K), both on
the CPU. The confidence of an image is the probability of the class it is taken for, the likeliest. Anything else raises
ValueError.
"""

import torch
from torch import Tensor

BINS = 15  # of equal width over [0, 1] (Guo 2017)
EDGES = torch.arange(1, BINS, dtype=torch.float64) / BINS  # between them
ROUNDING = 1e-3  # that a row's sum may be off by: float16 probabilities are


def probabilities_of(logits: Tensor) -> Tensor:
    """The softmax of logits (N, K) in float64, since float32's saturates at exactly 1."""
    return logits.double().softmax(1)


def reliability(probabilities: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """A row for each bin that holds an image, ascending: bin, confidence, accuracy and count.

    Bin m of 1 to BINS holds the images with confidences in ((m - 1) / BINS, m / BINS]; confidence and accuracy are
    their means, and count is how many they are.
    """
    _check(probabilities, labels)
    confidences, answers = probabilities.double().max(1)
    bins = torch.bucketize(confidences, EDGES)
    counts = bins.bincount(minlength=BINS)
    sums = (bins.bincount(each, minlength=BINS) for each in (confidences, (answers == labels).double()))
    columns = zip(counts.tolist(), *((total / counts).tolist() for total in sums), strict=True)
    return [
        {"bin": number, "confidence": confidence, "accuracy": accuracy, "count": count}
        for number, (count, confidence, accuracy) in enumerate(columns, start=1)
        if count > 0
    ]


def ece(probabilities: Tensor, labels: Tensor) -> float:
    """The expected calibration error, in [0, 1]: |accuracy - confidence| of a bin, averaged over the images (Guo 2017).

    Chance alone keeps it above 0 in a sample, the more so the fewer the images: compare samples of one size.
    """
    rows = reliability(probabilities, labels)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(labels)


def _check(probabilities: Tensor, labels: Tensor) -> None:
    if probabilities.ndim != 2 or not probabilities.is_floating_point() or len(probabilities) == 0:
        found = f"{probabilities.dtype} {tuple(probabilities.shape)}"
        raise ValueError(f"probabilities must be float (N, K), N >= 1, got {found}")
    count, classes = probabilities.shape
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({count},), got {labels.dtype} {tuple(labels.shape)}")
    if labels.amin() < 0 or labels.amax() >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), got [{int(labels.amin())}, {int(labels.amax())}]")
    within = ((probabilities >= 0) & (probabilities <= 1)).all(1)  # NaN is outside too
    faulty = int((~within | ((probabilities.double().sum(1) - 1).abs() > ROUNDING)).sum())
    if faulty:
        raise ValueError(
            f"{faulty} of {count} rows are no probabilities, in [0, 1] with the sum 1: of logits take probabilities_of"
        )
