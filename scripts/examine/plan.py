"""How many images an examination can take in a given time: what it costs is rehearsed, not guessed.

A rehearsal goes through the very same attacks and checks with a model of no cost, which withstands them all, and counts
its passes. The model itself is timed on one batch. Weaker attacks are never the way to save time: fewer images are.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scripts.examine import measure
from stages.common.audit.verdicts import figures_of, judge
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.pace import Passes, Speed
from stages.common.params import Params

REHEARSED = 16  # images
FEWEST = 10  # images below which an interval says nothing


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
        return speed.seconds(*self.passes_of(count))


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


def affordable(cost: Cost, speed: Speed, seconds: float, limit: int) -> int:
    """The most images, up to `limit`, that take no more than `seconds`."""
    return bisect.bisect_right(range(1, limit + 1), seconds, key=lambda count: cost.seconds(count, speed))
