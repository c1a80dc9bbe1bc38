"""Reads CIFAR archives, scikit-learn's digits and image folders into uint8 arrays, in an order that content decides.

Nothing is extracted to disk. Whatever source the same images come from, the arrays have the same bytes.
"""

import errno
import hashlib
import http.client
import io
import os
import pickle
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from stages.common import labels, workspace
from stages.common.errors import UserError
from stages.common.params import Params

RAW = Path("data/raw")
FOLDER_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
MEMBER_LIMIT = 100_000  # bytes; no 32x32 PNG comes near, so a larger one is no CIFAR image and is not unpacked
NOISE_IMAGES = 500  # of each kind
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


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
        classes=labels.CIFAR10,
        images_per_class={"train": 5000, "test": 1000},
    ),
    "cifar100": Official(
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        batches={"train": ["train"], "test": ["test"]},
        labels_key="fine_labels",
        classes=labels.CIFAR100,
        images_per_class={"train": 500, "test": 100},
    ),
}

Part = tuple[str, str]  # split and class, such as ("train", "horse")
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


def load(params: Params) -> dict[str, Split]:
    """Read the data set of params.yaml: train, val and test (in-distribution), ood, and extra (more OOD sets).

    The classes of extra are named <set>/<class>; it may be empty.
    Raises UserError for files that are absent, damaged or of another kind, for unknown class names and for classes of
    too few images; each message says what to do.
    """
    read = {"cifar10": _cifar, "digits": _digits, "folder": _folder}[params.dataset]
    rng = np.random.default_rng(params.seed)
    splits = read(params, rng)
    train, val = hold_out(splits["train"], params.data.prepare.validation_fraction, rng, "validation_fraction")
    return {"train": train, "val": val, "test": splits["test"], "ood": splits["ood"], "extra": _extra(params, train)}


def fingerprint(*splits: Split) -> str:
    """16 hex digits that change with any image, label, class name, shape or type in `splits`."""
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.images, split.labels, np.array(split.classes)):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
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


# CIFAR-10, and classes of CIFAR-100 as OOD


def _cifar(params: Params, rng: np.random.Generator) -> dict[str, Split]:
    data = params.data.prepare
    known = _read_cifar("cifar10", [(split, name) for split in ("train", "test") for name in labels.CIFAR10])
    splits = ("train", "test") if data.ood_split == "both" else (data.ood_split,)
    unknown = _read_cifar("cifar100", [(split, name) for split in splits for name in data.ood_classes])
    return {
        "train": labelled({name: known["train", name] for name in labels.CIFAR10}),
        "test": labelled({name: known["test", name] for name in labels.CIFAR10}),
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
    roots = _roots()
    for root in roots:
        for file, read in sources.items():
            if (root / file).exists():
                return read(root / file)
    try:
        archive = _download(name)
    except (OSError, RuntimeError, ImportError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{name} is not there: looked for {', '.join(sources)} in {' and '.join(map(str, roots))}, "
            f"and its download failed ({error}).\n"
            f"       Put one of these into {RAW}, or name their folder in the environment variable CIFAR_ROOT,\n"
            "       or take the data set that needs no download: dvc exp run -S dataset=digits"
        ) from None
    return _read_tar(archive, name, wanted)


def _roots() -> list[Path]:
    """Where raw data may lie, the first choice first."""
    roots = [home / RAW for home in workspace.homes()]
    named = os.environ.get("CIFAR_ROOT")
    if not named:
        return roots
    if not Path(named).is_dir():
        raise UserError(f"CIFAR_ROOT = {named!r} is not a folder; correct it, or unset it to use {RAW}")
    return [Path(named), *roots]


def _read_zip(path: Path, name: str, wanted: Sequence[Part]) -> dict[Part, Images]:
    with _reading(path, "the archive"):
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
        with _reading(where, member), Image.open(io.BytesIO(read(member)), formats=["PNG"]) as image:
            if image.size != (32, 32) or image.mode != "RGB":
                raise ValueError(f"{image.width}x{image.height} {image.mode} instead of 32x32 RGB")
            return np.asarray(image)

    with _progress(sum(len(found[part]) for part in wanted), f"read {name}") as bar:
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
    with _reading(path, "a batch"), tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if member.name in needed and (file := archive.extractfile(member)):
                batches[PurePosixPath(member.name).name] = file.read()
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
            with _reading(where, batch):
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


# scikit-learn's digits


def _digit_images() -> dict[str, Images]:
    from sklearn.datasets import load_digits  # slow to import, and not always needed

    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]  # grey levels 0 to 16
    return {name: pixels[digits.target == number] for number, name in enumerate(labels.DIGITS)}


