"""A user's own images, in a folder a class. Whatever is not read is accounted for."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.common import workspace
from stages.common.datasets import pictures
from stages.common.datasets.account import Account
from stages.common.datasets.copies import key as image_key
from stages.common.datasets.sources import fitted, progress
from stages.common.datasets.splits import Images, Split, hold_out, labelled
from stages.common.errors import UserError
from stages.common.params import Params

ROOT, OOD_ROOT = "datasets.folder.prepare.root", "datasets.folder.prepare.ood_root"
SPLITS = ("train", "test")
LIKE_SPLITS = {"training", "testing", "val", "valid", "validation", "dev", "eval", "tests"}  # what others call them
SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "__pycache__"}  # no classes
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


def read(params: Params, rng: np.random.Generator, account: Account) -> dict[str, Split]:
    """The images below `root`, with those below `ood_root` as the OOD set."""
    data = params.datasets.folder.prepare
    root, ood_root = find(data.root, ROOT), find(data.ood_root, OOD_ROOT)
    files = {name: class_files(folder, ROOT, account) for name, folder in _split_folders(root).items()}
    ood_files = class_files(ood_root, OOD_ROOT, account)
    known = files["train"]
    if len(known) < 2:
        raise UserError(f"{root} has {len(known)} class folder ({', '.join(known)}): at least two are needed")
    if "test" in files and files["test"].keys() != known.keys():
        odd = ", ".join(sorted(files["test"].keys() ^ known.keys()))
        raise UserError(f"{root}: train/ and test/ must have the same class folders; only one of them has {odd}")
    chosen = data.ood_classes or sorted(ood_files)
    for name in chosen:
        if name not in ood_files:
            raise UserError(
                f"datasets.folder.prepare.ood_classes = {name!r}: allowed are {', '.join(sorted(ood_files))}"
            )
        if name in known:
            raise UserError(f"{ood_root / name}: {name!r} is a class to learn too; rename one")
    not_chosen = ood_files.keys() - set(chosen)
    account.left_out["of OOD classes not chosen"] += sum(len(ood_files[name]) for name in not_chosen)

    shape = (3, data.image_size, data.image_size)
    splits = {name: read_files(by_class, shape, account) for name, by_class in files.items()}
    splits["ood"] = read_files({name: ood_files[name] for name in chosen}, shape, account)
    account.refuse_bad_files()
    found = {name: labelled(by_class) for name, by_class in splits.items()}
    if "test" not in found:
        found["train"], found["test"] = hold_out(found["train"], data.test_fraction, rng, "test_fraction")
    return found


def find(folder: str, knob: str) -> Path:
    """A folder that params.yaml names: ~ is the home; below the project also when this runs in a copy of it."""
    wanted = Path(folder).expanduser()
    for home in workspace.homes():
        if (home / wanted).is_dir():
            return home / wanted
    raise UserError(f"{folder} is not a folder; put your images into {folder}/<class>/ or change {knob} in params.yaml")


def _split_folders(root: Path) -> dict[str, Path]:
    """train and perhaps test below `root`, or `root` itself as train. A folder that holds images is a class."""
    folders = [path for path in sorted(root.iterdir()) if _is_folder(path)]
    splits = {path.name: path for path in folders if path.name in SPLITS and not _holds_images(path)}
    like = [path.name for path in folders if path.name.lower() in LIKE_SPLITS and not _holds_images(path)]
    if not splits and not like:
        return {"train": root}
    others = [path.name for path in folders if path.name not in splits]
    if "train" not in splits:
        raise UserError(
            f"{root} has {', '.join([*splits, *like])} but no train/: call the splits train/ and test/, "
            f"or put the class folders right below {root}"
        )
    if others:
        raise UserError(
            f"{root} has {', '.join(others)} beside train/, which would not be read: move their images into the class "
            "folders of train/ or test/ (validation images are held out of train/)"
        )
    return splits


def class_files(root: Path, knob: str, account: Account) -> dict[str, list[Path]]:
    """The image files of each class folder below `root`, in its subfolders too."""
    entries = sorted(root.iterdir())
    account.left_out["in no class folder"] += sum(path.is_file() and not _is_system(path) for path in entries)
    files = {path.name: sorted(_images_below(path, account)) for path in entries if _is_folder(path)}
    empty = [str(root / name) for name in files if not files[name]]
    if empty or not files:
        raise UserError(
            f"{', '.join(empty) or root} holds no images; they belong into {root}/<class>/ ({knob}) "
            f"and end in {', '.join(sorted(pictures.suffixes()))}"
        )
    return files


def _images_below(folder: Path, account: Account) -> Iterator[Path]:
    visited: set[str] = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in visited:
            inner.clear()  # a link that leads back
            continue
        visited.add(real)
        inner[:] = sorted(name for name in inner if _is_folder(Path(place, name)))
        for path in (Path(place, name) for name in sorted(names)):
            if _is_image(path):
                yield path
            elif not _is_system(path):
                account.left_out[path.suffix.lower() or "without an ending"] += 1


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and path.name.lower() not in SYSTEM


def _is_system(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in SYSTEM_FILES


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in pictures.suffixes() and not _is_system(path)


def _holds_images(folder: Path) -> bool:
    return any(_is_image(path) for path in folder.iterdir())


def read_files(files: Mapping[str, Sequence[Path]], shape: tuple[int, ...], account: Account) -> dict[str, Images]:
    """The images of each class in the shape (C, H, W): the largest centred part of that form, antialiased.

    Files that cannot be read are noted in the account and left out.
    """
    images = {}
    with progress(sum(map(len, files.values())), "read images") as bar:
        for name, paths in files.items():
            found = []
            for path in paths:
                try:
                    picture = pictures.load(path, max(shape[1:]))
                except pictures.UnreadableError as error:
                    account.bad[str(path)] = str(error)
                    continue
                finally:
                    bar.update()
                found.append(fitted(picture.image, shape))
                account.sizes[f"{picture.size[0]}x{picture.size[1]}"] += 1
                account.transparent += picture.transparent
                account.origins[image_key(found[-1])].append(str(path))
            images[name] = np.stack(found) if found else np.empty((0, *shape), np.uint8)
    return images


def extra(root: str, shape: tuple[int, ...], knob: str, account: Account) -> dict[str, Images]:
    """The images of each class folder below `root` in the shape (C, H, W); `knob` names where `root` comes from."""
    images = read_files(class_files(find(root, knob), knob, account), shape, account)
    account.refuse_bad_files()
    return images
