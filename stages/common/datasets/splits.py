"""A labelled part of a data set, and how one is taken apart: canonical order, holding out, fingerprints."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stages.common.errors import UserError

Images = np.ndarray  # uint8 (N, C, H, W)


@dataclass(frozen=True)
class Split:
    """images uint8 (N, C, H, W), labels int64 (N,) and the class names that labels index.

    In canonical order: by label, then by the bytes of the image.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def fingerprint(*splits: Split) -> str:
    """16 hex digits that change with any image, label, class name, shape or type in `splits`."""
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.images, split.labels, np.array(split.classes)):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def labelled(images: Mapping[str, Images]) -> Split:
    """One split from the images of each class. Classes are sorted by name, images by their bytes."""
    classes = tuple(sorted(images))
    ordered = [images[name][_by_bytes(images[name])] for name in classes]
    sizes = [len(part) for part in ordered]
    return Split(np.concatenate(ordered), np.repeat(np.arange(len(classes), dtype=np.int64), sizes), classes)


def _by_bytes(images: Images) -> list[int]:
    return sorted(range(len(images)), key=lambda i: images[i].tobytes())


def hold_out(split: Split, fraction: float, rng: np.random.Generator, knob: str) -> tuple[Split, Split]:
    """The rest of `split` and the held-out `fraction` (0 to 1) of each class: disjoint, both in canonical order.

    Copies of one image in a class stay on one side, so that nothing is tested on what it was trained on; the held-out
    number is exact as long as the class has images without a copy to fill it up. `knob` names the fraction in errors.
    Raises UserError for a class that cannot give at least one image to each side.
    """
    chosen = np.zeros(len(split), dtype=bool)
    for label, name in enumerate(split.classes):
        members = np.flatnonzero(split.labels == label)
        content = split.images[members].reshape(len(members), -1)
        changes = np.flatnonzero((content[1:] != content[:-1]).any(axis=1))  # in canonical order copies are neighbours
        groups = np.split(members, changes + 1)
        wanted = min(max(round(fraction * len(members)), 1), len(members) - 1)
        taken = 0
        for i in rng.permutation(len(groups)):
            if taken + len(groups[i]) <= wanted:
                chosen[groups[i]] = True
                taken += len(groups[i])
        if taken == 0:
            raise UserError(
                f"class {name!r} has {len(members)} images ({len(groups)} different): too few to hold out "
                f"{knob} = {fraction:g} of them; add images or change {knob}"
            )
    rest, held_out = (Split(split.images[mask], split.labels[mask], split.classes) for mask in (~chosen, chosen))
    return rest, held_out
