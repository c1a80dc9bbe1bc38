"""A user's own images, in a folder a class. Whatever is not read is accounted for."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.common import arrays, workspace
from stages.common.datasets import pictures
from stages.common.datasets.account import Account, is_system
from stages.common.datasets.sources import files_below, fitted, progress
from stages.common.datasets.splits import Images, Look, Split, apart, hold_out, hold_out_counts, labelled
from stages.common.errors import UserError, shown
from stages.common.params import Params

ROOT, OOD_ROOT = "datasets.folder.prepare.root", "datasets.folder.prepare.ood_root"
SPLITS = ("train", "test")
LIKE_SPLITS = {"training", "testing", "val", "valid", "validation", "dev", "eval", "tests"}  # what others call them


def read(params: Params, rng: np.random.Generator, account: Account) -> dict[str, Split]:
    """The images below `root`, with those below `ood_root` as the OOD set."""
    data = params.datasets.folder.prepare
    shape = (3, data.image_size, data.image_size)
    splits = {name: read_files(by_class, shape, account) for name, by_class in _listed(params, account).items()}
    account.refuse_bad_files()
    found = {name: labelled(splits.pop(name)) for name in list(splits)}
    if "test" not in found:
        found["train"], found["test"] = hold_out(found["train"], data.test_fraction, rng, "test_fraction")
    return found


def look(params: Params, account: Account) -> Look:
    """What `read` would find, by the names of files."""
    data = params.datasets.folder.prepare
    images = {name: _counts(by_class) for name, by_class in _listed(params, account).items()}
    if "test" not in images:
        images["train"], images["test"] = hold_out_counts(images["train"], data.test_fraction, "test_fraction")
    return Look(images, (3, data.image_size, data.image_size))


def look_extra(root: str, knob: str, account: Account) -> dict[str, int]:
    """What `extra` would find, by the names of files."""
    place = find(root, knob)
    account.places[root] = str(place)
    return _counts(class_files(place, knob, account))


def _counts(files: Mapping[str, Sequence[Path]]) -> dict[str, int]:
    return {name: len(files[name]) for name in sorted(files)}


def _listed(params: Params, account: Account) -> dict[str, dict[str, list[Path]]]:
    """The files of each class of train, ood and, where there is one, test."""
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
    account.places |= {ROOT: str(root), OOD_ROOT: str(ood_root)}
    return {**files, "ood": {name: ood_files[name] for name in chosen}}


def find(folder: str, knob: str) -> Path:
    """A folder that params.yaml names: ~ is the home; below the project also when this runs in a copy of it."""
    wanted = Path(folder).expanduser()
    for home in workspace.homes():
        if (home / wanted).is_dir():
            return home / wanted
    raise UserError(f"{folder} is not a folder; put your images into {folder}/<class>/ or change {knob}")


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
    odd = [str(path) for path in entries if _is_folder(path) and shown(path.name) != path.name]
    if odd:
        raise UserError(
            f"{shown(', '.join(odd))}: a class name holds no line ends or other control characters, and is UTF-8; "
            "rename the folder"
        )
    account.left_out["in no class folder"] += sum(not path.is_dir() and not is_system(path.name) for path in entries)
    files = {path.name: sorted(_images_below(path, account)) for path in entries if _is_folder(path)}
    empty = [str(root / name) for name in files if not files[name]]
    if empty or not files:
        raise UserError(
            f"{', '.join(empty) or root} holds no images; they belong into {root}/<class>/ ({knob}) "
            f"and end in {', '.join(sorted(pictures.suffixes()))}"
        )
    return files


def _images_below(folder: Path, account: Account) -> Iterator[Path]:
    for path in files_below(folder):
        if _is_image(path):
            yield path
        else:
            account.leave_out(path)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not is_system(path.name)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in pictures.suffixes() and not is_system(path.name)


def _holds_images(folder: Path) -> bool:
    return any(_is_image(path) for path in folder.iterdir())


def read_files(files: Mapping[str, Sequence[Path]], shape: tuple[int, ...], account: Account) -> dict[str, Images]:
    """The images of each class in the shape (C, H, W): the largest centred part of that form, antialiased.

    Files that cannot be read are noted in the account and left out.
    """
    sizes = dict.fromkeys(files, 0)
    images = arrays.stack(_pixels(files, shape, account, sizes), sum(map(len, files.values())), shape)
    return apart(images, sizes)


def _pixels(
    files: Mapping[str, Sequence[Path]], shape: tuple[int, ...], account: Account, sizes: dict[str, int]
) -> Iterator[np.ndarray]:
    """The image of each file that can be read, one class after the other; counts them in `sizes`."""
    with progress(sum(map(len, files.values())), "read images") as bar:
        for name, paths in files.items():
            for path in paths:
                bar.update()
                try:
                    picture = pictures.load(path, max(shape[1:]))
                except pictures.UnreadableError as error:
                    account.bad[str(path)] = str(error)
                    continue
                pixels = fitted(picture.image, shape)
                account.note(pixels, picture.size, picture.transparent, shown(str(path)))
                sizes[name] += 1
                yield pixels


def extra(root: str, shape: tuple[int, ...], knob: str, account: Account) -> dict[str, Images]:
    """The images of each class folder below `root` in the shape (C, H, W); `knob` names where `root` comes from."""
    images = read_files(class_files(find(root, knob), knob, account), shape, account)
    account.refuse_bad_files()
    return images
