"""Prepared images: sets of them, fair samples, batches on a device, augmentation.

Images are uint8 (N, C, H, W) in a set and float32 in [0, 1], channels_last, in a batch.
"""

from stages.common.images.augmentation import Augmentation, resize
from stages.common.images.batches import (
    BATCH_SIZE,
    Batch,
    batch_size,
    batches,
    each_batch,
    joined,
    moved,
    progress,
    to_float,
)
from stages.common.images.maps import as_tensor, give_back, on_disk
from stages.common.images.sampling import sample, windows
from stages.common.images.sets import Feed, ImageSet, by_prefix, read

__all__ = [
    "BATCH_SIZE",
    "Augmentation",
    "Batch",
    "Feed",
    "ImageSet",
    "as_tensor",
    "batch_size",
    "batches",
    "by_prefix",
    "each_batch",
    "give_back",
    "joined",
    "moved",
    "on_disk",
    "progress",
    "read",
    "resize",
    "sample",
    "to_float",
    "windows",
]
