"""A few images that stand for a whole prepared set."""

import torch
from torch import Tensor

from stages.common import images

GOLDEN = (5**0.5 - 1) / 2


def representative(labels: Tensor, count: int) -> Tensor:
    """Indices (count,), ascending, spread evenly over the classes and, within each, over the order of a prepared set.

    That order is by the bytes of the images, so the first of a class are those with a dark corner: no fair sample. The
    ranks whose multiple of the golden ratio has the smallest fractional part lie evenly spaced, however many are taken
    (Weyl's sequence), so that a smaller sample is a part of a larger one. `count` above the number of images takes all.
    """
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    order = (rank.double() * GOLDEN).frac().argsort(stable=True)
    return order[images.first_per_class(labels[order], count)].sort().values
