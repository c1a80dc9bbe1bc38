"""What became of every file: what was read, what was left out and why, what could not be read."""

from collections import Counter, defaultdict
from typing import Any

from stages.common.errors import UserError

NAMED = 20  # bad files that a message names, sizes that are listed; more are counted


class Account:
    """Fills up while images are read. `origins` tells where an image came from, by its pixels."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()  # reason -> files
        self.sizes: Counter[str] = Counter()  # WIDTHxHEIGHT -> images, before they were resized
        self.transparent = 0
        self.bad: dict[str, str] = {}  # path -> what is wrong with it
        self.origins: defaultdict[bytes, list[str]] = defaultdict(list)  # `copies.key` of the pixels -> files

    def refuse_bad_files(self) -> None:
        """Raise one UserError that names every file that could not be read, if there are any."""
        if not self.bad:
            return
        named = [f"{path}: {reason}" for path, reason in list(self.bad.items())[:NAMED]]
        more = [f"and {len(self.bad) - NAMED} more"] if len(self.bad) > NAMED else []
        raise UserError(
            "\n       ".join(
                [f"{len(self.bad)} files cannot be read as images; mend them or take them away:", *named, *more]
            )
        )

    def summary(self) -> dict[str, Any]:
        """What metrics/data.json says of the files; of the sizes that they had, the NAMED commonest."""
        common = self.sizes.most_common(NAMED)
        listed = sum(count for _, count in common)
        return {
            "left_out": dict(sorted((+self.left_out).items())),
            "resized_from": dict(common) | ({"other sizes": rest} if (rest := self.sizes.total() - listed) else {}),
            "laid_on_white": self.transparent,
        }

    def lines(self) -> list[str]:
        """The same for a person: one line for each kind of thing that happened."""
        said = []
        if left_out := +self.left_out:
            kinds = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
            said.append(f"left out: {left_out.total()} files ({kinds})")
        if self.transparent:
            said.append(f"laid on white: {self.transparent} images that are transparent in places")
        return said
