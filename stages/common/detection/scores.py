"""Out-of-distribution scores: how much a classifier's outputs look like those of its training images.

A score is a function `fit(train, options)` that returns a function `(logits (N, K), features (N, D)) -> confidences`,
a float64 tensor (N,), larger = more in-distribution, for any K >= 2. To add one, write such a function and
name it in SCORES. Confidences need not share a scale: everything made of them depends on ranks alone. They are computed
in float64 (the nearest-neighbour search excepted): a softmax in float32 saturates at exactly 1, and ties lose ranks.

Training images may be more than memory holds, on disk: a score goes through them by `FitData.blocks`, one at a time.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common import images
from stages.common.errors import UserError
from stages.common.params import Params

QUERIES = 512  # images whose neighbours are sought, or fetched, at once...
SEARCHED = 8192  # ...among so many of the bank: similarities of 16 MB, and products at full speed
PART = 2**28  # bytes of fitted features that are worked on at once, as float64 twice that: all of CIFAR's
SAMPLE = 5000  # training images on which two scores are brought to one scale: 1.4 % of a deviation


class FitData(NamedTuple):
    """What the classifier gives for its own training images: logits (N, K), features (N, D), int64 labels (N,).

    Labels lie on the device that the scores work on; logits and features too, or where they are many on disk.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor

    def parts(self) -> list[slice]:
        """The blocks' places: PART bytes of features each."""
        rows = max(1, PART // self.features[:1].nbytes)
        return [slice(start, start + rows) for start in range(0, len(self.labels), rows)]

    def blocks(self) -> Iterator["FitData"]:
        """Images in a row, on the device."""
        for part in self.parts():
            yield FitData(*(values[part].to(self.labels.device) for values in self))
            self._give_back(part)

    def take(self, chosen: Tensor) -> "FitData":
        """The images at the indices `chosen`, in that order, on the device."""
        found = FitData(*(values[chosen.to(values.device)].to(self.labels.device) for values in self))
        self._give_back(slice(None))
        return found

    def _give_back(self, rows: slice) -> None:
        images.give_back(self.logits[rows])
        images.give_back(self.features[rows])


@dataclass(frozen=True, kw_only=True)
class Options:
    """The scores' parameters; params.yaml says where each value comes from.

    temperature > 0, of max softmax; neighbours >= 1, k of the nearest-neighbour score;
    gen_gamma in (0, 1) and gen_classes >= 1, of GEN; vim_share in (0, 1), of the feature space that ViM takes for the
    principal one; guides >= 1, k of NNGuide.
    """

    temperature: float
    neighbours: int
    gen_gamma: float
    gen_classes: int
    vim_share: float
    guides: int

    @classmethod
    def from_params(cls, params: Params) -> "Options":
        return cls(**{field.name: getattr(params.ood_eval, field.name) for field in fields(cls)})


Score = Callable[[Tensor, Tensor], Tensor]


def max_logit(train: FitData, options: Options) -> Score:
    """max_k z_k, any real number (Hendrycks 2022, Scaling Out-of-Distribution Detection for Real-World Settings)."""
    return lambda logits, features: logits.double().amax(1)


def max_softmax(train: FitData, options: Options) -> Score:
    """p = max_k softmax(z / temperature)_k (Hendrycks 2017, A Baseline for Detecting Misclassified and OOD Examples).

    Returned as log-odds, log p - log(1 - p), any real number: the ranks of p in exact arithmetic. p itself rounds to
    1.0 for every logit gap above 37 temperatures (17 in float32), a tie. `sigmoid` of the log-odds is p.
    """
    return lambda logits, features: -_softmax(logits.double() / options.temperature).log_rest


def energy(train: FitData, options: Options) -> Score:
    """log sum_k exp z_k, the negative free energy at temperature 1, any real number (Liu 2020, Energy-based OOD)."""
    return lambda logits, features: logits.double().logsumexp(1)


def entropy(train: FitData, options: Options) -> Score:
    """sum_k p_k log p_k, entropy with its sign turned, in [-log K, 0] (Chan 2021, Entropy Maximization)."""

    def confidences(logits: Tensor, features: Tensor) -> Tensor:
        log_p = _softmax(logits).log_p
        return (log_p.exp() * log_p).sum(1)

    return confidences


def generalized_entropy(train: FitData, options: Options) -> Score:
    """-sum over the M largest p_k of (p_k (1 - p_k))^gamma, at most 0 (Liu 2023, GEN)."""
    gamma, largest = options.gen_gamma, options.gen_classes

    def confidences(logits: Tensor, features: Tensor) -> Tensor:
        log_p, log_rest = _softmax(logits)
        # 1 - p cancels for the largest p only: the sum of the others gives it without loss
        log_1_minus_p = torch.log1p(-log_p.exp())
        log_1_minus_p[:, 0] = log_rest + log_p[:, 0]
        return -(gamma * (log_p + log_1_minus_p))[:, :largest].exp().sum(1)

    return confidences


def margin(train: FitData, options: Options) -> Score:
    """The largest logit less the second largest, at least 0."""

    def confidences(logits: Tensor, features: Tensor) -> Tensor:
        first, second = logits.double().topk(2, dim=1).values.unbind(1)
        return first - second

    return confidences


def knn(train: FitData, options: Options) -> Score:
    """Minus the distance to the k-th nearest training feature, all scaled to length 1, in [-2, 0] (Sun 2022, Deep kNN).

    Similarities are float32 matrix products of QUERIES by SEARCHED; the distance to the neighbour found is float64.
    Raises UserError when there are fewer than k training images.
    """
    k, size = options.neighbours, len(train.labels)
    if k > size:
        raise UserError(
            f"params.yaml: ood_eval.neighbours = {k}: allowed is a whole number from 1 to {size}, the training images"
        )
    bank = _bank(train, lambda block: F.normalize(block.features.float(), dim=1))

    def confidences(logits: Tensor, features: Tensor) -> Tensor:
        # Which one is nearest has no gradient; the distance to it has
        nearest = _nearest(features.detach(), bank, k).indices[:, -1]
        parts = []
        for some, kth in zip(features.split(QUERIES), nearest.split(QUERIES), strict=True):
            neighbour = F.normalize(train.take(kth).features.double(), dim=1)
            parts.append(-(F.normalize(some.double(), dim=1) - neighbour).norm(dim=1))
        return torch.cat(parts)

    return confidences


def mahalanobis(train: FitData, options: Options) -> Score:
    """-min_c (h - mean_c)' S^-1 (h - mean_c), at most 0 (Lee 2018, A Simple Unified Framework), no input preprocessing.

    S is the covariance within the classes, tied over them.
    """
    means, residuals = _class_means(train)
    whiten = _whitening(train, residuals)
    return lambda logits, features: -_squared_distances(features, means, whiten).amin(1)


def relative_mahalanobis(train: FitData, options: Options) -> Score:
    """-min_c of the squared distance to class c less that to one Gaussian over all classes, any real number.

    Ren 2021, A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection.
    """
    means, residuals = _class_means(train)
    whiten = _whitening(train, residuals)
    centre = _mean(train, lambda block: block.features.double())[None]
    whiten_all = _whitening(train, lambda block: block.features.double() - centre)

    def confidences(logits: Tensor, features: Tensor) -> Tensor:
        background = _squared_distances(features, centre, whiten_all)
        return -(_squared_distances(features, means, whiten) - background).amin(1)

    return confidences


def vim(train: FitData, options: Options) -> Score:
    """log sum_k exp z_k - alpha |residual|, any real number (Wang 2022, ViM: Out-of-Distribution with Virtual-logit).

    The residual is the part of h - o outside the principal space of the training features round o, -pinv(W) bias;
    alpha makes its mean over the training images that of the max logit.
    """
    _, origin = _linear_head(train)

    def centred(block: FitData) -> Tensor:
        return block.features.double() - origin

    _, vectors = torch.linalg.eigh(_covariance(train, centred))
    dimension = len(origin)
    kept = min(max(round(options.vim_share * dimension), 1), dimension - 1)
    null_space = vectors[:, : dimension - kept]  # of the smallest variances
    largest = _mean(train, lambda block: block.logits.double().amax(1))
    alpha = largest / _mean(train, lambda block: (centred(block) @ null_space).norm(dim=1)).clamp_min(1e-12)

    def confidences(logits: Tensor, features: Tensor) -> Tensor:
        residual = ((features.double() - origin) @ null_space).norm(dim=1)
        return logits.double().logsumexp(1) - alpha * residual

    return confidences


def fdbd(train: FitData, options: Options) -> Score:
    """The mean distance from h to the decision boundaries, over its distance from the training mean; at least 0.

    (z_1 - z_k) / |w_1 - w_k| averaged over the classes k that are not predicted (Liu and Qin 2024, Fast
    Decision Boundary based Out-of-Distribution Detector).
    """
    weights, _ = _linear_head(train)
    apart = torch.cdist(weights, weights)
    centre = _mean(train, lambda block: block.features.double())

    def confidences(logits: Tensor, features: Tensor) -> Tensor:
        logits = logits.double()
        largest, predicted = logits.max(1)
        others = F.one_hot(predicted, logits.shape[1]) == 0
        distances = (largest[:, None] - logits) / apart[predicted].clamp_min(1e-12)
        mean = (distances * others).sum(1) / (logits.shape[1] - 1)
        return mean / (features.double() - centre).norm(dim=1).clamp_min(1e-12)

    return confidences


def nnguide(train: FitData, options: Options) -> Score:
    """Energy times guidance: the mean of the k largest energy(h_i) cos(h, h_i), any real number (Park 2023, NNGuide).

    Over all training images, where the paper draws one in a hundred of ImageNet's. Raises UserError as `knn` does.
    """
    k, size = options.guides, len(train.labels)
    if k > size:
        raise UserError(f"params.yaml: ood_eval.guides = {k}: allowed is a whole number from 1 to {size}")

    def weighed(block: FitData) -> Tensor:
        return F.normalize(block.features.float(), dim=1) * block.logits.float().logsumexp(1, keepdim=True)

    bank = _bank(train, weighed)

    def guidance(features: Tensor) -> Tensor:
        found = _nearest(features.detach(), bank, k)
        if not features.requires_grad:
            return found.values
        # The k products once more: a graph over the search would hold the whole bank
        parts = []
        for some, nearest in zip(features.split(QUERIES // k + 1), found.indices.split(QUERIES // k + 1), strict=True):
            guides = weighed(train.take(nearest.flatten())).view(*nearest.shape, -1)
            parts.append((F.normalize(some.float(), dim=1)[:, None] * guides).sum(2))
        return torch.cat(parts)

    return lambda logits, features: logits.double().logsumexp(1) * guidance(features).double().mean(1)


def knn_entropy(train: FitData, options: Options) -> Score:
    """`knn` and `entropy`, each less its mean and over its deviation on training images, added; any real number.

    One looks at the features and one at the logits, and they err on different images. Equal weights, fixed in advance.
    A sample of up to SAMPLE training images gives the means and deviations.
    """
    parts = []
    some = train.take(images.sample(train.labels.cpu(), SAMPLE))
    for fit in (knn, entropy):
        score = fit(train, options)
        known = score(some.logits, some.features)
        parts.append((score, known.mean(), known.std().clamp_min(1e-12)))
    return lambda logits, features: torch.stack(
        [(score(logits, features) - mean) / std for score, mean, std in parts]
    ).sum(0)


SCORES: dict[str, Callable[[FitData, Options], Score]] = {
    "max_logit": max_logit,
    "max_softmax": max_softmax,
    "energy": energy,
    "entropy": entropy,
    "generalized_entropy": generalized_entropy,
    "margin": margin,
    "knn": knn,
    "mahalanobis": mahalanobis,
    "relative_mahalanobis": relative_mahalanobis,
    "vim": vim,
    "fdbd": fdbd,
    "nnguide": nnguide,
}
OF_LOGITS = (
    "max_logit",
    "max_softmax",
    "energy",
    "entropy",
    "generalized_entropy",
    "margin",
)  # these look at no features


class _Softmax(NamedTuple):
    log_p: Tensor  # (N, K) log probabilities, descending
    log_rest: Tensor  # (N,) log((1 - p) / p) of the largest


def _softmax(logits: Tensor) -> _Softmax:
    """Softmax in float64 that keeps what p -> 1 rounds away.

    exp(log_rest) is the weight of the other classes against the largest, so log p = -log(1 + exp(log_rest)): never a
    difference of nearly equal numbers.
    """
    ordered = logits.double().sort(dim=1, descending=True).values
    gaps = ordered - ordered[:, :1]
    log_rest = gaps[:, 1:].logsumexp(1)
    return _Softmax(gaps - F.softplus(log_rest)[:, None], log_rest)


class _Found(NamedTuple):
    values: Tensor  # (n, k) similarities, descending
    indices: Tensor  # (n, k) of the training images that have them


def _bank(train: FitData, of: Callable[[FitData], Tensor]) -> Callable[[], Iterable[Tensor]]:
    """What is searched for neighbours: the rows (n, D) that `of` makes of each block of training images. They are kept,
    unless they are of several blocks on disk: those are made anew each time.
    """
    if len(train.parts()) > 1 and images.on_disk(train.features):
        return lambda: map(of, train.blocks())
    kept = [of(block) for block in train.blocks()]
    return lambda: kept


@torch.no_grad()
def _nearest(features: Tensor, bank: Callable[[], Iterable[Tensor]], k: int) -> _Found:
    """The `k` rows of the bank that are most like each of the `features` (N, D) scaled to length 1."""
    best, start = None, 0
    asked = F.normalize(features.float(), dim=1)
    for rows in (part for block in bank() for part in block.split(SEARCHED)):
        parts = [(some @ rows.T).topk(min(k, len(rows)), dim=1) for some in asked.split(QUERIES)]
        found = _Found(*(torch.cat(part) for part in zip(*parts, strict=True)))
        found = found._replace(indices=found.indices + start)
        if best is None:
            best = found
        else:
            values, indices = (torch.cat(pair, 1) for pair in zip(best, found, strict=True))
            kept = values.topk(min(k, values.shape[1]), dim=1)
            best = _Found(kept.values, indices.gather(1, kept.indices))
        start += len(rows)
    assert best is not None  # a training set has images
    return best


def _mean(train: FitData, of: Callable[[FitData], Tensor]) -> Tensor:
    """The mean over the training images of what `of` makes of each: (n, ...) of a block of n."""
    return _sum(train, lambda block: of(block).sum(0)) / len(train.labels)


def _sum(train: FitData, of: Callable[[FitData], Tensor]) -> Tensor:
    """What `of` makes of each block of training images, added up."""
    return reduce(operator.add, map(of, train.blocks()))


def _linear_head(train: FitData) -> tuple[Tensor, Tensor]:
    """The classifier's last layer from what it did: weights W (K, D), and ViM's origin o (D,) = -pinv(W) bias.

    Logits are W h + bias exactly, so least squares on the training images give both back; where features are
    dependent, the solution of the smallest norm.
    """
    dimension = train.features.shape[1]
    centre = _mean(train, lambda block: block.features.double())
    middle = _mean(train, lambda block: block.logits.double())

    def triangle(rows: Tensor) -> Tensor:
        return torch.linalg.qr(rows, mode="r").R  # D + K rows at most, with the same solution

    def centred(block: FitData) -> Tensor:
        rows = torch.cat([block.features.double() - centre, block.logits.double() - middle], 1)
        return rows if len(train.parts()) == 1 else triangle(rows)

    blocks = map(centred, train.blocks())
    rows = reduce(lambda one, other: triangle(torch.cat([one, other])), blocks).cpu()  # CUDA has no gelsd
    noise = torch.finfo(rows.dtype).eps * max(len(train.labels), dimension)  # relative; torch's own, of all the rows
    solution = torch.linalg.lstsq(rows[:, :dimension], rows[:, dimension:], rcond=noise, driver="gelsd").solution
    weights = solution.T.to(centre.device)
    bias = middle - weights @ centre
    return weights, -torch.linalg.pinv(weights) @ bias


def _class_means(train: FitData) -> tuple[Tensor, Callable[[FitData], Tensor]]:
    """Means (C, D) of the classes that occur, and what gives each feature of a block less its class's mean (n, D)."""
    classes, sizes = train.labels.unique(return_counts=True)

    def member(block: FitData) -> Tensor:
        return torch.searchsorted(classes, block.labels)

    def sums(block: FitData) -> Tensor:
        features = block.features.double()
        return features.new_zeros(len(classes), features.shape[1]).index_add_(0, member(block), features)

    means = _sum(train, sums) / sizes[:, None]
    return means, lambda block: block.features.double() - means[member(block)]


def _covariance(train: FitData, centred: Callable[[FitData], Tensor]) -> Tensor:
    """(D, D), of the rows (n, D) that `centred` makes of a block."""

    def products(block: FitData) -> Tensor:
        rows = centred(block)
        return rows.T @ rows

    return _sum(train, products) / len(train.labels)


def _whitening(train: FitData, centred: Callable[[FitData], Tensor]) -> Tensor:
    """A matrix W (D, R) with W W' the pseudo-inverse of the covariance of `centred` features.

    Directions with under 1e-10 of the largest variance (a dead unit, or float32 rounding of dependent ones) are left
    out: their inverse would swamp all others.
    """
    values, vectors = torch.linalg.eigh(_covariance(train, centred))
    kept = values > 1e-10 * values[-1]
    return vectors[:, kept] / values[kept].sqrt()


def _squared_distances(features: Tensor, means: Tensor, whiten: Tensor) -> Tensor:
    """(N, C) squared Mahalanobis distances of `features` (N, D) from `means` (C, D)."""
    distances = torch.cdist(
        features.double() @ whiten, means @ whiten, compute_mode="donot_use_mm_for_euclid_dist"
    )  # the matrix-product form cancels when a point is near its mean
    return distances.square()
