"""The strongest attack of the audit, on a whole set: PGD from several starts, then every margin of what they leave.

There is one such attack, whoever asks for it: the audit's checks and figures, and the stage that tells images apart.
Images and results are on the CPU. What an image is taken for is an int64, its own label while it stands; what is wrong
already is not attacked.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.common import attacks, device, images, robustness
from stages.common.audit.margins import MARGIN_CLASSES, multi_targeted
from stages.common.images import Batch, ImageSet


class Found(NamedTuple):
    """What each image is taken for, int64 (N,): after PGD from the last of the starts, and after the margins too."""

    restarted: Tensor
    strongest: Tensor


def strongest_attack(
    model: nn.Module, image_set: ImageSet, eps: float, first: Tensor, *, steps: int, restarts: int, seed: int
) -> Found:
    """The whole of it at `eps` by the L-infinity norm, `steps` a start and a class.

    `first`, (N,), is what the images are taken for under PGD from the first of the `restarts` starts, that of `seed`
    (`by_pgd` finds it): who asks for the strongest attack has looked at that one before.
    """
    others = range(seed + 1, seed + restarts)
    restarted = by_pgd(model, image_set, eps, first, steps=steps, seeds=others)
    return Found(restarted, by_margins(model, image_set, eps, restarted, steps=steps, seed=seed))


def by_pgd(
    model: nn.Module,
    image_set: ImageSet,
    eps: float,
    taken: Tensor,
    *,
    steps: int,
    seeds: Iterable[int],
    norm: type[attacks.Ball] = attacks.Linf,
) -> Tensor:
    """What images that were `taken`, (N,), for this or that are taken for after PGD from a start a seed, in turn: each
    attacks what the ones before left.
    """
    found, described = taken.clone(), f"audit: PGD-{steps} at {eps:.3g}"
    for seed in seeds:
        chosen = standing(found, image_set)
        found[chosen] = robustness.pgd_predictions(
            model, image_set.take(chosen), eps, steps=steps, seed=seed, norm=norm, description=described
        )
    return found


def by_margins(model: nn.Module, image_set: ImageSet, eps: float, taken: Tensor, *, steps: int, seed: int) -> Tensor:
    """The same after the attack on the margin to each likely wrong class, see `margins`."""

    def answered(batch: Batch) -> Tensor:
        generator = batch.generator(seed)
        attacked = multi_targeted(
            model, batch.x, batch.y, eps, classes=MARGIN_CLASSES, steps=steps, generator=generator
        )
        return attacks.answers(model, attacked)

    found, chosen, where = taken.clone(), standing(taken, image_set), device.of(model)
    left, described = image_set.take(chosen), f"audit: margins at {eps:.3g}"
    each = images.each_batch(answered, left.images, left.labels, device=where, description=described)
    found[chosen] = images.joined(each, torch.int64)
    return found


def standing(taken: Tensor, image_set: ImageSet) -> Tensor:
    """The indices of the images that are taken for what they are: int64 (n,)."""
    return (taken == image_set.labels).nonzero().squeeze(1)
