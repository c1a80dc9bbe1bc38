"""From a set's uint8 images to batches of floats on a device."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from stages.common.images import maps

BATCH_SIZE = 500  # of evaluation, in images of 32x32 pixels: the maps of one layer stay near the cache


def to_float(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 images (N, C, H, W) -> float32 in [0, 1], channels_last, on `device`."""
    return images.to(device).to(torch.float32, memory_format=torch.channels_last).div_(255)


def batch_size(images: Tensor) -> int:
    """How many of `images` (N, C, H, W) are evaluated at once: fewer of those above 32x32, in proportion to pixels."""
    return max(1, BATCH_SIZE * 32 * 32 // max(32 * 32, images.shape[-2] * images.shape[-1]))


def batches(images: Tensor, *labels: Tensor, device: torch.device, description: str) -> Iterator[tuple[Any, ...]]:
    """Yield (slice, float images, *labels) over uint8 `images` in order, with a progress bar."""
    size = batch_size(images)
    with progress(len(images), description) as bar:
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            x = to_float(images[part], device)
            maps.give_back(images[part])
            yield (part, x, *(tensor[part].to(device) for tensor in labels))
            bar.update(len(x))


def progress(total: int, description: str, unit: str = "img") -> "tqdm[Any]":
    """A progress bar on a terminal, silence elsewhere (stages print plain lines there)."""
    return tqdm(total=total, desc=description, unit=unit, leave=False, disable=not sys.stderr.isatty())
