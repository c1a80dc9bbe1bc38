"""The prepared sets, read through memory maps: what is not looked at takes no memory."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.images import maps
from stages.common.images.batches import moved

RESIDENT = 0.25  # of a GPU's free memory that training images may take


class ImageSet(NamedTuple):
    """uint8 images (N, C, H, W) on the CPU, int64 labels (N,) and the class names that labels index."""

    images: Tensor
    labels: Tensor
    classes: list[str]

    def __len__(self) -> int:  # the number of images, not of fields
        return len(self.images)

    def take(self, chosen: Tensor) -> "ImageSet":
        """The images at the indices `chosen`, in that order."""
        return ImageSet(maps.take(self.images, chosen), self.labels[chosen], self.classes)


class Feed:
    """Training images for `device`, by their numbers: on a GPU that has room for them they lie there, so that no step
    waits for a copy; elsewhere they are taken as they are asked for.
    """

    def __init__(self, image_set: ImageSet, device: torch.device):
        self.device, self._set = device, image_set
        self._there = image_set.images.to(device) if self._fits() else None
        self._labels = image_set.labels.to(device)

    def __len__(self) -> int:
        return len(self._set)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The uint8 images (n, C, H, W) and the labels (n,) at the indices `chosen`, both on the device."""
        numbers = moved(chosen, self.device)
        if self._there is not None:
            return self._there[numbers], self._labels[numbers]
        return moved(maps.take(self._set.images, chosen), self.device), self._labels[numbers]

    def _fits(self) -> bool:
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        return self._set.images.numel() < RESIDENT * free


def read(name: str | Path) -> ImageSet:
    """A prepared set: train, val, test, ood or extra, or a path. Raises UserError if it is missing or damaged."""
    path = artifacts.PREPARED / f"{name}.npz" if Path(name).suffix == "" else Path(name)
    arrays = artifacts.read_arrays(path)
    if not {"images", "labels", "classes"} <= arrays.keys():
        raise UserError(f"{path} lacks images, labels or classes; delete it and run `dvc repro`")
    images, labels, classes = arrays["images"], arrays["labels"], arrays["classes"]
    kinds = (images.dtype, images.ndim, labels.dtype, labels.shape, classes.ndim)
    wanted = (np.dtype(np.uint8), 4, np.dtype(np.int64), (len(images),), 1)
    if kinds != wanted or not np.isin(labels, np.arange(len(classes))).all():
        raise UserError(f"{path} holds no images with labels and class names; delete it and run `dvc repro`")
    return ImageSet(maps.as_tensor(images), torch.from_numpy(labels), [str(name) for name in classes])


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
