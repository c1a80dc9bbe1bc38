"""From a set's uint8 images to batches of floats on a device, and the same work done to each of them."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from stages.common import distributed
from stages.common.images import maps
from stages.common.seeds import seed_of

BATCH_SIZE = 500  # of evaluation, in images of 32x32 pixels: the maps of one layer stay near the cache
T = TypeVar("T")


class Batch(NamedTuple):
    """A part of a set: its number, where it lies in the set, float images `x` (n, C, H, W) and labels `y` (n,) on the
    device; `y` is empty where no labels were given.
    """

    number: int
    part: slice
    x: Tensor
    y: Tensor

    def generator(self, seed: int) -> torch.Generator:
        """Randomness of this batch's own, on its device, so that it does not matter what was drawn for others."""
        own = seed_of(seed, self.number) if self.number else seed
        return torch.Generator(self.x.device).manual_seed(own)


def to_float(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 images (N, C, H, W) -> float32 in [0, 1], channels_last, on `device`."""
    return moved(images, torch.device(device)).to(torch.float32, memory_format=torch.channels_last).div_(255)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; to a GPU from pinned memory, so that neither side waits."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def batch_size(images: Tensor) -> int:
    """How many of `images` (N, C, H, W) are evaluated at once: fewer of those above 32x32, in proportion to pixels."""
    return max(1, BATCH_SIZE * 32 * 32 // max(32 * 32, images.shape[-2] * images.shape[-1]))


def batches(images: Tensor, labels: Tensor | None = None, *, device: torch.device, description: str) -> Iterator[Batch]:
    """Every batch of uint8 `images` and their `labels` in order, with a progress bar."""
    size = batch_size(images)
    with progress(len(images), description) as bar:
        for number in range(-(-len(images) // size)):
            yield _batch(images, labels, number, size, device)
            bar.update(size)


def each_batch(
    function: Callable[[Batch], T],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    device: torch.device,
    description: str,
    size: int | None = None,
) -> list[T]:
    """What `function` makes of every batch, in order: plain values, or tensors that lie on the CPU.

    Of several ranks each one works on batches of its own, whole ones, and all get what came of all. A batch's
    composition and randomness are its own, so the results do not depend on how many ranks there are. `size` is that of
    a batch, `batch_size` if None.
    """
    size = batch_size(images) if size is None else size
    total, mine = -(-len(images) // size), []
    with progress(len(images), description) as bar:
        for number in range(distributed.rank(), total, distributed.count()):
            mine.append(function(_batch(images, labels, number, size, device)))
            bar.update(min(size * distributed.count(), len(images) - bar.n))
    every = distributed.gathered(mine)
    return [every[number % len(every)][number // len(every)] for number in range(total)]


def joined(parts: Sequence[Tensor], dtype: torch.dtype, *rows: int) -> Tensor:
    """What `each_batch` made, (*rows, n) of each batch, side by side: (*rows, N). `dtype` is theirs, since a set of no
    image has no batch to tell it.
    """
    return torch.cat([torch.empty(*rows, 0, dtype=dtype), *parts], -1)


def _batch(images: Tensor, labels: Tensor | None, number: int, size: int, device: torch.device) -> Batch:
    part = slice(number * size, min((number + 1) * size, len(images)))
    x = to_float(images[part], device)
    maps.give_back(images[part])
    y = torch.empty(0, dtype=torch.int64) if labels is None else labels[part]
    return Batch(number, part, x, moved(y, device))


def progress(total: int, description: str, unit: str = "img") -> "tqdm[Any]":
    """A progress bar on a terminal, silence elsewhere (stages print plain lines there)."""
    return tqdm(total=total, desc=description, unit=unit, leave=False, disable=not sys.stderr.isatty())
