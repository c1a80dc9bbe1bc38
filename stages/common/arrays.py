"""Arrays that may be larger than memory: filled, read and rearranged a part at a time.

A large one is the map of a file without a name, which is gone with the process, however that ends. The pages of a map
count as memory of whoever has looked at them until they are given back.
"""

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

DATA = Path("data")  # where large arrays lie: on the disk that the prepared sets need too
LARGE = 2**28  # bytes; an array above this is one on disk
PART = 2**25  # bytes that are looked at before they are given back
SCATTERED = 128  # rows, the same: a look at any of them may bring two megabytes around it into memory


def empty(shape: tuple[int, ...], dtype: np.typing.DTypeLike = np.uint8) -> np.ndarray:
    """An array to be filled. Raises OSError where the disk has no room for a large one."""
    if size_of(shape, dtype) <= LARGE:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder()) as file:
        make_room(file, size_of(shape, dtype))
        return np.memmap(file, dtype, "r+", shape=shape)


def size_of(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> int:
    """The bytes that such an array takes."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def folder() -> Path:
    """Where files under large arrays are made."""
    return DATA if DATA.is_dir() else Path(tempfile.gettempdir())


def make_room(file: IO[bytes], size: int) -> None:
    """Give the file so many bytes. Raises OSError where the disk has no room: a map with none behind it would end the
    process when written to.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def stack(rows: Iterable[np.ndarray], count: int, shape: tuple[int, ...]) -> np.ndarray:
    """The `rows`, uint8 arrays of one `shape` and at most `count` of them, as one array."""
    out, end, filled = empty((count, *shape)), 0, 0
    for end, row in enumerate(rows, start=1):
        out[end - 1] = row
        if end - filled == _rows(out):
            give_back(out[filled:end])
            filled = end
    return out[:end]


def take(array: np.ndarray, chosen: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The rows at the indices `chosen` (n,), in that order; in `out`, if that is given."""
    out = empty((len(chosen), *array.shape[1:]), array.dtype) if out is None else out
    rows = min(SCATTERED, _rows(array))
    for start in range(0, len(chosen), rows):
        part = slice(start, start + rows)
        out[part] = array[chosen[part]]
        give_back(array)
        give_back(out[part])
    return out


def parts(array: np.ndarray) -> Iterator[slice]:
    """Slices of its rows, about PART bytes each, from the first to the last; what one has read is given back."""
    for start in range(0, len(array), _rows(array)):
        part = slice(start, min(start + _rows(array), len(array)))
        yield part
        give_back(array[part])


def _rows(array: np.ndarray) -> int:
    """How many rows lie within PART bytes."""
    return max(1, PART // max(1, array[:1].nbytes, *array.strides))


def give_back(array: np.ndarray) -> None:
    """Let go of the pages in memory under `array`, if it is a map or a part of one.

    They stay in the system's cache, and are read from there when they are looked at again. What was changed in a map of
    mode "c" is lost. An array that is no map is left alone.
    """
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if array.size and isinstance(whole.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        start, end = np.lib.array_utils.byte_bounds(array)
        start &= -mmap.PAGESIZE
        whole.base.madvise(mmap.MADV_DONTNEED, start - (whole.ctypes.data & -mmap.PAGESIZE), end - start)
