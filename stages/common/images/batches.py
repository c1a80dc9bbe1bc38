"""From a set's uint8 images to batches of floats on a device."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

BATCH_SIZE = 500  # of evaluation; small enough for the maps of one layer to stay near the cache


def to_float(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 images (N, C, H, W) -> float32 in [0, 1], channels_last, on `device`."""
    return images.to(device).to(torch.float32, memory_format=torch.channels_last).div_(255)


def batches(images: Tensor, *labels: Tensor, device: torch.device, description: str) -> Iterator[tuple[Any, ...]]:
    """Yield (slice, float images, *labels) over uint8 `images` in order, with a progress bar."""
    with progress(len(images), description) as bar:
        for start in range(0, len(images), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            yield (part, to_float(images[part], device), *(tensor[part].to(device) for tensor in labels))
            bar.update(min(BATCH_SIZE, len(images) - start))


def progress(total: int, description: str, unit: str = "img") -> "tqdm[Any]":
    """A progress bar on a terminal, silence elsewhere (stages print plain lines there)."""
    return tqdm(total=total, desc=description, unit=unit, leave=False, disable=not sys.stderr.isatty())
