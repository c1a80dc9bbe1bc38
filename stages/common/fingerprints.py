"""What long work depends on, in one word: an interrupted run takes up only what a run of the same word has left."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from stages.common import images
from stages.common.images import ImageSet

CODE = "stages.common"  # the package whose loaded modules a run depends on...
VALUES = "stages.common.params"  # ...but for the one that only reads values, which `told` holds


def of(told: object, sets: Iterable[ImageSet], tensors: Iterable[Tensor]) -> str:
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
