"""What became of every file: what was read, what was left out and why, what could not be read."""

import hashlib
from collections import Counter, defaultdict
from pathlib import PurePath
from typing import Any

import numpy as np

from stages.common.errors import UserError, shown

NAMED = 20  # bad files that a message names, kinds and sizes that are listed; more are counted
SYSTEM = {  # what systems leave beside a user's files
    *("__macosx", "@eadir", "$recycle.bin", "system volume information", "__pycache__"),
    *("thumbs.db", "desktop.ini"),
}


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is a system's own and none of the data."""
    return name.startswith(".") or name.lower() in SYSTEM


def key(pixels: np.ndarray) -> bytes:
    """What tells an image (C, H, W) from every other."""
    return hashlib.sha1(np.ascontiguousarray(pixels).data, usedforsecurity=False).digest()


class Account:
    """Fills up while images are read. `origins` tells where an image came from, by its pixels."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}  # what was looked for -> where it is
        self.absent: list[str] = []  # what is not there and would be fetched, with what else to do
        self.left_out: Counter[str] = Counter()  # reason -> files
        self.sizes: Counter[str] = Counter()  # WIDTHxHEIGHT -> images, before they were resized
        self.transparent = 0
        self.bad: dict[str, str] = {}  # path -> what is wrong with it
        self.origins: defaultdict[bytes, list[str]] = defaultdict(list)  # `key` of the pixels -> files

    def note(self, pixels: np.ndarray, size: tuple[int, int], transparent: bool, origin: str) -> None:
        """An image (C, H, W) was read from `origin`, where it had the size (width, height)."""
        self.sizes[f"{size[0]}x{size[1]}"] += 1
        self.transparent += transparent
        self.origins[key(pixels)].append(origin)

    def leave_out(self, path: PurePath) -> None:
        """Count a file that is not read, by its ending."""
        self.left_out[shown(path.suffix.lower()) or "without an ending"] += 1

    def refuse_bad_files(self) -> None:
        """Raise one UserError that names every file that could not be read, if there are any."""
        if not self.bad:
            return
        named = [shown(f"{path}: {reason}") for path, reason in list(self.bad.items())[:NAMED]]
        more = [f"and {len(self.bad) - NAMED} more"] if len(self.bad) > NAMED else []
        raise UserError(
            "\n       ".join(
                [f"{len(self.bad)} files cannot be read as images; mend them or take them away:", *named, *more]
            )
        )

    def summary(self) -> dict[str, Any]:
        """What metrics/data.json says of the files: of kinds left out and of sizes, the NAMED commonest."""
        return {
            "left_out": dict(sorted(_commonest(+self.left_out, "of other kinds").items())),
            "resized_from": _commonest(self.sizes, "other sizes"),
            "laid_on_white": self.transparent,
        }

    def lines(self) -> list[str]:
        """The same for a person: one line for each kind of thing that happened."""
        said = []
        if left_out := +self.left_out:
            kinds = ", ".join(f"{count} {reason}" for reason, count in _commonest(left_out, "of other kinds").items())
            said.append(f"left out: {left_out.total()} files ({kinds})")
        if self.transparent:
            said.append(f"laid on white: {self.transparent} images that are transparent in places")
        return said


def _commonest(counts: Counter[str], rest: str) -> dict[str, int]:
    """The NAMED commonest, and all others together as `rest`."""
    common = dict(counts.most_common(NAMED))
    others = counts.total() - sum(common.values())
    return common | ({rest: others} if others else {})
