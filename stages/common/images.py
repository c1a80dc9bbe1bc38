"""From prepared arrays to batches of float images on the right device, and augmentation of whole sets at once."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.models import Classifier

BATCH_SIZE = 500  # of evaluation; small enough for the maps of one layer to stay near the cache


class ImageSet(NamedTuple):
    """uint8 images (N, C, H, W) on the CPU, int64 labels (N,) and the class names that labels index."""

    images: Tensor
    labels: Tensor
    classes: list[str]

    def __len__(self) -> int:  # the number of images, not of fields
        return len(self.images)

    def take(self, chosen: Tensor) -> "ImageSet":
        """The images at the indices `chosen`, in that order."""
        return ImageSet(self.images[chosen], self.labels[chosen], self.classes)


def read(name: str | Path) -> ImageSet:
    """A prepared set: train, val, test or ood, or a path. Raises UserError if it is missing or damaged."""
    path = artifacts.PREPARED / f"{name}.npz" if Path(name).suffix == "" else Path(name)
    arrays = artifacts.read_arrays(path)
    if not {"images", "labels", "classes"} <= arrays.keys():
        raise UserError(f"{path} lacks images, labels or classes; delete it and run `dvc repro`")
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    return ImageSet(images, labels, [str(name) for name in arrays["classes"]])


def by_prefix(image_set: ImageSet) -> dict[str, ImageSet]:
    """A set whose classes are named <set>/<class>, taken apart: each set's images, with labels and names of its own."""
    parts = {}
    for prefix in dict.fromkeys(name.split("/")[0] for name in image_set.classes):
        members = [i for i, name in enumerate(image_set.classes) if name.split("/")[0] == prefix]
        chosen = image_set.take(torch.isin(image_set.labels, torch.tensor(members)).nonzero().squeeze(1))
        renamed = torch.searchsorted(torch.tensor(members), chosen.labels)
        names = [image_set.classes[i].removeprefix(f"{prefix}/") for i in members]
        parts[prefix] = ImageSet(chosen.images, renamed, names)
    return parts


def device(name: str) -> torch.device:
    """The torch device of the parameter `device`: auto takes CUDA, then MPS, then the CPU.

    Raises UserError when the named device is not on this machine.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    _keep_freed_memory()
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if not present[name]:
        there = ", ".join(kind for kind, is_there in present.items() if is_there)
        raise UserError(f"params.yaml: device = {name!r}: this machine has {there}; `auto` takes what is there")
    return torch.device(name)


def bfloat16(precision: str, device: torch.device | str) -> bool:
    """Whether a training step runs in bfloat16: as told, or with `auto` where the device has instructions for it.

    On a CPU that has them (AVX-512 BF16, AMX) a step takes 0.6 of the time; one without them emulates, far slower.
    """
    if precision != "auto":
        return precision == "bfloat16"
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: otherwise each batch's large maps go back to the system and come back as page
    faults, a fifth of the time of a training step. Elsewhere (macOS, Windows, musl) nothing is done.
    """
    if sys.platform != "linux":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)
        libc.mallopt(mmap_max, 0)


def to_float(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 images (N, C, H, W) -> float32 in [0, 1], channels_last, on `device`."""
    return images.to(device).to(torch.float32, memory_format=torch.channels_last).div_(255)


def first_per_class(labels: Tensor, count: int) -> Tensor:
    """Indices (count,) of images spread evenly over the classes: the i-th of each class before any (i + 1)-th.

    Canonical order makes the choice the same everywhere; `count` above the number of images takes them all.
    """
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    rank_in_class = torch.empty_like(labels)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank_in_class[order] = torch.arange(len(labels)) - starts
    spread = torch.argsort(rank_in_class * (int(labels.max()) + 1) + labels)
    return spread[:count].sort().values


def progress(total: int, description: str, unit: str = "img") -> tqdm:
    """A progress bar on a terminal, silence elsewhere (stages print plain lines there)."""
    return tqdm(total=total, desc=description, unit=unit, leave=False, disable=not sys.stderr.isatty())


def batches(images: Tensor, *labels: Tensor, device: torch.device | str, description: str) -> Iterator[tuple]:
    """Yield (slice, float images, *labels) over uint8 `images` in order, with a progress bar."""
    with progress(len(images), description) as bar:
        for start in range(0, len(images), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            yield (part, to_float(images[part], device), *(tensor[part].to(device) for tensor in labels))
            bar.update(min(BATCH_SIZE, len(images) - start))


@torch.no_grad()
def outputs(
    model: Classifier, images: Tensor, *, device: torch.device | str = "cpu", description: str = "forward"
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and features (N, D), float32 on the CPU, of uint8 `images` (N, C, H, W) in one pass."""
    model = model.to(device).eval()
    logits, features = [], []
    for _, batch in batches(images, device=device, description=description):
        features.append(model.features(batch))
        logits.append(model.head(features[-1]))
    return torch.cat(logits).float().cpu(), torch.cat(features).float().cpu()


def predictions(
    model: Classifier, images: Tensor, *, device: torch.device | str = "cpu", description: str = "predict"
) -> Tensor:
    """Predicted labels (N,) of uint8 `images` (N, C, H, W)."""
    return outputs(model, images, device=device, description=description)[0].argmax(1)


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
