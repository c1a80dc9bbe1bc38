"""How long a model will be at work: its passes are counted on a few images and timed on one batch, not guessed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.common import attacks, device, distributed, images
from stages.common.images import ImageSet
from stages.common.models import Classifier, frozen

SLACK = 1.1  # what is neither a forward nor a backward pass
TRIED = 50  # images that work is tried on, so as to say how long it will take on others


@dataclass(frozen=True)
class Speed:
    """Seconds that one image takes: its gradient, and a plain pass."""

    gradient: float
    plain: float

    def seconds(self, gradients: float, passes: float) -> float:
        """What so many images' gradients and plain passes take, with what is between them."""
        return SLACK * (gradients * self.gradient + passes * self.plain)


class Passes:
    """Counts the images that go through a model while it is listened to, with and without their gradient.

    `bar` goes on by the seconds that each pass takes at `speed`.
    """

    def __init__(self, model: Classifier, bar: Any = None, speed: Speed | None = None):
        self.plain, self.gradient = 0, 0
        self._model, self._bar, self._speed = model, bar, speed

    def _count(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        count, followed = len(inputs[0]), torch.is_grad_enabled() and inputs[0].requires_grad
        if followed:
            self.gradient += count
        else:
            self.plain += count
        if self._bar is not None and self._speed is not None:
            self._bar.update(count * (self._speed.gradient if followed else self._speed.plain))

    @contextmanager
    def counted(self) -> Iterator["Passes"]:
        """Every pass of a `Classifier` goes through its normalisation once."""
        handle = self._model.normalize.register_forward_pre_hook(self._count)
        try:
            yield self
        finally:
            handle.remove()


def timed(model: Classifier, image_set: ImageSet) -> Speed:
    """How fast the model is on one batch of these images, warm; gradients as `attacks.searching` has them."""
    batches = images.batches(image_set.images, image_set.labels, device=device.of(model), description="timed")
    _, _, x, y = next(batches)

    def seconds(call: Callable[[], Tensor]) -> float:
        call()
        start = time.perf_counter()
        float(call().sum())  # a number: the device has finished
        return (time.perf_counter() - start) / len(x)

    with frozen(model):
        gradient = seconds(lambda: attacks.input_gradient(model, x, y, search=True))
        with torch.no_grad():
            return Speed(gradient, seconds(lambda: model(x)))


def foreseen(model: Classifier, image_set: ImageSet, work: Callable[[ImageSet], object]) -> float:
    """Seconds that `work` will take on all of these images, which the ranks share: its passes are those on a few."""
    few = image_set.take(images.sample(image_set.labels, TRIED))
    with Passes(model).counted() as passes:
        work(few)
    share = len(image_set) / len(few)
    return timed(model, image_set).seconds(share * passes.gradient, share * passes.plain) / distributed.count()


def said(seconds: float) -> str:
    """A time for a person: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
