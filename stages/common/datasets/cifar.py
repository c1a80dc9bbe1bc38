"""CIFAR-10, and classes of CIFAR-100 as OOD: from zips and folders of PNGs, the official archives, or a download.

Nothing is extracted to disk. Whatever source the same images come from, the arrays have the same bytes.
"""

import errno
import hashlib
import http.client
import io
import pickle
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from stages.common import class_names
from stages.common.datasets.account import Account
from stages.common.datasets.sources import RAW, progress, reading, roots
from stages.common.datasets.splits import Images, Split, labelled
from stages.common.errors import UserError
from stages.common.params import Params

MEMBER_LIMIT = 100_000  # bytes; no 32x32 PNG comes near, so a larger one is no CIFAR image and is not unpacked


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


def read(params: Params, rng: np.random.Generator, account: Account) -> dict[str, Split]:
    """CIFAR-10, with the chosen classes of CIFAR-100 as the OOD set."""
    data = params.datasets.cifar10.prepare
    known = _read_cifar("cifar10", [(split, name) for split in ("train", "test") for name in class_names.CIFAR10])
    splits = ("train", "test") if data.ood_split == "both" else (data.ood_split,)
    unknown = _read_cifar("cifar100", [(split, name) for split in splits for name in data.ood_classes])
    return {
        "train": labelled({name: known["train", name] for name in class_names.CIFAR10}),
        "test": labelled({name: known["test", name] for name in class_names.CIFAR10}),
        "ood": labelled({name: np.concatenate([unknown[s, name] for s in splits]) for name in data.ood_classes}),
    }


def _read_cifar(name: str, wanted: Sequence[Part]) -> dict[Part, Images]:
    """The wanted parts of cifar10 or cifar100 from the first source that is there."""
    official = OFFICIAL[name]
    sources: dict[str, Callable[[Path], dict[Part, Images]]] = {
        f"{name}.zip": lambda path: _read_zip(path, name, wanted),
        name: lambda path: _read_tree(path, name, wanted),
        official.archive: lambda path: _read_tar(path, name, wanted),
        official.folder: lambda path: _read_batches(path, name, wanted),
    }
    places = roots()
    for root in places:
        for file, read in sources.items():
            if (root / file).exists():
                return read(root / file)
    try:
        archive = _download(name)
    except (OSError, RuntimeError, ImportError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{name} is not there: looked for {', '.join(sources)} in {' and '.join(map(str, places))}, "
            f"and its download failed ({error}).\n"
            f"       Put one of these into {RAW}, or name their folder in the environment variable CIFAR_ROOT,\n"
            "       or take the data set that needs no download: dvc exp run -S dataset=digits"
        ) from None
    return _read_tar(archive, name, wanted)


def _read_zip(path: Path, name: str, wanted: Sequence[Part]) -> dict[Part, Images]:
    with reading(path, "the archive"):
        archive = zipfile.ZipFile(path)
    with archive:
        members = {info.filename: info.file_size for info in archive.infolist()}
        for member in members:
            as_path = PureWindowsPath(member)  # takes / and \\ and drives: whatever some system would follow
            if as_path.anchor or ".." in as_path.parts:
                raise UserError(f"{path}: its member {member!r} points outside of it; do not trust it, delete it")

        def read(member: str) -> bytes:
            if members[member] > MEMBER_LIMIT:
                raise ValueError(f"{members[member]:,} bytes are too many for an image of 32x32")
            return archive.read(member)

        return _read_pngs(path, members, read, name, wanted)


def _read_tree(path: Path, name: str, wanted: Sequence[Part]) -> dict[Part, Images]:
    members = [file.relative_to(path).as_posix() for file in path.glob("*/*/*")]
    return _read_pngs(path, members, lambda member: (path / member).read_bytes(), name, wanted)


