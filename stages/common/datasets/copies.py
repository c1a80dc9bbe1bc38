"""Images that stand in two places where they spoil the figures: in train and test, in ID and OOD, in two classes."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from stages.common.datasets.account import Account
from stages.common.datasets.splits import Split
from stages.common.errors import UserError


class Copies(NamedTuple):
    """How many images of one place have the same pixels as one of another, of how many, and an example."""

    where: str
    number: int
    of: int
    example: str

    @property
    def share(self) -> float:
        return self.number / self.of if self.of else 0.0


def find(splits: Mapping[str, Split], account: Account) -> list[Copies]:
    """Copies by content, each kind with its count: test images that were learnt from (in train or val), OOD images that
    are in-distribution ones, and images learnt as two classes.
    """
    keys = {name: _keys(split) for name, split in splits.items() if name != "extra"}
    learnt = {key for name in ("train", "val") for key in keys[name]}
    inside = learnt | set(keys["test"])
    first_label: dict[bytes, str] = {}
    twice = []
    for name in ("train", "val", "test"):
        for index, (key, label) in enumerate(zip(keys[name], splits[name].labels, strict=True)):
            known = first_label.setdefault(key, splits[name].classes[label])
            if known != splits[name].classes[label]:
                twice.append((name, index))
    return [
        _copies("test images that are training or validation images too", "test", keys, learnt, splits, account),
        _copies("OOD images that are images of a learnt class", "ood", keys, inside, splits, account),
        Copies(
            "images that stand in two classes",
            len(twice),
            sum(len(splits[name]) for name in ("train", "val", "test")),
            _name(splits[twice[0][0]], twice[0][1], account) if twice else "",
        ),
    ]


def refuse(found: list[Copies], allowed: float, knob: str) -> None:
    """Raise UserError for copies above the share `allowed` of their set; `knob` is where that is set."""
    for copies in found:
        if copies.share > allowed:
            raise UserError(
                f"{copies.number} of {copies.of} are {copies.where}, such as {copies.example}: figures of such "
                f"data say nothing; take the copies away, or raise {knob} (now {allowed:g})"
            )


def lines(found: list[Copies]) -> Iterator[str]:
    """A warning for each kind of copies that there is."""
    for copies in found:
        if copies.number:
            yield f"warning: the same image twice: {copies.number} {copies.where}, such as {copies.example}"


def key(pixels: np.ndarray) -> bytes:
    """What tells an image (C, H, W) from every other."""
    return hashlib.sha1(np.ascontiguousarray(pixels).data, usedforsecurity=False).digest()


def _keys(split: Split) -> list[bytes]:
    return [key(pixels) for pixels in split.images]


def _copies(
    where: str,
    name: str,
    keys: Mapping[str, list[bytes]],
    known: set[bytes],
    splits: Mapping[str, Split],
    account: Account,
) -> Copies:
    found = [index for index, found_key in enumerate(keys[name]) if found_key in known]
    example = _name(splits[name], found[0], account) if found else ""
    return Copies(where, len(found), len(keys[name]), example)


def _name(split: Split, index: int, account: Account) -> str:
    """The files of an image where these are known, else its class."""
    files = account.origins.get(key(split.images[index]), [])
    return " and ".join(files[:2]) if files else f"one of class {split.classes[split.labels[index]]!r}"
