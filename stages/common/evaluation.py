"""A classifier, clean and under attack, on a whole prepared set: which predictions it makes, which images survive.

Images and results are on the CPU; batches go to `device` and back. Labels are int64 (N,), budgets pixels of [0, 1].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.common import artifacts, attacks, images, models
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.models import Classifier


def load_both(image_set: ImageSet, device: torch.device | str = "cpu") -> dict[str, Classifier]:
    """The standard and the robust model, by these names, in eval mode on `device`.

    Raises UserError as `models.load_checkpoint` does, and when a model has learnt other classes than `image_set` has.
    """
    both = {}
    for name in ("standard", "robust"):
        path = artifacts.CHECKPOINTS / f"{name}.pt"
        model = models.load_checkpoint(path)
        if model.classes != image_set.classes or len(model.normalize.mean) != image_set.images.shape[1]:
            raise UserError(f"{path} has learnt another data set than data/prepared holds; run `dvc repro`")
        both[name] = model.to(device)
    return both


def accuracy(model: Classifier, image_set: ImageSet, *, device: torch.device | str = "cpu") -> float:
    """The share of `image_set` that `model` classifies correctly, in [0, 1]."""
    predicted = images.predictions(model, image_set.images, device=device, description="evaluate")
    return float((predicted == image_set.labels).double().mean())


def fgsm_predictions(
    model: Classifier,
    image_set: ImageSet,
    epsilons: Sequence[float],
    *,
    target: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Predictions int64 (len(epsilons), N) under FGSM at each budget, away from the labels or to class `target`."""
    labels = image_set.labels if target is None else torch.full_like(image_set.labels, target)
    predicted = torch.empty(len(epsilons), len(image_set), dtype=torch.int64)
    for part, x, y in images.batches(image_set.images, labels, device=device, description="FGSM"):
        predicted[:, part] = attacks.fgsm_sweep(model, x, y, epsilons, targeted=target is not None).cpu()
    return predicted


def pgd_correct(
    model: Classifier,
    image_set: ImageSet,
    eps: float,
    *,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
    description: str = "PGD",
) -> Tensor:
    """Which images are still classified correctly under PGD at `eps`: bool (N,)."""
    generator = torch.Generator(device).manual_seed(seed)
    correct = torch.empty(len(image_set), dtype=torch.bool)
    for part, x, y in images.batches(image_set.images, image_set.labels, device=device, description=description):
        attacked = attacks.pgd(model, x, y, eps, steps=steps, generator=generator)
        with torch.no_grad():
            correct[part] = (model(attacked).argmax(1) == y).cpu()
    return correct


def pgd_survivors(
    model: Classifier,
    image_set: ImageSet,
    epsilons: Sequence[float],
    *,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which images survive PGD at each budget and at all smaller ones: bool (len(epsilons), N), budgets ascending.

    What a small budget breaks, a larger one breaks too: only the survivors are attacked again, so a sweep over a model
    with no robustness costs little more than its first budget.
    """
    survive = torch.empty(len(epsilons), len(image_set), dtype=torch.bool)
    alive = images.predictions(model, image_set.images, device=device) == image_set.labels
    for row, eps in enumerate(epsilons):
        attacked = alive.nonzero().squeeze(1)
        if eps > 0 and len(attacked):
            alive[attacked] = pgd_correct(
                model,
                image_set.take(attacked),
                eps,
                steps=steps,
                seed=seed,
                device=device,
                description=f"PGD at {eps:.3g}",
            )
        survive[row] = alive
    return survive
