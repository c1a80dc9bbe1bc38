"""Augmentation of whole sets at once: no loop over images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, *, flip: bool, translate: int, generator: torch.Generator) -> Tensor:
    """Random mirror images and shifts of up to `translate` pixels over a reflected border; uint8 in, uint8 out.

    Works on the whole set at once: one slice per shift ((2 translate + 1)^2 of them), no loop over images.
    """
    count, _, height, width = images.shape
    if translate:
        padded = F.pad(images.float(), (translate,) * 4, mode="reflect").to(torch.uint8)
        shifts = 2 * translate + 1
        choice = torch.randint(shifts * shifts, (count,), generator=generator)
        images = torch.empty_like(images)
        for shift in range(shifts * shifts):
            chosen = (choice == shift).nonzero().squeeze(1)
            top, left = divmod(shift, shifts)
            images[chosen] = padded[chosen, :, top : top + height, left : left + width]
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images


def resize(images: Tensor, size: int) -> Tensor:
    """Float images (N, C, H, W) in [0, 1] resized to `size` x `size`, antialiased, still in [0, 1]."""
    if images.shape[-2:] == (size, size):
        return images
    small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)
