"""Randomised smoothing (Cohen 2019): what a classifier answers under noise, how far that is certain, an attack on it.

The smoothed classifier answers the class that a model gives most often to an image under noise N(0, sigma^2) on every
pixel. Noisy pixels are *not* clamped to [0, 1], and the model is the float32 one: a certificate is of exactly what was
counted. It is in L2, holds against every change of that length, and bounds accuracy from below. An attack bounds it
from above, and the truth lies between: where the two bounds cross, one of them is wrong.

Images here are float32 (N, C, H, W) in [0, 1] and labels int64 (N,), both on the model's device; radii are Euclidean
lengths over all pixels of an image. `alpha` is the probability, at most, that an answer of `predict`, or a radius of
`certify`, is wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from stages.common import accuracy, attacks
from stages.common.images import batch_size, progress
from stages.common.models import frozen

LUCK = 0.01  # the probability of what luck is no longer believed to explain
ABSTAINED = -1  # the answer where noise leaves it open
STEPS, NOISES = 10, 8  # of the attack, and draws of noise a step: the most that Salman 2019 trains with


def predict(counts: Tensor, alpha: float) -> Tensor:
    """PREDICT (Cohen 2019): the commonest class of `counts` (N, K), or ABSTAINED, int64 (N,) on the CPU.

    It abstains where a fair coin would lead as clearly between the two commonest classes with a probability above
    `alpha` (two-sided: which of the two leads was not known before).
    """
    (first, second), leading = counts.cpu().topk(2).values.T.numpy(), counts.cpu().argmax(1)
    by_luck = 2 * stats.binom.sf(first - 1, first + second, 0.5)
    return torch.where(torch.from_numpy(by_luck <= alpha), leading, ABSTAINED)


def certify(selected: Tensor, counts: Tensor, *, sigma: float, alpha: float) -> Tensor:
    """CERTIFY (Cohen 2019): the L2 radius within which the smoothed classifier answers `selected`, float64 (N,) on the
    CPU; 0 where it abstains, since `selected` may have less than half of the noise.

    sigma Phi^-1(p), p the lower bound (Clopper and Pearson 1934) of the probability of `selected` (N,), N >= 1, which
    other draws have chosen than those of `counts` (N, K): else the bound would not hold.
    """
    hits = counts.gather(1, selected.unsqueeze(1)).squeeze(1)
    probability = accuracy.clopper_pearson_lower(hits.cpu().numpy(), int(counts[0].sum()), alpha)
    return torch.from_numpy(sigma * stats.norm.ppf(np.maximum(probability, 0.5)))


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """A model under noise. `samples` noisy copies of an image decide about it; `selection_samples` others choose which
    class is certified, and which attacked image is worth a decision.

    Raises ValueError unless sigma > 0, both numbers are at least 1 and alpha lies in (0, 1).
    """

    model: nn.Module
    classes: int
    sigma: float
    samples: int
    selection_samples: int
    alpha: float

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and min(self.samples, self.selection_samples) >= 1 and 0 < self.alpha < 1):
            raise ValueError(
                "smoothing needs sigma > 0, samples and selection_samples of at least 1 and alpha in (0, 1), got "
                f"{self.sigma}, {self.samples}, {self.selection_samples} and {self.alpha}"
            )

    def counts(self, images: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """How often each class is the model's answer to `samples` noisy copies of each image: int64 (N, classes).

        Copies of several images share a batch; what is counted does not depend on where batches end.
        """
        copied = torch.arange(len(images), device=images.device).repeat_interleave(samples)
        counts = torch.zeros(len(images) * self.classes, dtype=torch.int64, device=images.device)
        at_once = batch_size(images)
        with frozen(self.model), torch.no_grad(), progress(len(copied), "noise") as bar:
            for start in range(0, len(copied), at_once):
                chosen = copied[start : start + at_once]
                noise = images.new_empty(len(chosen), *images.shape[1:])
                for copy in noise:  # a draw a copy: one draw for the whole batch would depend on its size
                    copy.normal_(0, self.sigma, generator=generator)
                noisy = noise.add_(images[chosen]).contiguous(memory_format=torch.channels_last)
                cells = chosen * self.classes + self.model(noisy).argmax(1)
                counts += cells.bincount(minlength=len(counts))
                bar.update(len(chosen))
        return counts.view(len(images), self.classes)

    def attack(self, images: Tensor, labels: Tensor, radius: float, generator: torch.Generator) -> Tensor:
        """SmoothAdv (Salman 2019): images of the same shape within `radius` in L2 and in [0, 1].

        PGD with a random start on -log of the true class's softmax, averaged over NOISES draws. Salman keeps the draws
        through all steps; here each step has its own, so that no few of them are overfitted to. The search follows
        `attacks.searching`.
        """
        parts = zip(*(tensor.split(max(1, batch_size(images) // NOISES)) for tensor in (images, labels)), strict=True)
        with frozen(self.model):
            return torch.cat([self._ascended(x, y, radius, generator) for x, y in parts])

    def _ascended(self, images: Tensor, labels: Tensor, radius: float, generator: torch.Generator) -> Tensor:
        repeated = labels.repeat_interleave(NOISES)

        def uphill(attacked: Tensor) -> Tensor:
            shape = (len(repeated), *images.shape[1:])
            noise = self.sigma * torch.randn(shape, generator=generator, device=images.device, dtype=images.dtype)

            def loss(x: Tensor) -> Tensor:
                noisy = (x.repeat_interleave(NOISES, 0) + noise).contiguous(memory_format=torch.channels_last)
                each = F.cross_entropy(self.model(noisy), repeated, reduction="none").view(-1, NOISES)
                return -(-each).logsumexp(1)  # the logarithm of the mean, but for a constant

            return attacks.gradient(loss, attacked, search=True)

        ball = attacks.L2(images, radius)
        return attacks.ascend(uphill, ball, attacks.constant(ball, STEPS), start=ball.start(generator))

    def errs(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Which images the smoothed classifier takes for another class than `labels` for certain: bool (N,) on the CPU.

        Where it abstains it has not been shown to err. A first look of `selection_samples` says which images are worth
        the `samples` that `predict` decides with.
        """
        found = torch.zeros(len(images), dtype=torch.bool)
        looks = (self.counts(images, self.selection_samples, generator).argmax(1) != labels).nonzero().squeeze(1)
        answers = predict(self.counts(images[looks], self.samples, generator), self.alpha)
        found[looks.cpu()] = _wrong(answers, labels[looks].cpu())
        return found


