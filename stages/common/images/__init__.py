"""Prepared images: sets of them, fair samples, batches on a device, augmentation.

Images are uint8 (N, C, H, W) in a set and float32 in [0, 1], channels_last, in a batch.
"""

from stages.common.images.augmentation import augment, resize
from stages.common.images.batches import BATCH_SIZE, batches, progress, to_float
from stages.common.images.sampling import sample
from stages.common.images.sets import ImageSet, by_prefix, read

__all__ = [
    "BATCH_SIZE",
    "ImageSet",
    "augment",
    "batches",
    "by_prefix",
    "progress",
    "read",
    "resize",
    "sample",
    "to_float",
]
