"""CIFAR-10, and classes of CIFAR-100 as OOD: from zips and folders of PNGs, the official archives, or a download.

Nothing is extracted to disk. Whatever source the same images come from, the arrays have the same bytes.
"""

import hashlib
import http.client
import io
import tarfile
import tempfile
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from stages.common import class_names, vision
from stages.common.datasets import unpickling
from stages.common.datasets.account import Account, is_system
from stages.common.datasets.sources import RAW, files_below, open_file, progress, reading, roots
from stages.common.datasets.splits import Images, Look, Split, labelled
from stages.common.errors import NO_ROOM, UserError
from stages.common.params import Params

MEMBER_LIMIT = 100_000  # bytes; no 32x32 PNG comes near, so of a larger one no more is unpacked: it is no CIFAR image
BATCH_LIMIT = 200_000_000  # bytes; the largest batch of the official archives has 155 million


class Official(NamedTuple):
    """A data set as its authors publish it."""

    archive: str
    md5: str
    folder: str
    batches: Mapping[str, Sequence[str]]  # split -> files in `folder`
    labels_key: str
    classes: Sequence[str]
    images_per_class: Mapping[str, int]


OFFICIAL = {
    "cifar10": Official(
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        batches={"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        labels_key="labels",
        classes=class_names.CIFAR10,
        images_per_class={"train": 5000, "test": 1000},
    ),
    "cifar100": Official(
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        batches={"train": ["train"], "test": ["test"]},
        labels_key="fine_labels",
        classes=class_names.CIFAR100,
        images_per_class={"train": 500, "test": 100},
    ),
}

Part = tuple[str, str]  # split and class, such as ("train", "horse")
EXTRA_PARTS: Sequence[Part] = [("test", name) for name in class_names.CIFAR100]


def read(params: Params, rng: np.random.Generator, account: Account) -> dict[str, Split]:
    """CIFAR-10, with the chosen classes of CIFAR-100 as the OOD set."""
    known_parts, unknown_parts = _wanted(params)
    known, unknown = _read_cifar("cifar10", known_parts, account), _read_cifar("cifar100", unknown_parts, account)
    ood: dict[str, list[Images]] = defaultdict(list)
    for split, name in unknown_parts:
        ood[name].append(unknown[split, name])
    return {
        "train": labelled({name: known["train", name] for name in class_names.CIFAR10}),
        "test": labelled({name: known["test", name] for name in class_names.CIFAR10}),
        "ood": labelled({name: np.concatenate(parts) for name, parts in ood.items()}),
    }


def look(params: Params, account: Account) -> Look:
    """What `read` would find, by the names of files: as many images as were published, or the source is refused."""
    known_parts, unknown_parts = _wanted(params)
    _look_at("cifar10", known_parts, account)
    _look_at("cifar100", unknown_parts, account)
    known, unknown = (OFFICIAL[name].images_per_class for name in ("cifar10", "cifar100"))
    ood: Counter[str] = Counter()
    for split, name in unknown_parts:
        ood[name] += unknown[split]
    images = {split: dict.fromkeys(class_names.CIFAR10, count) for split, count in known.items()}
    return Look(images | {"ood": dict(sorted(ood.items()))}, (3, 32, 32))


def _wanted(params: Params) -> tuple[list[Part], list[Part]]:
    """The parts of cifar10, and those of cifar100 that are OOD."""
    data = params.datasets.cifar10.prepare
    splits = ("train", "test") if data.ood_split == "both" else (data.ood_split,)
    known = [(split, name) for split in ("train", "test") for name in class_names.CIFAR10]
    return known, [(split, name) for split in splits for name in data.ood_classes]


def _find(name: str) -> Path | None:
    """The first source of cifar10 or cifar100 that is there."""
    return next((root / file for root in roots() for file in _sources(name) if (root / file).exists()), None)


def _sources(name: str) -> tuple[str, ...]:
    return f"{name}.zip", name, OFFICIAL[name].archive, OFFICIAL[name].folder


def _absent(name: str, but: str) -> str:
    return (
        f"{name} is not there: looked for {', '.join(_sources(name))} in {' and '.join(map(str, roots()))}, {but}.\n"
        f"       Put one of these into {RAW}, or name their folder in the environment variable CIFAR_ROOT,\n"
        "       or take the data set that needs no download: dvc exp run -S dataset=digits"
    )


def _look_at(name: str, wanted: Sequence[Part], account: Account) -> None:
    """Refuse a source whose files are not those that are wanted, as far as their names tell."""
    if (path := _find(name)) is None:
        account.absent.append(_absent(name, "which `dvc repro` would download"))
        return
    account.places[name] = str(path)
    if path.name == f"{name}.zip":
        with _opened_zip(path) as archive:
            _listed(path, archive.namelist(), name, wanted, account)
    elif path.name == name:
        _listed(path, _names_below(path), name, wanted, account)
    elif path.name == OFFICIAL[name].archive:
        _check_sum(path, name)


def _read_cifar(name: str, wanted: Sequence[Part], account: Account) -> dict[Part, Images]:
    """The wanted parts of cifar10 or cifar100 from the first source that is there."""
    if (path := _find(name)) is None:
        try:
            path = _download(name)
        except (OSError, RuntimeError, ImportError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in NO_ROOM:
                raise
            raise UserError(_absent(name, f"and its download failed ({error})")) from None
    if path.name == f"{name}.zip":
        return _read_zip(path, name, wanted, account)
    if path.name == name:
        return _read_tree(path, name, wanted, account)
    return (_read_tar if path.name == OFFICIAL[name].archive else _read_batches)(path, name, wanted)


@contextmanager
def _opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    with reading(path, "the archive"):
        archive = zipfile.ZipFile(path)
    with archive:
        for member in archive.namelist():
            as_path = PureWindowsPath(member)  # takes / and \\ and drives: whatever some system would follow
            if as_path.anchor or ".." in as_path.parts:
                raise UserError(f"{path}: its member {member!r} points outside of it; do not trust it, delete it")
        yield archive


def _read_zip(path: Path, name: str, wanted: Sequence[Part], account: Account) -> dict[Part, Images]:
    with _opened_zip(path) as archive:

        def opened(member: str) -> IO[bytes]:
            if archive.getinfo(member).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("it is packed by a method that unpacks more at once than is asked for")
            return archive.open(member)

        return _read_pngs(path, _listed(path, archive.namelist(), name, wanted, account), opened, name)


def _read_tree(path: Path, name: str, wanted: Sequence[Part], account: Account) -> dict[Part, Images]:
    found = _listed(path, _names_below(path), name, wanted, account)
    return _read_pngs(path, found, lambda member: open_file(path / member), name)


def _names_below(path: Path) -> Iterator[str]:
    return (file.relative_to(path).as_posix() for file in files_below(path))


def _listed(
    where: Path, files: Iterable[str], name: str, wanted: Sequence[Part], account: Account
) -> dict[Part, list[str]]:
    """The wanted of `files`, laid out [<name>/]{train,test}/<class>/*.png. What is no such file is left out."""
    found: dict[Part, list[str]] = defaultdict(list)
    for file in dict.fromkeys(files):
        path = PurePosixPath(file.removeprefix(f"{name}/"))
        if file.endswith("/") or any(is_system(part) for part in path.parts):
            continue
        if path.suffix != ".png":
            account.leave_out(path)
        elif len(path.parts) != 3 or path.parts[0] not in ("train", "test"):
            account.left_out["in no class folder"] += 1
        elif path.parts[1] not in OFFICIAL[name].classes:
            account.left_out[f"of no class of {name}"] += 1
        else:
            found[path.parts[0], path.parts[1]].append(file)
    if not found:
        raise UserError(f"{where} holds no {{train,test}}/<class>/*.png: it is not {name}; delete it and fetch {name}")
    _check_counts(where, name, wanted, {part: len(files) for part, files in found.items()})
    return {part: found[part] for part in wanted}


def _read_pngs(
    where: Path, found: Mapping[Part, Sequence[str]], opened: Callable[[str], IO[bytes]], name: str
) -> dict[Part, Images]:
    """Decode the files of each part."""

    def decode(member: str) -> np.ndarray:
        with reading(where, member):
            with opened(member) as file:
                content = file.read(MEMBER_LIMIT + 1)
            if len(content) > MEMBER_LIMIT:
                raise ValueError(f"more than {MEMBER_LIMIT:,} bytes are too many for an image of 32x32")
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                if image.size != (32, 32) or image.mode != "RGB":
                    raise ValueError(f"{image.width}x{image.height} {image.mode} instead of 32x32 RGB")
                return np.asarray(image)

    with warnings.catch_warnings(), progress(sum(map(len, found.values())), f"read {name}") as bar:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of a size that is refused all the same
        parts = {}
        for part, members in found.items():
            pixels = np.stack([decode(member) for member in members])
            parts[part] = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
            bar.update(len(pixels))
    return parts


def _check_counts(where: Path, name: str, wanted: Sequence[Part], found: Mapping[Part, int]) -> None:
    expected = OFFICIAL[name].images_per_class
    for split, class_name in wanted:
        count = found.get((split, class_name), 0)
        if count != expected[split]:
            whole = sorted(c for (s, c), n in found.items() if s == split and n == expected[split])
            raise UserError(
                f"{where}: class {class_name!r} has {count} {split} images instead of {expected[split]}; fetch {name} "
                f"again, or choose among the classes that are whole in {split}: {', '.join(whole) or 'none'}"
            )


def _check_sum(path: Path, name: str) -> None:
    official = OFFICIAL[name]
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != official.md5:
        raise UserError(
            f"{path} is not the official archive, or not the whole of it "
            f"(md5 {digest.hexdigest()} instead of {official.md5}); delete it and run again"
        )


def _read_tar(path: Path, name: str, wanted: Sequence[Part]) -> dict[Part, Images]:
    official = OFFICIAL[name]
    _check_sum(path, name)
    batches = {}
    needed = {f"{official.folder}/{batch}" for split in _splits(wanted) for batch in official.batches[split]}
    with reading(path, "a batch"), tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if member.name in needed and (content := archive.extractfile(member)):
                batches[PurePosixPath(member.name).name] = content.read()
    return _from_batches(path, batches, name, wanted)


def _read_batches(path: Path, name: str, wanted: Sequence[Part]) -> dict[Part, Images]:
    files = [path / batch for split in _splits(wanted) for batch in OFFICIAL[name].batches[split]]
    there = [file for file in files if file.is_file()]
    for file in there:
        if file.stat().st_size > BATCH_LIMIT:
            raise UserError(f"{file} is larger than any batch of {name}; delete it and fetch {name} again")
    return _from_batches(path, {file.name: file.read_bytes() for file in there}, name, wanted)


def _splits(wanted: Sequence[Part]) -> list[str]:
    return sorted({split for split, _ in wanted})


def _from_batches(where: Path, batches: Mapping[str, bytes], name: str, wanted: Sequence[Part]) -> dict[Part, Images]:
    """The wanted parts of the official batches, pickled dicts of pixels (n, 3072) and n labels."""
    official = OFFICIAL[name]
    parts: dict[Part, Images] = {}
    for split in _splits(wanted):
        images, numbers = [], []
        for batch in official.batches[split]:
            if batch not in batches:
                raise UserError(f"{where} lacks {batch}; delete it and fetch {official.archive} again")
            with reading(where, batch):
                pixels, classes = unpickling.batch(batches[batch], official.labels_key)
            images.append(pixels)
            numbers.append(classes)
        pixels, classes = np.concatenate(images), np.concatenate(numbers)
        parts |= {(split, c): pixels[classes == number] for number, c in enumerate(official.classes)}
    _check_counts(where, name, wanted, {part: len(images) for part, images in parts.items()})
    return {part: parts[part] for part in wanted}


def _download(name: str) -> Path:
    """Fetch the official archive into RAW with torchvision, which checks its md5. It appears there whole or not."""
    official = OFFICIAL[name]
    torchvision = vision.torchvision()
    RAW.mkdir(parents=True, exist_ok=True)
    print(f"fetching {official.archive} into {RAW}", flush=True)
    with tempfile.TemporaryDirectory(dir=RAW, prefix=".download-") as folder:
        url = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name].url
        torchvision.datasets.utils.download_url(url, folder, official.archive, official.md5)
        return (Path(folder) / official.archive).replace(RAW / official.archive)


def extra(params: Params, shape: tuple[int, ...]) -> dict[str, Images]:
    """CIFAR-100's whole test set: near to CIFAR-10 (a bus is much like its trucks)."""
    with _not_needed():
        found = _read_cifar("cifar100", EXTRA_PARTS, Account())  # `read` has accounted for its files
    return {name: pixels for (_, name), pixels in found.items()}


def look_extra(params: Params, account: Account) -> dict[str, int]:
    """What `extra` would find, by the names of files."""
    with _not_needed():
        _look_at("cifar100", EXTRA_PARTS, Account())
    return {name: OFFICIAL["cifar100"].images_per_class["test"] for _, name in EXTRA_PARTS}


@contextmanager
def _not_needed() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}\n       (or take cifar100 out of datasets.cifar10.prepare.extra_sets)") from None
