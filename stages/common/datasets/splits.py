"""A labelled part of a data set, and how one is taken apart: canonical order, holding out, fingerprints."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.common import arrays
from stages.common.errors import UserError

Images = np.ndarray  # uint8 (N, C, H, W)
WINDOW = 256  # bytes of each image that are compared first


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


class Look(NamedTuple):
    """What can be told of a data set before an image is decoded."""

    images: dict[str, dict[str, int]]  # split -> class -> how many
    shape: tuple[int, ...]  # (C, H, W) of each


def fingerprint(*splits: Split) -> str:
    """16 hex digits that change with any image, label, class name, shape or type in `splits`."""
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.images, split.labels, np.array(split.classes)):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            for part in arrays.parts(array):
                digest.update(np.ascontiguousarray(array[part]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def labelled(images: Mapping[str, Images]) -> Split:
    """One split from the images of each class. Classes are sorted by name, images by their bytes."""
    classes = tuple(sorted(images))
    sizes = [len(images[name]) for name in classes]
    like = images[classes[0]]
    ordered = arrays.empty((sum(sizes), *like.shape[1:]), like.dtype)
    for name, end in zip(classes, np.cumsum(sizes), strict=True):
        of_class = images[name]
        order = _by_bytes(of_class, np.arange(len(of_class)))
        arrays.take(of_class, order, ordered[end - len(of_class) : end])
    return Split(ordered, np.repeat(np.arange(len(classes), dtype=np.int64), sizes), classes)


def apart(images: Images, sizes: Mapping[str, int]) -> dict[str, Images]:
    """The images of each class, which stand behind one another in `images`, so many of each."""
    ends = itertools.accumulate(sizes.values())
    return {name: images[end - size : end] for (name, size), end in zip(sizes.items(), ends, strict=True)}


def of_classes(images: Images, names: Sequence[str], classes: Iterable[str]) -> Split:
    """The same from images that stand in any order, each one's class in `names`; those of no `classes` are left out."""
    classes = tuple(sorted(classes))
    numbers = {name: number for number, name in enumerate(classes)}
    found = np.array([numbers.get(name, -1) for name in names])
    members = [_by_bytes(images, np.flatnonzero(found == number)) for number in range(len(classes))]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(some) for some in members])
    return Split(arrays.take(images, np.concatenate(members)), labels, classes)


def _by_bytes(images: Images, members: np.ndarray) -> np.ndarray:
    """The indices `members` in the order of their images' bytes; those of equal images stay in their own order.

    A few bytes tell most images apart: the next ones are read of those alone that are equal so far.
    """
    flat, order = _flat(images), members.copy()
    equal = [(0, len(members), 0)]  # places in `order`, from and to, whose images are equal in so many bytes
    while equal:
        first, last, start = equal.pop()
        end = start + max(WINDOW, arrays.PART // (last - first)) if start else WINDOW
        some = order[first:last]
        content = [row.tobytes() for row in arrays.take(flat[:, start:end], some)]
        ranks = sorted(range(last - first), key=content.__getitem__)
        order[first:last] = some[ranks]
        if end < flat.shape[1]:
            changes = [i for i in range(1, last - first) if content[ranks[i]] != content[ranks[i - 1]]]
            runs = itertools.pairwise([0, *changes, last - first])
            equal += [(first + low, first + high, end) for low, high in runs if high - low > 1]
    return order


def hold_out(split: Split, fraction: float, rng: np.random.Generator, knob: str) -> tuple[Split, Split]:
    """The rest of `split` and the held-out `fraction` (0 to 1) of each class: disjoint, both in canonical order.

    Copies of one image in a class stay on one side, so that nothing is tested on what it was trained on; the held-out
    number is exact as long as the class has images without a copy to fill it up. `knob` names the fraction in errors.
    Raises UserError for a class that cannot give at least one image to each side.
    """
    chosen = np.zeros(len(split), dtype=bool)
    for label, name in enumerate(split.classes):
        first, last = np.searchsorted(split.labels, [label, label + 1])
        members = np.arange(first, last)
        groups = np.split(members, _changes(split.images[first:last]))
        wanted = _wanted(len(members), fraction)
        taken = 0
        for i in rng.permutation(len(groups)):
            if taken + len(groups[i]) <= wanted:
                chosen[groups[i]] = True
                taken += len(groups[i])
        if taken == 0:
            raise _too_few(name, f"{len(members)} images ({len(groups)} different)", fraction, knob)
    sides = (np.flatnonzero(side) for side in (~chosen, chosen))
    rest, held_out = (Split(arrays.take(split.images, i), split.labels[i], split.classes) for i in sides)
    return rest, held_out


def hold_out_counts(counts: Mapping[str, int], fraction: float, knob: str) -> tuple[dict[str, int], dict[str, int]]:
    """What `hold_out` comes to, for so many images of each class, if none stands there twice."""
    held_out = {name: _wanted(count, fraction) for name, count in counts.items()}
    for name, count in held_out.items():
        if count == 0:
            raise _too_few(name, f"{counts[name]} images", fraction, knob)
    return {name: count - held_out[name] for name, count in counts.items()}, held_out


def _wanted(count: int, fraction: float) -> int:
    return min(max(round(fraction * count), 1), count - 1)


def _too_few(name: str, images: str, fraction: float, knob: str) -> UserError:
    return UserError(
        f"class {name!r} has {images}: too few to hold out {knob} = {fraction:g} of them; add images or change {knob}"
    )


def _changes(images: Images) -> np.ndarray:
    """Where in `images`, which are in canonical order, one differs from the one before: copies are neighbours there."""
    before, after = _flat(images[:-1]), _flat(images[1:])
    differ = [(before[part] != after[part]).any(axis=1) for part in arrays.parts(after)]
    return np.flatnonzero(np.concatenate([np.zeros(1, bool), *differ]))


def _flat(images: Images) -> np.ndarray:
    return images.reshape(len(images), math.prod(images.shape[1:]))
