"""A few images, or parts of images, that stand for a whole set: the one way in which the pipeline takes a sample."""

import torch
from torch import Tensor

from stages.common.arrays import SCATTERED
from stages.common.images import maps

GOLDEN = (5**0.5 - 1) / 2
PLASTIC = 1.324717957244746  # its powers spread points over a plane as the golden ratio's do over a line


def sample(labels: Tensor, count: int) -> Tensor:
    """Indices (count,), ascending, of a fair sample: every class with its share, and each one's whole order covered.

    The order of a prepared set is by the bytes of the images, so the first of a class are those with a dark corner: no
    fair sample. The ranks whose multiple of the golden ratio has the smallest fractional part lie evenly spaced,
    however many are taken (Weyl's sequence), so that a smaller sample is a part of a larger one. Each class starts at
    another place of its order, by the same sequence, so that one image a class is a fair sample too.

    A class of n of the N images of K classes gives at most one image above its share, count n / N, and at most K n / N
    below it. `labels` are int64 (N,); `count` above N takes all.
    """
    sizes = labels.bincount()
    start = (sizes * ((torch.arange(len(sizes)) + 0.5).double() * GOLDEN).frac()).long()
    order = ((_rank_in_class(labels) - start[labels]).double() * GOLDEN).remainder(1).argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    share = _rank_in_class(labels[order]).double() / sizes[labels[order]]
    return order[share.argsort(stable=True)[:count]].sort().values


def windows(images: Tensor, chosen: Tensor, side: int) -> Tensor:
    """A window of at most `side` x `side` pixels of each image at the indices `chosen` (n,): uint8 (n, C, h, w).

    The windows lie evenly spread over the place that larger images have for them.
    """
    height, width = (min(side, length) for length in images.shape[-2:])
    found = images.new_empty(len(chosen), images.shape[1], height, width)
    for rank, index in enumerate(chosen.tolist()):
        down, right = (rank + 1) / PLASTIC % 1, (rank + 1) / PLASTIC**2 % 1
        top, left = int(down * (images.shape[-2] - height + 1)), int(right * (images.shape[-1] - width + 1))
        found[rank] = images[index, :, top : top + height, left : left + width]
        if rank % SCATTERED == 0 or rank == len(chosen) - 1:
            maps.give_back(images)
    return found


def _rank_in_class(labels: Tensor) -> Tensor:
    """How many labels of the same class stand before each one: int64 (N,)."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - starts
    return rank
