"""Images that stand in two places where they spoil the figures: in train and test, in ID and OOD, in two classes."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from stages.common import arrays
from stages.common.datasets.account import Account, key
from stages.common.datasets.splits import Images, Split
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
    keys = {name: list(_keys(split.images)) for name, split in splits.items() if name != "extra"}
    learnt = {*keys["train"], *keys["val"]}
    inside = learnt.union(keys["test"])
    first_class: dict[bytes, str] = {}
    twice = []
    for name in ("train", "val", "test"):
        for index, content in enumerate(keys[name]):
            class_name = splits[name].classes[splits[name].labels[index]]
            if first_class.setdefault(content, class_name) != class_name:
                twice.append((name, index))
    found = {  # what kind of copies: which images, as the name of a split and an index, and of how many
        "test images that are training or validation images too": (_known("test", keys, learnt), len(keys["test"])),
        "OOD images that are images of a learnt class": (_known("ood", keys, inside), len(keys["ood"])),
        "images that stand in two classes": (twice, sum(len(keys[name]) for name in ("train", "val", "test"))),
    }
    return [Copies(where, len(places), of, _example(places, splits, account)) for where, (places, of) in found.items()]


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


def _keys(images: Images) -> Iterator[bytes]:
    for part in arrays.parts(images):
        yield from map(key, images[part])


def _known(name: str, keys: Mapping[str, list[bytes]], known: set[bytes]) -> list[tuple[str, int]]:
    """The images of a split whose pixels are among the known ones."""
    return [(name, index) for index, content in enumerate(keys[name]) if content in known]


def _example(places: list[tuple[str, int]], splits: Mapping[str, Split], account: Account) -> str:
    """The files of the first image where these are known, else its class; nothing of no image."""
    if not places:
        return ""
    name, index = places[0]
    split = splits[name]
    files = account.origins.get(key(split.images[index]), [])
    return " and ".join(files[:2]) if files else f"one of class {split.classes[split.labels[index]]!r}"