def _digits(params: Params, rng: np.random.Generator) -> dict[str, Split]:
    images, data = _digit_images(), params.data.prepare
    known = labelled({name: images[name] for name in labels.DIGITS if name not in data.ood_classes})
    train, test = hold_out(known, data.test_fraction, rng, "test_fraction")
    return {"train": train, "test": test, "ood": labelled({name: images[name] for name in data.ood_classes})}


# A user's own images


def _folder(params: Params, rng: np.random.Generator) -> dict[str, Split]:
    data = params.data.prepare
    root, ood_root = Path(data.root), Path(data.ood_root)
    if (root / "test").is_dir() and not (root / "train").is_dir():
        raise UserError(f"{root} has test/ but no train/; make both, or put the class folders right below {root}")
    train_root = root / "train" if (root / "train").is_dir() else root
    files = _class_files(train_root, "datasets.folder.prepare.root")
    ood_files = _class_files(ood_root, "datasets.folder.prepare.ood_root")
    test_files = _class_files(root / "test", "datasets.folder.prepare.root") if (root / "test").is_dir() else None
    if len(files) < 2:
        raise UserError(f"{train_root} has {len(files)} class folder ({', '.join(files)}): at least two are needed")
    if test_files is not None and test_files.keys() != files.keys():
        odd = ", ".join(sorted(test_files.keys() ^ files.keys()))
        raise UserError(f"{root}: train/ and test/ must have the same class folders; only one of them has {odd}")
    chosen = data.ood_classes or sorted(ood_files)
    for name in chosen:
        if name not in ood_files:
            raise UserError(
                f"datasets.folder.prepare.ood_classes = {name!r}: allowed are {', '.join(sorted(ood_files))}"
            )
        if name in files:
            raise UserError(f"{ood_root / name}: {name!r} is a class to learn too ({train_root / name}); rename one")

    size = data.image_size
    known = _read_files(files, size)
    if test_files is None:
        train, test = hold_out(known, data.test_fraction, rng, "test_fraction")
    else:
        train, test = known, _read_files(test_files, size)
    return {"train": train, "test": test, "ood": _read_files({name: ood_files[name] for name in chosen}, size)}


