"""What long work has reached, in a file that the same run takes up when it is started again."""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.common import artifacts, distributed, images
from stages.common.errors import UserError
from stages.common.images import ImageSet

ABANDONED = 8  # work files of other runs that are kept: some of these may be at work now
CODE = "stages.common"  # the package whose loaded modules a run depends on...
VALUES = "stages.common.params"  # ...but for the one that only reads values, which `told` holds


class WorkFile:
    """The file of one run, named after all that its result depends on: other runs, at work now perhaps, have others."""

    def __init__(self, folder: Path, name: str, run: str):
        self.path, self.run = folder / f"{name}-{run[:16]}.pt", run
        if distributed.first():
            _tidy(folder, name)

    def write(self, content: Mapping[str, Any]) -> None:
        """Keep `content`, tensors and plain values, in place of what was kept before."""
        artifacts.write_checkpoint(self.path, {"run": self.run, **content})

    def read(self) -> dict[str, Any] | None:
        """What an interrupted run of this very kind has kept, on every rank; the file of any other run, or a damaged
        one, is left aside.
        """
        return distributed.from_first(self._read() if distributed.first() else None)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            content = artifacts.read_checkpoint(self.path)
        except UserError:
            return None
        return content if content.get("run") == self.run else None

    def delete(self) -> None:
        if distributed.first():
            self.path.unlink(missing_ok=True)


def fingerprint(told: object, sets: Iterable[ImageSet], tensors: Iterable[Tensor]) -> str:
    """SHA-256, in hexadecimal, of all that a run's result depends on: what it is told (by its repr), its images and
    labels, tensors such as weights, code and torch's version.

    The code is all of this project's modules that the process has loaded, so that nobody has to list them.
    """
    digest, every = hashlib.sha256(), list(sets)
    for pixels in (each.images for each in every):
        for part in pixels.split(images.batch_size(pixels)):
            digest.update(part.contiguous().numpy())
            images.give_back(part)
    for tensor in (*(each.labels for each in every), *tensors):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(repr((told, torch.__version__)).encode())
    for name, module in sorted(sys.modules.items()):
        if name.startswith(CODE) and not name.startswith(VALUES) and (source := getattr(module, "__file__", None)):
            digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def _tidy(folder: Path, name: str) -> None:
    """Delete the work files of runs given up long ago, all but the newest ABANDONED of this name, and half-written ones
    that killed runs have left.
    """
    artifacts.sweep(folder, f"{name}-*.pt")
    files = sorted(folder.glob(f"{name}-*.pt"), key=lambda file: file.stat().st_mtime)
    for file in files[:-ABANDONED]:
        file.unlink(missing_ok=True)
