"""Any image classification set that torchvision has, by the name of its class: where it lies, or downloaded."""

import contextlib
import difflib
import inspect
import operator
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from stages.common import arrays, vision, workspace
from stages.common.datasets import pictures
from stages.common.datasets.account import Account
from stages.common.datasets.sources import DAMAGE, FOREIGN, RAW, fitted, progress, roots
from stages.common.datasets.splits import Images, Split, hold_out, of_classes
from stages.common.errors import NO_ROOM, UserError
from stages.common.params import Params
from stages.common.params.types import LARGEST, SMALLEST

FOLDER = "torchvision"  # in every place where raw data may lie: the `root` of torchvision's classes
SECTION = "datasets.torchvision.prepare"
TRAIN = ("train", "trainval", "train-standard")  # what sets call the images to learn from...
TEST = ("test", "val", "valid")  # ...and those to test on: the first that there is, with class numbers
FIXED: Mapping[str, dict[str, str]] = {"EMNIST": {"split": "balanced"}}  # what a set cannot do without
NO_SETS = ("DatasetFolder", "ImageFolder", "VisionDataset")  # what sets are made of
GREY = ("1", "L", "LA", "La", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes without colours


class Source(NamedTuple):
    """One of torchvision's sets, or the part of it that is called `part`; `knob` is where its name stands."""

    dataset: Any
    name: str
    part: str
    knob: str

    def pictures(self, account: Account) -> Iterator[tuple[str, Image.Image, int]]:
        """Where each picture comes from, the picture, and the number of its class; notes what cannot be read."""
        for index in range(len(self.dataset)):
            origin = f"{self.name} {self.part}".rstrip() + f", image {index}"
            try:
                picture, target = self.dataset[index]
                picture.load()
                number = operator.index(target)
            except (*DAMAGE, *FOREIGN) as error:
                account.bad[origin] = " ".join(str(error).split())
                continue
            yield origin, picture, number

    def class_names(self) -> list[str]:
        """The name of each class number: of several, the first; with its number if it stands twice. Empty if the set
        has numbers alone.
        """
        named = getattr(self.dataset, "classes", None) or getattr(self.dataset, "categories", None)
        if not isinstance(named, Sequence):
            return []
        names = [str(name if isinstance(name, str) or not isinstance(name, Sequence) else name[0]) for name in named]
        often = Counter(names)
        return [name if often[name] == 1 else f"{name} {number}" for number, name in enumerate(names)]


def read(params: Params, rng: np.random.Generator, account: Account) -> dict[str, Split]:
    """The set `name`, with the test images of `ood_name` as the OOD set, in the same shape."""
    chosen, data, knob = params.datasets.torchvision, params.datasets.torchvision.prepare, "datasets.torchvision.name"
    sources = {"train": find(chosen.name, TRAIN, knob)}
    if sources["train"].part:
        sources["test"] = find(chosen.name, TEST, knob)
    unknown = find(chosen.ood_name, TEST, "datasets.torchvision.ood_name")
    shape = _shape(list(sources.values()), data.image_size)
    own_size = data.image_size is None
    found = {split: _read(source, shape, account, own_size=own_size) for split, source in sources.items()}
    learnt = set(found["train"][1])
    if len(learnt) < 2:
        raise UserError(f"{knob} = {chosen.name!r}: it has {len(learnt)} class to learn: two at least are needed")
    splits = {}
    for split in sources:
        images, names = found.pop(split)
        account.left_out["of classes without training images"] += sum(name not in learnt for name in names)
        splits[split] = of_classes(images, names, learnt)
    if "test" not in splits:
        splits["train"], splits["test"] = hold_out(splits["train"], data.test_fraction, rng, "test_fraction")
    splits["ood"] = _unknown(unknown, splits["train"], data.ood_classes, account)
    return splits


def extra(name: str, like: Split, knob: str, account: Account) -> dict[str, Images]:
    """The test images of the set `name` by class, in the shape of `like`, without the classes that `like` has."""
    split = _unknown(find(name, TEST, knob), like, None, account)
    ends = np.searchsorted(split.labels, np.arange(len(split.classes) + 1))
    return {c: split.images[ends[i] : ends[i + 1]] for i, c in enumerate(split.classes)}


def _unknown(source: Source, like: Split, chosen: Sequence[str] | None, account: Account) -> Split:
    """The images of the `chosen` classes, or of all that are none of `like`'s; the others are accounted for."""
    images, names = _read(source, like.images.shape[1:], account)
    there = sorted(set(names))
    learnt = set(like.classes) & set(there) if source.class_names() else set()  # equal numbers are no equal names
    for name in chosen or ():
        if name not in there:
            raise UserError(f"{SECTION}.ood_classes = {name!r}: allowed are {', '.join(there)}")
        if name in learnt:
            raise UserError(f"{SECTION}.ood_classes = {name!r}: it is a class to learn too")
    wanted = set(chosen or there) - learnt
    if not wanted:
        raise UserError(f"{source.knob} = {source.name!r}: all of its classes are learnt; take another set")
    account.left_out["of OOD classes that are learnt"] += sum(name in learnt for name in names)
    account.left_out["of OOD classes not chosen"] += sum(name not in learnt | wanted for name in names)
    return of_classes(images, names, wanted)


def _shape(sources: Sequence[Source], image_size: int | None) -> tuple[int, int, int]:
    """Of all images: one channel if none of the `sources` has colours; `image_size`, or the size of the first one."""
    first = next((picture for _, picture, _ in sources[0].pictures(Account())), None)
    if first is None:
        raise UserError(f"{sources[0].knob} = {sources[0].name!r}: none of its images can be read")
    width, height = (image_size, image_size) if image_size else first.size
    if not all(SMALLEST <= side <= LARGEST for side in (width, height)):
        raise UserError(
            f"{SECTION}.image_size is empty, and images of {sources[0].name} have {width}x{height} pixels: name a size "
            f"from {SMALLEST} to {LARGEST}"
        )
    grey = all(picture.mode in GREY for source in sources for _, picture, _ in source.pictures(Account()))
    return 1 if grey else 3, height, width


def _read(
    source: Source, shape: tuple[int, ...], account: Account, *, own_size: bool = False
) -> tuple[Images, list[str]]:
    """All images of `source` in the shape (C, H, W), and the name of each one's class. Raises UserError for images that
    cannot be read, and with `own_size` for one of another size.
    """
    class_names = source.class_names()
    names: list[str] = []

    def pixels() -> Iterator[np.ndarray]:
        with progress(len(source.dataset), f"read {source.name}") as bar:
            for origin, picture, number in source.pictures(account):
                bar.update()
                if own_size and (picture.height, picture.width) != shape[1:]:
                    raise UserError(
                        f"{SECTION}.image_size is empty, and images of {source.name} have several sizes, such as "
                        f"{shape[2]}x{shape[1]} and {picture.width}x{picture.height}: name one"
                    )
                if number < 0:
                    account.left_out["of no class"] += 1
                    continue
                try:
                    image, transparent = pictures.eight_bits(picture)
                except pictures.UnreadableError as error:
                    account.bad[origin] = str(error)
                    continue
                names.append(class_names[number] if number < len(class_names) else str(number))
                found = fitted(image, shape)
                account.note(found, picture.size, transparent, origin)
                yield found

    images = arrays.stack(pixels(), len(source.dataset), shape)
    account.refuse_bad_files()
    return images, names


# Finding a set


def find(name: str, wanted: Sequence[str], knob: str) -> Source:
    """The first of the parts `wanted` that the set has, or all of a set without parts: where it lies, or downloaded.

    `knob` says in errors where the name stands. Raises UserError for a name that torchvision lacks, for what is no
    classification set, for a set without such a part, and for one that is not there and cannot be downloaded.
    """
    kind, accepted = _kind(name, knob)
    choices: list[dict[str, Any]] = [{}]
    if "train" in accepted:
        choices = [{"train": wanted == TRAIN}]
    elif "split" in accepted:
        choices = [{"split": part} for part in wanted]
    places = [root / FOLDER for root in roots()]
    attempts = [(place, choice, False) for place in places for choice in choices]
    if "download" in accepted:
        attempts += [(workspace.homes()[-1] / RAW / FOLDER, choice, True) for choice in choices]
    no_part, absent, foreign = "", "", ""
    for place, choice, download in attempts:
        if foreign and download:
            break
        try:
            dataset = _opened(kind, accepted, place, download, FIXED.get(name, {}) | choice)
        except Exception as error:  # each of torchvision's classes has its own way to say that it is not there
            if getattr(error, "errno", None) in NO_ROOM:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            if "argument split" in reason:
                no_part = reason
            else:
                absent = reason
            continue
        foreign = _foreign(dataset)
        if not foreign:
            return Source(dataset, name, wanted[0] if choice else "", knob)
    if foreign:
        raise UserError(f"{knob} = {name!r}: no classification set: it gives {foreign}, no image and its class number")
    if not absent:
        raise UserError(f"{knob} = {name!r}: it has no images that are called {' or '.join(wanted)} ({no_part})")
    attempt = "its download failed" if "download" in accepted else "cannot download it"
    raise UserError(
        f"{name} is not there: torchvision finds it nowhere in {' or '.join(map(str, places))}, and {attempt}\n"
        f"       ({absent}).\n"
        f"       Put it into {RAW / FOLDER} as torchvision.datasets.{name} expects it (delete what is damaged),\n"
        "       or take the data set that needs no download: dvc exp run -S dataset=digits"
    )


def _kind(name: str, knob: str) -> tuple[type, set[str]]:
    """torchvision's class of this name, and what it may be told. Raises UserError for what can be no image set."""
    sets = vision.torchvision().datasets
    there = [each for each in sets.__all__ if inspect.isclass(getattr(sets, each)) and each not in NO_SETS]
    if name not in there:
        lower = {each.lower(): each for each in there}
        near = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=3)]
        advice = f"did you mean {' or '.join(near)}?" if near else f"allowed are {', '.join(there)}"
        raise UserError(f"{knob} = {name!r}: torchvision has no such data set (of images in folders: folder); {advice}")
    kind: type = getattr(sets, name)
    accepted: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        own = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        accepted = {**own, **accepted}
        if own and not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            break  # nothing is passed on to the class below
    given = {"self", "root", *FIXED.get(name, {})}
    asks = [p.name for p in accepted.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if more := [each for each in asks if each not in given]:
        raise UserError(f"{knob} = {name!r}: no classification set: it asks for {', '.join(more)} too")
    return kind, accepted.keys() - FIXED.get(name, {}).keys()


def _opened(kind: type, accepted: set[str], place: Path, download: bool, arguments: Mapping[str, Any]) -> Any:
    given = {key: value for key, value in (("root", place), ("download", download)) if key in accepted}
    if download:
        place.mkdir(parents=True, exist_ok=True)
        print(f"fetching {kind.__name__} into {place}", flush=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(**given, **arguments)
    finally:
        if download:  # folders that were made for what did not come
            for folder in (*sorted(filter(Path.is_dir, place.rglob("*")), reverse=True), place):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _foreign(dataset: Any) -> str:
    """What a set gives in place of an image and the number of its class; nothing if it gives these."""
    try:
        first = dataset[0]
    except (*DAMAGE, *FOREIGN):
        return ""  # a damaged image is named when all are read
    parts = first if isinstance(first, tuple) else (first,)
    if len(parts) == 2 and isinstance(parts[0], Image.Image):
        with contextlib.suppress(TypeError):
            operator.index(parts[1])
            return ""
    return " and ".join(type(part).__name__ for part in parts)
