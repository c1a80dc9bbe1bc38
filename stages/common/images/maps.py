"""Tensors over maps of files: what was read is given back, so that memory does not grow with the images seen."""

from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from stages.common import arrays

_MAPS: WeakValueDictionary[int, np.memmap] = WeakValueDictionary()  # address of a tensor's memory -> the map it lies on


def as_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor over the same memory; `give_back` knows it if it is a map."""
    tensor = torch.from_numpy(array)
    if isinstance(array, np.memmap):
        _MAPS[tensor.untyped_storage().data_ptr()] = array
    return tensor


def on_disk(tensor: Tensor) -> bool:
    """Whether the tensor lies on the map of a file."""
    return tensor.untyped_storage().data_ptr() in _MAPS


def give_back(images: Tensor) -> None:
    """Let go of the memory that `images` take as a map or a part of one; they are read again when they are looked at.

    A tensor that is no map is left alone, and so is one that was written to.
    """
    if (mapped := _mapped(images)) is not None:
        arrays.give_back(mapped)


def take(images: Tensor, chosen: Tensor) -> Tensor:
    """The images at the indices `chosen` (n,), in that order: in memory or, where they are many, on disk. Of a map,
    images that stand in a row are not copied.
    """
    mapped = _mapped(images)
    if mapped is not None and len(chosen):
        row = slice(int(chosen[0]), int(chosen[0]) + len(chosen))
        if torch.equal(chosen, torch.arange(row.start, row.stop)):
            return images[row]
    return as_tensor(arrays.take(images.numpy() if mapped is None else mapped, chosen.numpy()))


def _mapped(images: Tensor) -> np.ndarray | None:
    """The part of a map that the images are; None if they are none, or if what was written to it would be lost."""
    mapped = _MAPS.get(images.untyped_storage().data_ptr())
    if mapped is None or (mapped.mode == "c" and images._version) or not images.is_contiguous():
        return None
    start = images.storage_offset()
    return mapped.reshape(-1)[start : start + images.numel()].reshape(images.shape)
