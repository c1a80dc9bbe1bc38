"""What every source of images shares: where raw data lie, one message for a faulty file, images of a given form."""

import os
import pickle
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from stages.common import workspace
from stages.common.datasets.account import is_system
from stages.common.errors import UserError

RAW = Path("data/raw")
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError)
FOREIGN = (pickle.UnpicklingError, Image.DecompressionBombError, LookupError, TypeError, OverflowError)


def roots() -> list[Path]:
    """Where raw data may lie, the first choice first."""
    found = [home / RAW for home in workspace.homes()]
    named = os.environ.get("CIFAR_ROOT")
    if not named:
        return found
    if not Path(named).is_dir():
        raise UserError(f"CIFAR_ROOT = {named!r} is not a folder; correct it, or unset it to use {RAW}")
    return [Path(named), *found]


def files_below(folder: Path) -> Iterator[Path]:
    """Everything in `folder` and its subfolders that is no folder, in order. Links are followed, system files are not
    looked at.
    """
    visited: set[str] = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in visited:
            inner.clear()  # a link that leads back
            continue
        visited.add(real)
        inner[:] = sorted(name for name in inner if not is_system(name))
        yield from (Path(place, name) for name in sorted(names) if not is_system(name))


def open_file(path: Path) -> IO[bytes]:
    """A file to read. Raises ValueError for what might never end: a device, a pipe."""
    if not path.is_file():
        raise ValueError("it is no ordinary file, or a link that leads to none")
    return path.open("rb")


@contextmanager
def reading(where: Path, member: str) -> Iterator[None]:
    """Turn any fault of a file's content into a UserError that names it."""
    try:
        yield
    except PermissionError:
        raise  # nothing is wrong with the content
    except (*DAMAGE, *FOREIGN) as error:
        raise UserError(f"{where}: {member} is damaged or foreign ({error}); delete it and fetch it again") from None


def progress(total: int, description: str) -> "tqdm[Any]":
    return tqdm(total=total, desc=description, unit="img", leave=False, disable=not sys.stderr.isatty())


def fitted(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """An image resized to uint8 `shape` (C, H, W): its largest centred part of that form."""
    channels, height, width = shape
    sized = ImageOps.fit(image.convert("RGB" if channels == 3 else "L"), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(sized).reshape(height, width, channels).transpose(2, 0, 1)