def _class_files(root: Path, knob: str) -> dict[str, list[Path]]:
    """The image files of each class folder below `root`."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; put your images into {root}/<class>/ or change {knob} in params.yaml")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {folder.name: sorted(filter(_is_image, folder.iterdir())) for folder in folders}
    empty = [str(root / name) for name in files if not files[name]]
    if empty or not files:
        raise UserError(
            f"{', '.join(empty) or root} holds no images; they belong into {root}/<class>/ "
            f"and end in {', '.join(sorted(FOLDER_SUFFIXES))}"
        )
    return files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in FOLDER_SUFFIXES and not path.name.startswith(".")


def _read_files(files: Mapping[str, Sequence[Path]], size: int) -> Split:
    with _progress(sum(map(len, files.values())), "read images") as bar:
        images = {}
        for name, paths in files.items():
            images[name] = np.stack([_square(path, size) for path in paths])
            bar.update(len(paths))
    return labelled(images)


def _square(path: Path, size: int) -> np.ndarray:
    """The largest centred square of an image, uint8 (3, size, size), antialiased."""
    return _fitted(_upright(path), (3, size, size))


def _upright(path: Path) -> Image.Image:
    with _reading(path.parent, path.name), Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}: more than 8 bits a channel; save it as 8-bit grey or RGB")
        return ImageOps.exif_transpose(image).convert("RGB")


# More OOD sets


def _extra(params: Params, like: Split) -> Split:
    """The sets that `extra_sets` names, in the shape of the images `like`, classes named <set>/<class>."""
    shape = like.images.shape[1:]
    images: dict[str, Images] = {}
    for entry in params.data.prepare.extra_sets:
        name = PurePosixPath(entry).name
        found = EXTRA[entry](params, shape) if entry in EXTRA else _extra_folder(Path(entry), shape)
        images |= {f"{name}/{class_name}": pixels for class_name, pixels in found.items()}
    if not images:
        return Split(np.empty((0, *shape), np.uint8), np.empty(0, np.int64), ())
    return labelled(images)


def _extra_cifar100(params: Params, shape: tuple[int, ...]) -> dict[str, Images]:
    """CIFAR-100's whole test set: near to CIFAR-10 (a bus is much like its trucks)."""
    try:
        found = _read_cifar("cifar100", [("test", name) for name in labels.CIFAR100])
    except UserError as error:
        raise UserError(f"{error}\n       (or take cifar100 out of datasets.cifar10.prepare.extra_sets)") from None
    return {name: pixels for (_, name), pixels in found.items()}


def _extra_digits(params: Params, shape: tuple[int, ...]) -> dict[str, Images]:
    """scikit-learn's digits, enlarged: far from any photograph."""
    digits = _digit_images()
    return {name: np.stack([_fitted(Image.fromarray(pixels[0]), shape) for pixels in digits[name]]) for name in digits}


def _extra_noise(params: Params, shape: tuple[int, ...]) -> dict[str, Images]:
    """Uniform noise, coarse noise (squares of 4 pixels) and plain colours: the farthest of all."""
    rng = np.random.default_rng([params.seed, NOISE_IMAGES])
    channels, height, width = shape
    images = {}
    for name, square in (("fine", 1), ("coarse", 4), ("plain", max(height, width))):
        cells = rng.integers(0, 256, (NOISE_IMAGES, channels, -(-height // square), -(-width // square)), np.uint8)
        images[name] = np.repeat(np.repeat(cells, square, 2), square, 3)[:, :, :height, :width]
    return images


def _extra_folder(root: Path, shape: tuple[int, ...]) -> dict[str, Images]:
    files = _class_files(root, f"datasets.*.prepare.extra_sets ({', '.join(EXTRA)}, or a folder)")
    images = {}
    for name, paths in files.items():
        images[name] = np.stack([_fitted(_upright(path), shape) for path in paths])
    return images


def _fitted(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """An image resized to uint8 `shape` (C, H, W): its largest centred part of that form."""
    channels, height, width = shape
    sized = ImageOps.fit(image.convert("RGB" if channels == 3 else "L"), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(sized).reshape(height, width, channels).transpose(2, 0, 1)


EXTRA = {"cifar100": _extra_cifar100, "digits": _extra_digits, "noise": _extra_noise}


# What all sources share


@contextmanager
def _reading(where: Path, member: str) -> Iterator[None]:
    """Turn any fault of a file's content into a UserError that names it."""
    try:
        yield
    except PermissionError:
        raise  # nothing is wrong with the content
    except (*DAMAGE, pickle.UnpicklingError, Image.DecompressionBombError, LookupError, TypeError) as error:
        raise UserError(f"{where}: {member} is damaged or foreign ({error}); delete it and fetch it again") from None


def _progress(total: int, description: str) -> tqdm:
    return tqdm(total=total, desc=description, unit="img", leave=False, disable=not sys.stderr.isatty())
