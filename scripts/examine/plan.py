"""How many images an examination can take in a given time: what it costs is rehearsed, not guessed.

A rehearsal goes through the very same attacks and checks with a model of no cost, which withstands them all, and counts
its passes. The model itself is timed on one batch. Weaker attacks are never the way to save time: fewer images are.
"""

import bisect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scripts.examine import measure
from stages.common import attacks, device, images
from stages.common.audit.verdicts import figures_of, judge
from stages.common.images import ImageSet
from stages.common.models import Classifier, frozen
from stages.common.params import Params

REHEARSED = 16  # images
FEWEST = 10  # images below which an interval says nothing
SLACK = 1.1  # what is neither a forward nor a backward pass


class Rehearsal(Classifier):
    """Tells dark images from bright ones, by far; any number of classes; a linear layer and a stage to be looked at."""

    def __init__(self, channels: int, classes: Sequence[str]):
        super().__init__(channels, classes)
        self.linear = torch.nn.Linear(2, len(self.classes))
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.fill_(-100.0)
            self.linear.weight[:2] = torch.tensor([[-10.0, 0.1], [10.0, 0.1]])
            self.linear.bias[:2] = torch.tensor([5.0, -5.0])

    def maps(self, images: Tensor) -> list[Tensor]:
        mean = self.normalize(images).mean(1, keepdim=True)
        return [torch.cat([mean, mean], 1)]

    def pool(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))

    def head(self, features: Tensor) -> Tensor:
        return self.linear(features)


@dataclass(frozen=True)
class Speed:
    """Seconds that one image takes: its gradient, and a plain pass."""

    gradient: float
    plain: float


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


@dataclass(frozen=True)
class Cost:
    """What one examined image takes at most: gradients and plain passes, and Square's queries for the first few."""

    gradients: float
    passes: float
    square_images: int
    square_queries: int

    def passes_of(self, count: int) -> tuple[float, float]:
        """Gradients and plain passes of so many images."""
        return count * self.gradients, count * self.passes + min(count, self.square_images) * self.square_queries

    def seconds(self, count: int, speed: Speed) -> float:
        gradients, passes = self.passes_of(count)
        return SLACK * (gradients * speed.gradient + passes * speed.plain)


def rehearse(knobs: Params, classes: Sequence[str], ood: bool) -> Cost:
    """What an examination of each image costs, with the detectors if `ood`."""
    nearest = knobs.ood_eval.model_copy(update={"neighbours": 1, "guides": 1})  # there are few images to be near
    knobs = knobs.model_copy(update={"ood_eval": nearest})
    model = Rehearsal(1, classes).eval()
    labels = torch.arange(REHEARSED) % 2
    pixels = (labels.view(-1, 1, 1, 1) * 255).to(torch.uint8).expand(-1, 1, 8, 8).contiguous()
    image_set = ImageSet(pixels, labels, list(classes))
    quick = replace(measure.subject(knobs, model, image_set, 1), square_queries=1, square_images=1)
    with Passes(model).counted() as found:
        figures_of(quick, list(judge(quick)))
        measure.accuracies(quick)
        measure.targeted(quick)
        if ood:
            known, inside = measure.halves(image_set)
            measure.detect(knobs, model, known, inside, image_set)
    square = knobs.audit.square_images, knobs.audit.square_queries
    return Cost(found.gradient / REHEARSED, found.plain / REHEARSED, *square)


def timed(model: Classifier, image_set: ImageSet) -> Speed:
    """How fast the model is on one batch of these images, warm."""
    batches = images.batches(image_set.images, image_set.labels, device=device.of(model), description="timed")
    _, _, x, y = next(batches)

    def seconds(call: Any) -> float:
        call()
        start = time.perf_counter()
        float(call().sum())  # a number: the device has finished
        return (time.perf_counter() - start) / len(x)

    with frozen(model):
        gradient = seconds(lambda: attacks.input_gradient(model, x, y))
        with torch.no_grad():
            return Speed(gradient, seconds(lambda: model(x)))


def affordable(cost: Cost, speed: Speed, seconds: float, limit: int) -> int:
    """The most images, up to `limit`, that take no more than `seconds`."""
    return bisect.bisect_right(range(1, limit + 1), seconds, key=lambda count: cost.seconds(count, speed))


def said(seconds: float) -> str:
    """A time for a person: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