class Bounds(NamedTuple):
    """What is known of the smoothed classifier round each image; all (N,), on the CPU.

    answers: its answer to the clean image, or ABSTAINED, int64.
    lower: the radius within which it is certain to be right, float64; -inf where not even the clean image is certain.
    upper: a radius within which it is seen to err, float64; 0 where it errs on the clean image, inf where it never did.
    """

    answers: Tensor
    lower: Tensor
    upper: Tensor


def bounds(
    smoothed: Smoothed, images: Tensor, labels: Tensor, radii: Sequence[float], generator: torch.Generator
) -> Bounds:
    """Certify each image, N >= 1, and attack it at each of the `radii` above 0, ascending, until it is seen to err.

    The generator lives on the images' device. An image costs selection_samples + samples passes of the model,
    selection_samples + 2 STEPS NOISES at each radius until it errs (a gradient counts twice), and samples for each
    decision on what an attack has made of it. 100 images with 1,000 samples and 100 for selection, attacked at five
    radii: at most 240,000 passes, and 1,000 a decision. Three of four images right and 40 decisions come to 250,000,
    which is reckoned to take under five minutes on two cores: 0.19 GFLOP a pass of whitened_cnn, 170 GFLOP/s.
    Raises ValueError as attacks do: for other shapes, pixels outside [0, 1], a radius that no image can be changed by.
    """
    for radius in (0.0, *radii):
        attacks.check(images, labels, radius, attacks.L2)
    selected = smoothed.counts(images, smoothed.selection_samples, generator).argmax(1)
    counts = smoothed.counts(images, smoothed.samples, generator)
    answers, truth = predict(counts, smoothed.alpha), labels.cpu()
    certified = certify(selected, counts, sigma=smoothed.sigma, alpha=smoothed.alpha)
    lower = torch.where((selected.cpu() == truth) & (certified > 0), certified, -torch.inf)
    upper = torch.where(_wrong(answers, truth), 0.0, torch.inf).double()
    for radius in sorted(radius for radius in radii if radius > 0):
        standing = upper.isinf().nonzero().squeeze(1)
        if len(standing) == 0:
            break
        x, y = (tensor[standing.to(tensor.device)] for tensor in (images, labels))
        erring = smoothed.errs(smoothed.attack(x, y, radius, generator), y, generator)
        upper[standing[erring]] = radius
    return Bounds(answers, lower, upper)


def _wrong(answers: Tensor, labels: Tensor) -> Tensor:
    return (answers != labels) & (answers != ABSTAINED)


def contradicted(found: Bounds) -> Tensor:
    """Which images are seen to err within the radius in which they are certain to be right: bool (N,).

    Each radius and each decision is wrong with probability alpha at most, so hardly an image should be: more than
    `by_chance` say that the certificate, or the attack, is. Where there is none, the two `curves` do not cross.
    """
    return found.lower >= found.upper


def by_chance(images: int, radii: Sequence[float], alpha: float) -> int:
    """Up to how many of `images` may be `contradicted` although nothing is wrong: more have a probability of LUCK at
    most, if each image's radius, and what it is seen to answer at each of `radii`, is wrong with probability alpha.
    """
    return int(stats.binom.ppf(1 - LUCK, images, min(1.0, (1 + len(radii)) * alpha)))


def curves(found: Bounds, radii: Sequence[float], confidence: float) -> Iterator[dict[str, float | str]]:
    """The smoothed classifier's accuracy against the L2 radius, from below and from above: the rows of a table.

    certified: the share of images that are certain to be right within the radius; an abstention is not.
    attacked: the share that no attack within the radius was seen to break; an abstention is not seen to err.
    low and high: the interval of the share at level `confidence`, as of a sample of images.
    """
    for radius in radii:
        for curve, right in {"certified": found.lower >= radius, "attacked": found.upper > radius}.items():
            low, high = accuracy.interval(right, confidence)
            share = float(right.double().mean())
            yield {"radius": radius, "curve": curve, "accuracy": share, "low": low, "high": high}
