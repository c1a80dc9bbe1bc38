"""Common corruptions of images (Hendrycks and Dietterich 2019), made on the fly: what a model meets with no attacker.

Six of the fifteen kinds of CIFAR-10-C: two of its noises, a blur, and three digital ones; none of weather. Each has
five severities, with the constants of the authors' `make_cifar_c.py`, which are meant for 32x32 pixels and kept at
every size: the blur, which reaches one pixel, shows less on a larger image, and on one of 8x8 two severities of
`pixelate` may be the same. CIFAR-10-C's images are cut down to whole 255ths; these are not, but for JPEG's.

A corruption takes float32 images (N, C, H, W) in [0, 1] on the CPU, so that the same ones are made whatever device the
model is on; a constant; and a generator, which only noise draws from. It returns images of that shape, whose pixels may
lie outside [0, 1] until `corrupt` clamps them.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages.common import device, images, models
from stages.common.images import Batch, ImageSet
from stages.common.seeds import seed_of

SEVERITIES = (1, 2, 3, 4, 5)
CPU = torch.device("cpu")
REACH = 2  # pixels that a defocused point spreads to: one by the largest disk, one by what smooths its edge


def gaussian_noise(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """x + n, with normal n of standard deviation `scale` for each pixel and channel."""
    return x + scale * torch.randn(x.shape, generator=generator)


def shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Poisson(photons x) / photons: `photons` reach a white pixel on average, and each one is counted."""
    return torch.poisson(x * photons, generator) / photons


def defocus_blur(x: Tensor, lens: tuple[float, float], _: torch.Generator) -> Tensor:
    """Each channel under the point spread of `lens`, see `disk`, mirrored at the border without its last row."""
    planes = F.pad(x.flatten(0, 1).unsqueeze(1), (REACH,) * 4, mode="reflect")
    return F.conv2d(planes, disk(*lens).view(1, 1, 2 * REACH + 1, 2 * REACH + 1)).view(x.shape)


def disk(radius: float, smoothing: float) -> Tensor:
    """A disk of up to 1.5 pixels under a Gaussian of 3x3 pixels, of standard deviation `smoothing`: (5, 5), sum 1."""
    squares = torch.arange(-REACH, REACH + 1).square()
    sharp = (squares + squares.unsqueeze(1) <= radius**2).float()
    bell = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * smoothing**2))
    smooth = F.conv2d(sharp.view(1, 1, *sharp.shape), torch.outer(bell, bell).view(1, 1, 3, 3), padding=1)
    return (smooth / smooth.sum()).view(sharp.shape)


def contrast(x: Tensor, share: float, _: torch.Generator) -> Tensor:
    """`share` of each pixel's distance from the mean of its channel in its image."""
    means = x.mean((2, 3), keepdim=True)
    return (x - means) * share + means


def pixelate(x: Tensor, share: float, _: torch.Generator) -> Tensor:
    """As from int(share H) x int(share W) pixels: each block that becomes one of these is its mean."""
    height, width = x.shape[2:]
    return block_means(height, int(share * height)) @ x @ block_means(width, int(share * width)).T


def block_means(size: int, blocks: int) -> Tensor:
    """What takes a line of pixels to the means of its blocks, in place of every pixel of each: (size, size).

    A pixel belongs to the block that its middle falls into, as with PIL's box filter down and up again.
    """
    block = (2 * torch.arange(size) + 1) * blocks // (2 * size)
    member = F.one_hot(block, blocks).float()
    return member @ (member / member.sum(0)).T


def jpeg(x: Tensor, quality: int, _: torch.Generator) -> Tensor:
    """Through PIL's JPEG encoder and back, one image after another: it takes no batch.

    Raises ValueError for images that are neither grey nor RGB.
    """
    if x.shape[1] not in (1, 3):
        raise ValueError(f"JPEG holds images of 1 or 3 channels, got {x.shape[1]}: leave `jpeg` out of the kinds")
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = [_through_jpeg(image.squeeze(2) if x.shape[1] == 1 else image, quality) for image in pixels]
    return images.to_float(torch.from_numpy(np.stack(decoded).reshape(pixels.shape)).permute(0, 3, 1, 2))


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """A uint8 image (H, W) or (H, W, 3) as it comes out of a file of `quality`, 1 to 95."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


class Corruption(NamedTuple):
    """What is done to float32 images, and the constant of each of SEVERITIES."""

    apply: Callable[[Tensor, Any, torch.Generator], Tensor]
    constants: tuple[Any, ...]


CORRUPTIONS = {  # names and constants of CIFAR-10-C, which calls the last one jpeg_compression
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50)),
    "defocus_blur": Corruption(defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": Corruption(jpeg, (80, 65, 58, 50, 40)),
}


def corrupt(pixels: Tensor, kind: str, severity: int, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), uint8 or float in [0, 1], on the CPU, under one of CORRUPTIONS: float32 in [0, 1].

    Their layout in memory makes no difference. Raises ValueError for a severity that is none of SEVERITIES, and as
    `jpeg` does.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {SEVERITIES}, got {severity}")
    x = (images.to_float(pixels) if pixels.dtype == torch.uint8 else pixels.float()).contiguous()
    corruption = CORRUPTIONS[kind]
    return corruption.apply(x, corruption.constants[severity - 1], generator).clamp(0, 1)


def seeded(kind: str, severity: int, seed: int, batch: int = 0) -> torch.Generator:
    """The generator of one kind at one severity for the batch of that number: what it draws depends on no other."""
    own = [batch] if batch else []
    return torch.Generator().manual_seed(seed_of(seed, kind, severity, *own))


def correct(model: nn.Module, image_set: ImageSet, kinds: Sequence[str], *, seed: int) -> Tensor:
    """Which images the model classifies correctly under each of `kinds` and SEVERITIES: bool (kinds, severities, N).

    With one seed every model is shown the same images. Raises ValueError as `jpeg` does.
    """
    return torch.stack(
        [torch.stack([_correct(model, image_set, kind, severity, seed) for severity in SEVERITIES]) for kind in kinds]
    )


def _correct(model: nn.Module, image_set: ImageSet, kind: str, severity: int, seed: int) -> Tensor:
    """One row of `correct`: bool (N,)."""
    where = device.of(model)

    def right(batch: Batch) -> Tensor:
        generator = seeded(kind, severity, seed, batch.number)
        shown = corrupt(batch.x, kind, severity, generator).contiguous(memory_format=torch.channels_last)
        return model(shown.to(where)).argmax(1).cpu() == batch.y

    with models.frozen(model), torch.no_grad():
        described = f"{kind} {severity}"
        found = images.each_batch(right, image_set.images, image_set.labels, device=CPU, description=described)
    return images.joined(found, torch.bool)