def _read_pngs(
    where: Path, members: Iterable[str], read: Callable[[str], bytes], name: str, wanted: Sequence[Part]
) -> dict[Part, Images]:
    """Decode the wanted of `members`, laid out [<name>/]{train,test}/<class>/*.png."""
    found: dict[Part, list[str]] = defaultdict(list)
    for member in members:
        *folders, file = member.removeprefix(f"{name}/").split("/")
        if len(folders) == 2 and folders[0] in ("train", "test") and file.endswith(".png") and file[0] != ".":
            found[folders[0], folders[1]].append(member)
    if not found:
        raise UserError(f"{where} holds no {{train,test}}/<class>/*.png: it is not {name}; delete it and fetch {name}")
    _check_counts(where, name, wanted, {part: len(files) for part, files in found.items()})

    def decode(member: str) -> np.ndarray:
        with reading(where, member), Image.open(io.BytesIO(read(member)), formats=["PNG"]) as image:
            if image.size != (32, 32) or image.mode != "RGB":
                raise ValueError(f"{image.width}x{image.height} {image.mode} instead of 32x32 RGB")
            return np.asarray(image)

    with progress(sum(len(found[part]) for part in wanted), f"read {name}") as bar:
        parts = {}
        for part in wanted:
            pixels = np.stack([decode(member) for member in found[part]])
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


def _read_tar(path: Path, name: str, wanted: Sequence[Part]) -> dict[Part, Images]:
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
    batches = {}
    needed = {f"{official.folder}/{batch}" for split in _splits(wanted) for batch in official.batches[split]}
    with reading(path, "a batch"), tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if member.name in needed and (content := archive.extractfile(member)):
                batches[PurePosixPath(member.name).name] = content.read()
    return _from_batches(path, batches, name, wanted)


def _read_batches(path: Path, name: str, wanted: Sequence[Part]) -> dict[Part, Images]:
    files = [path / batch for split in _splits(wanted) for batch in OFFICIAL[name].batches[split]]
    return _from_batches(path, {file.name: file.read_bytes() for file in files if file.is_file()}, name, wanted)


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
                content = _unpickle(batches[batch])
                pixels, classes = np.asarray(content["data"]), np.asarray(content[official.labels_key])
                if pixels.dtype != np.uint8 or pixels.shape != (len(classes), 3072):
                    raise ValueError(f"{pixels.dtype} {pixels.shape} for {len(classes)} labels")
            images.append(pixels.reshape(-1, 3, 32, 32))
            numbers.append(classes)
        pixels, classes = np.concatenate(images), np.concatenate(numbers)
        parts |= {(split, c): pixels[classes == number] for number, c in enumerate(official.classes)}
    _check_counts(where, name, wanted, {part: len(images) for part, images in parts.items()})
    return {part: parts[part] for part in wanted}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, strings, containers and numpy arrays. Anything else could run code of the file's choice."""

    ALLOWED = frozenset(
        {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
        | {("numpy", "ndarray"), ("numpy", "dtype")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(content: bytes) -> dict[str, Any]:
    batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()  # latin1: Python 2 wrote the official files
    if not isinstance(batch, dict):
        raise ValueError(f"it holds {type(batch).__name__}, not a dict")
    return batch


def _download(name: str) -> Path:
    """Fetch the official archive into RAW with torchvision, which checks its md5. It appears there whole or not."""
    official = OFFICIAL[name]
    torchvision = _torchvision()
    RAW.mkdir(parents=True, exist_ok=True)
    print(f"fetching {official.archive} into {RAW}", flush=True)
    with tempfile.TemporaryDirectory(dir=RAW, prefix=".download-") as folder:
        url = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name].url
        torchvision.datasets.utils.download_url(url, folder, official.archive, official.md5)
        return (Path(folder) / official.archive).replace(RAW / official.archive)


def _torchvision() -> ModuleType:
    """torchvision, even where its compiled operators do not load (a build for another torch): data sets need none."""
    try:
        import torchvision
    except RuntimeError:
        name = "torchvision._meta_registrations"  # describes the operators to torch, and fails without them
        sys.modules[name] = ModuleType(name)
        import torchvision
    return torchvision


def extra(params: Params, shape: tuple[int, ...]) -> dict[str, Images]:
    """CIFAR-100's whole test set: near to CIFAR-10 (a bus is much like its trucks)."""
    try:
        found = _read_cifar("cifar100", [("test", name) for name in class_names.CIFAR100])
    except UserError as error:
        raise UserError(f"{error}\n       (or take cifar100 out of datasets.cifar10.prepare.extra_sets)") from None
    return {name: pixels for (_, name), pixels in found.items()}
