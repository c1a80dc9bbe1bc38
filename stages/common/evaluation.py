"""A classifier on whole sets of clean images: what it takes them for, and how often it is right.

Images and results are on the CPU; batches go to where the model is, and come back.
"""

import hashlib

import torch
from torch import Tensor, nn

from stages.common import artifacts, device, distributed, images, models
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.models import Classifier

LEARNT = 0.15  # of the way from guessing to all correct on clean images; a model below it is near to constant


def load_both(image_set: ImageSet, where: torch.device) -> dict[str, Classifier]:
    """The standard and the robust model, by these names, in eval mode on the device `where`.

    Raises UserError as `models.load_checkpoint` does, and when a model has learnt other classes than `image_set` has.
    """
    both = {}
    for name in artifacts.MODELS:
        path = artifacts.CHECKPOINTS / f"{name}.pt"
        model = models.load_checkpoint(path)
        distributed.agree(str(path), hashlib.sha256(path.read_bytes()).digest())
        if not fits(model, image_set):
            raise UserError(f"{path} has learnt another data set than data/prepared holds; run `dvc repro`")
        both[name] = model.to(where)
    return both


def fits(model: Classifier, image_set: ImageSet) -> bool:
    """Whether the model is for the classes, the channels and the size of these images."""
    _, channels, _, width = image_set.images.shape
    same = model.classes == image_set.classes and len(model.normalize.mean) == channels
    return same and model.size in (None, width)


def predictions(model: nn.Module, pixels: Tensor, *, description: str = "predict") -> Tensor:
    """Predicted labels int64 (N,) of uint8 images (N, C, H, W)."""
    with models.frozen(model), torch.no_grad():
        found = images.each_batch(
            lambda batch: model(batch.x).argmax(1).cpu(), pixels, device=device.of(model), description=description
        )
    return images.joined(found, torch.int64)


def accuracy(model: nn.Module, image_set: ImageSet) -> float:
    """The share of `image_set` that `model` classifies correctly, in [0, 1]."""
    return accuracies(model, image_set)[0]


def accuracies(model: nn.Module, image_set: ImageSet) -> tuple[float, float]:
    """Accuracy and balanced accuracy, the mean over the classes of each one's accuracy: both in [0, 1].

    They differ where classes differ in size: answering the largest class always gives `chance` and 1 / K.
    """
    right = predictions(model, image_set.images, description="evaluate") == image_set.labels
    return float(right.double().mean()), balanced(image_set.labels, right)


def balanced(labels: Tensor, right: Tensor) -> float:
    """The mean over the classes of `labels` (N,) of the share of each one's images that is `right`, bool (N,)."""
    sizes = labels.bincount()
    by_class = labels.bincount(weights=right.double())[sizes > 0] / sizes[sizes > 0]
    return float(by_class.mean())


def chance(labels: Tensor) -> float:
    """The accuracy of answering the commonest of `labels` always, in (0, 1]: what has to be beaten."""
    return float(labels.bincount().max()) / len(labels)


def near_chance(accuracy: float, chance: float) -> bool:
    """Whether an accuracy is so little above `chance` that the model is near to constant."""
    return accuracy < chance + LEARNT * (1 - chance)
