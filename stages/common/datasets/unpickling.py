"""The official batches of CIFAR are pickles, which may hold code: this takes numbers, text and arrays from them."""

import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np


class _Array:
    """Stands for numpy's array while a batch is unpickled: what the file says of one, for `uint8` to look at.

    numpy's own would believe any type that the file claims, objects at addresses of the file's choice among them.
    """

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def uint8(self) -> np.ndarray:
        """The array of bytes that this stands for. Raises ValueError or TypeError if it is anything else."""
        _, shape, kind, fortran, content = self.state
        if fortran or not isinstance(kind, _Kind) or kind.name not in ("u1", "uint8"):
            raise ValueError("its pixels are no bytes")
        return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, np.uint8).reshape(shape)


class _Kind:
    """Stands for numpy's dtype: its name alone."""

    def __init__(self, name: Any, *_: Any):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """What a dtype says of itself besides: of bytes, nothing."""


class _ArraysOnly(pickle._Unpickler):  # the one in Python: at a wrong number the one in C reserves gigabytes
    """Unpickles numbers, strings, containers and _Array. Anything else could run code of the file's choice."""

    ALLOWED: Mapping[tuple[str, str], type] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Kind,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return self.ALLOWED[module, name]


def batch(content: bytes, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """The images uint8 (N, 3, 32, 32) of a batch and their labels int64 (N,), which stand under `labels_key`.

    Raises UnpicklingError, ValueError, LookupError or TypeError for what is no such batch.
    """
    try:
        found = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()  # latin1: Python 2 wrote the official files
    except Exception as error:  # a damaged one ends in whatever its numbers come to
        raise pickle.UnpicklingError(str(error) or type(error).__name__) from None
    if not isinstance(found, dict) or not isinstance(found.get("data"), _Array):
        raise ValueError("it holds no array of pixels")
    pixels, labels = found["data"].uint8(), np.array(found[labels_key], np.int64)
    if pixels.shape != (len(labels), 3072):
        raise ValueError(f"{pixels.shape} for {len(labels)} labels")
    return pixels.reshape(-1, 3, 32, 32), labels
