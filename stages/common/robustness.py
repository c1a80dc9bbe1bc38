"""A classifier under attack on a whole set: which predictions it makes, which images survive.

Images and results are on the CPU; batches go to where the model is, and come back. Labels are int64 (N,), budgets are
in pixels of [0, 1], by the L-infinity norm where no other is named.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.common import attacks, device, evaluation, images
from stages.common.images import Batch, ImageSet
from stages.common.models import frozen


def fgsm_predictions(
    model: nn.Module, image_set: ImageSet, epsilons: Sequence[float], *, target: int | None = None
) -> Tensor:
    """Predictions int64 (len(epsilons), N) under FGSM at each budget, away from the labels or to class `target`."""
    labels = image_set.labels if target is None else torch.full_like(image_set.labels, target)

    def swept(batch: Batch) -> Tensor:
        return attacks.fgsm_sweep(model, batch.x, batch.y, epsilons, targeted=target is not None).cpu()

    found = images.each_batch(swept, image_set.images, labels, device=device.of(model), description="FGSM")
    return images.joined(found, torch.int64, len(epsilons))


def target_rate(predicted: Tensor, labels: Tensor, target: int) -> Tensor:
    """The share of the images of other classes that are taken for `target`, of predictions (k, N): float64 (k,)."""
    return hits(predicted, labels, target).double().mean(1)


def hits(predicted: Tensor, labels: Tensor, target: int) -> Tensor:
    """Which of the M images of other classes are taken for `target`, of predictions (k, N): bool (k, M)."""
    return predicted[:, labels != target] == target


def pgd_predictions(
    model: nn.Module,
    image_set: ImageSet,
    eps: float,
    *,
    steps: int,
    seed: int,
    climbed: attacks.Climbed = attacks.loss_of,
    norm: type[attacks.Ball] = attacks.Linf,
    description: str = "PGD",
) -> Tensor:
    """Predictions int64 (N,) under PGD at `eps`, a budget in `norm`.

    It is `attacks.pgd`, but for what is broken on the way, which counts and is left alone from then on.
    """

    def answered(batch: Batch) -> Tensor:
        generator = batch.generator(seed)
        attacked = attacks.pgd_until_broken(
            model, batch.x, batch.y, eps, steps=steps, climbed=climbed, generator=generator, norm=norm
        )
        return attacks.answers(model, attacked)

    where = device.of(model)
    found = images.each_batch(answered, image_set.images, image_set.labels, device=where, description=description)
    return images.joined(found, torch.int64)


def logits(model: nn.Module, image_set: ImageSet, eps: float, *, steps: int, seed: int) -> dict[str, Tensor]:
    """Logits (N, K) of the images, and of what `attacks.pgd` at `eps` makes of them: clean and pgd.

    Every image is attacked to the end: where `pgd_predictions` stops, at the first error, no model is sure of itself.
    """

    def answered(batch: Batch) -> Tensor:
        pgd = attacks.pgd(model, batch.x, batch.y, eps, steps=steps, generator=batch.generator(seed))
        with frozen(model), torch.no_grad():
            laid = (x.contiguous(memory_format=torch.channels_last) for x in (batch.x, pgd))
            return torch.stack([model(x).cpu() for x in laid])

    where = device.of(model)
    found = images.each_batch(answered, image_set.images, image_set.labels, device=where, description="PGD")
    return dict(zip(("clean", "pgd"), torch.cat(found, 1), strict=True))


def pgd_survivors(model: nn.Module, image_set: ImageSet, epsilons: Sequence[float], *, steps: int, seed: int) -> Tensor:
    """Which images survive PGD at each budget and at all smaller ones: bool (len(epsilons), N), budgets ascending.

    What a small budget breaks, a larger one breaks too: only the survivors are attacked again, so a sweep over a model
    with no robustness costs little more than its first budget.
    """
    survive = torch.empty(len(epsilons), len(image_set), dtype=torch.bool)
    alive = evaluation.predictions(model, image_set.images) == image_set.labels
    for row, eps in enumerate(epsilons):
        attacked = alive.nonzero().squeeze(1)
        if eps > 0 and len(attacked):
            chosen = image_set.take(attacked)
            description = f"PGD at {eps:.3g}"
            predicted = pgd_predictions(model, chosen, eps, steps=steps, seed=seed, description=description)
            alive[attacked] = predicted == chosen.labels
        survive[row] = alive
    return survive
