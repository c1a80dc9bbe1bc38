"""Augmentation, drawn for a whole epoch and applied to a batch at a time: no loop over images."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Augmentation(NamedTuple):
    """Mirror images and random shifts of up to `translate` pixels over a reflected border, drawn for N images."""

    translate: int
    shifts: Tensor | None  # int64 (N,): which of the (2 translate + 1)^2; None for no shift
    mirrored: Tensor | None  # bool (N,); None for no mirror images

    @classmethod
    def draw(
        cls, order: Tensor, epoch: int, *, flip: bool, translate: int, seed: int, generator: torch.Generator
    ) -> "Augmentation":
        """For the images numbered `order` (N,), each number once, in an epoch counted from 1.

        An image is mirrored in every other epoch (Jordan 2024, alternating flip), half of them in odd ones, as `seed`
        says: two epochs show both sides of each, where independent draws show half of them one side twice.
        """
        count = len(order)
        shifts = torch.randint((2 * translate + 1) ** 2, (count,), generator=generator) if translate else None
        if not flip:
            return cls(translate, shifts, None)
        odd = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
        return cls(translate, shifts, odd[order] ^ (epoch % 2 == 0))

    def to(self, device: torch.device) -> "Augmentation":
        """The same, to be applied to images on `device`."""
        shifts, mirrored = (None if drawn is None else drawn.to(device) for drawn in (self.shifts, self.mirrored))
        return Augmentation(self.translate, shifts, mirrored)

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """What was drawn for the images `part`, uint8 (n, C, H, W), done to them; `images` themselves stay."""
        if self.shifts is not None:
            images = self._shifted(images, self.shifts[part])
        if self.mirrored is not None:
            images = torch.where(self.mirrored[part].view(-1, 1, 1, 1), images.flip(3), images)
        return images

    def _shifted(self, images: Tensor, shifts: Tensor) -> Tensor:
        """Every pixel from where it comes, past the border from its reflection: one gather for all images."""
        count, channels, height, width = images.shape
        side = 2 * self.translate + 1
        rows = _reflected(height, (shifts // side - self.translate).unsqueeze(1))
        columns = _reflected(width, (shifts % side - self.translate).unsqueeze(1))
        places = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(count, 1, -1).expand(-1, channels, -1)
        return images.flatten(2).gather(2, places).view(images.shape)


def _reflected(length: int, moved: Tensor) -> Tensor:
    """Where the places 0 to length - 1 of a line lie that has `moved` (N, 1): int64 (N, length)."""
    places = (torch.arange(length, device=moved.device) + moved).abs()
    return torch.where(places < length, places, 2 * (length - 1) - places)


def resize(images: Tensor, size: int) -> Tensor:
    """Float images (N, C, H, W) in [0, 1] resized to `size` x `size`, antialiased, still in [0, 1]."""
    if images.shape[-2:] == (size, size):
        return images
    small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)
