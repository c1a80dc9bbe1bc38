"""The model and the images of an examination, brought together: which image is of which output, of what size."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from scripts.examine.arguments import Asked
from stages.common import images, models, origin_names
from stages.common.datasets import folder, pictures
from stages.common.datasets.account import Account
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.models import Classifier, origins, weights
from stages.common.models.foreign import Foreign
from stages.common.models.origins import Expected, Origin
from stages.common.normalization import NORMALIZATIONS
from stages.common.params.types import LARGEST, SMALLEST

RESAMPLING = {kind.name.lower(): kind for kind in Image.Resampling}


class Form(NamedTuple):
    """How an image is made: its shorter side resized to `resize` pixels, the central square of `crop` cut out."""

    resize: int
    crop: int
    interpolation: str

    def __str__(self) -> str:
        cut = f"{self.crop}x{self.crop} pixels"
        return cut if self.crop == self.resize else f"{cut}, cut out of {self.resize} ({self.interpolation})"


class Listed(NamedTuple):
    """Image files and their labels, int64 (N,), which index `classes`."""

    files: list[Path]
    labels: torch.Tensor
    classes: list[str]

    def sample(self, count: int) -> "Listed":
        """A fair sample: every class with its share."""
        chosen = images.sample(self.labels, count)
        return Listed([self.files[i] for i in chosen.tolist()], self.labels[chosen], self.classes)


def listed(root: Path, option: str, classes: Sequence[str] | None, account: Account) -> Listed:
    """The files of DIR/<class>/*; labels follow `classes`, or the folders' names in order."""
    found = folder.class_files(folder.find(str(root), option), option, account)
    _refuse_splits(root, option, found)
    names = sorted(found) if classes is None else list(classes)
    unknown = [name for name in found if name not in names]
    if unknown:
        raise UserError(
            f"{root} has class folders that the model has no output for: {', '.join(unknown[:5])}; the model's classes "
            f"are {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}: rename the folders, or name the classes "
            "in the model's order with --classes FILE"
        )
    if len(names) < 2:
        raise UserError(f"{root} has one class ({names[0]}): a classifier tells at least two apart")
    return _labelled(found, names)


def strangers(root: Path, account: Account) -> Listed:
    """The files of OOD images: DIR/<class>/*, or all of DIR where it has no folders."""
    place = folder.find(str(root), "--ood")
    if any(path.is_dir() for path in place.iterdir()):
        found = folder.class_files(place, "--ood", account)
        if len(found) > 1:
            _refuse_splits(root, "--ood", found)
        return _labelled(found, sorted(found))
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in pictures.suffixes())
    if not files:
        raise UserError(f"{root} holds no images (--ood)")
    return _labelled({place.name: files}, [place.name])


def _refuse_splits(root: Path, option: str, found: Collection[str]) -> None:
    splits = {*folder.SPLITS, *folder.LIKE_SPLITS}
    if all(name.lower() in splits for name in found):
        raise UserError(
            f"{root} has {', '.join(found)}, which are no classes: name one of them, {option} {root / min(found)}"
        )


def _labelled(found: Mapping[str, Sequence[Path]], classes: list[str]) -> Listed:
    """The files of each folder in the order of their names, with the number of each one's class."""
    names = sorted(found)
    labels = [classes.index(name) for name in names for _ in found[name]]
    return Listed([path for name in names for path in found[name]], torch.tensor(labels), classes)


def class_names(path: Path | None) -> list[str] | None:
    """The names in a file, one a line; None without a file."""
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path} cannot be read ({error})") from None
    names = [name for name in names if name]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or len(names) < 2:
        raise UserError(
            f"--classes {path} " + (f"names {twice[0]!r} twice" if twice else "names fewer than two classes")
        )
    return names


def is_checkpoint(asked: Asked) -> bool:
    """Whether MODEL is a checkpoint of this project. Raises UserError where it is nothing at all."""
    if origin_names.is_origin(asked.model):
        return False
    if Path(asked.model).suffix in (".pt", ".pth") or Path(asked.model).is_file():
        return True
    raise UserError(f"{asked.model!r} is no file, and names no model: allowed are {origin_names.FORMS}")


def checkpoint(asked: Asked) -> Classifier:
    """The model of a checkpoint, which knows its classes and normalises by itself."""
    for option in ("weights", "classes", "normalize"):
        if getattr(asked, option) is not None:
            raise UserError(f"--{option} does not go with a checkpoint of this project, which brings its own")
    path = Path(asked.model)
    if path.is_file() and not models.is_checkpoint(path):
        raise UserError(
            f"{path} is no checkpoint of this project; if it holds weights, name the architecture as MODEL and pass "
            f"the file with --weights: py:my_model.py:build --weights {path}"
        )
    return models.load_checkpoint(path)


def module(asked: Asked, classes: int) -> Origin:
    """The module that MODEL names, with --weights in it if they are given."""
    found = origins.find(asked.model, classes=classes, channels=3, pretrained=asked.weights is None)
    if asked.weights is not None:
        weights.load(found.module, asked.weights)
    return found


def form(asked: Asked, expected: Expected | None, files: Sequence[Path]) -> Form:
    """How images are made for the model: as asked, or as its library expects, or as they are, all of one size."""
    kind = expected.interpolation if expected else "bilinear"
    if asked.size or asked.crop:
        size = asked.size or asked.crop or 0
        found = Form(size, asked.crop or size, kind)
    elif expected:
        found = Form(expected.resize, expected.crop, kind)
    else:
        side = _common_side(files)
        found = Form(side, side, kind)
    if found.crop > found.resize or not SMALLEST <= found.crop <= LARGEST:
        raise UserError(
            f"--size {found.resize} --crop {found.crop}: a square of {SMALLEST} to {LARGEST} pixels, no larger than "
            "--size"
        )
    return found


def _common_side(files: Sequence[Path]) -> int:
    """The side of images that are all of one size and square. Raises UserError where they are not."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in files:
        try:
            with Image.open(path, formats=pictures.FORMATS) as image:
                sizes[image.size] += 1
        except Exception:  # told with all other bad files when they are read
            continue
    if len(sizes) == 1 and len({*next(iter(sizes))}) == 1:
        return next(iter(sizes))[0]
    named = ", ".join(f"{width}x{height}" for (width, height), _ in sizes.most_common(3))
    raise UserError(
        f"the images are of {named or 'no size that could be read'}{' ...' if len(sizes) > 3 else ''}, and the model "
        "does not say which it takes: name it with --size N (and --crop N)"
    )


def sets(
    asked: Asked, files: Mapping[str, Listed], expected: Expected | None, channels: int | None, account: Account
) -> tuple[dict[str, ImageSet], str]:
    """All listed sets as the model takes them, and how they were made, in words."""
    made = form(asked, expected, files["test"].files)
    return to_channels({name: read(part, made, account) for name, part in files.items()}, channels), str(made)


def read(found: Listed, form: Form, account: Account) -> ImageSet:
    """The listed images as uint8 (N, 3, crop, crop). Raises one UserError that names all that cannot be read."""
    pixels = np.empty((len(found.files), 3, form.crop, form.crop), np.uint8)
    with images.progress(len(found.files), "read images") as bar:
        for row, path in enumerate(found.files):
            try:
                picture = pictures.load(path, form.resize)
                pixels[row] = _made(picture.image, form).transpose(2, 0, 1)
                account.transparent += picture.transparent
            except pictures.UnreadableError as error:
                account.bad[str(path)] = str(error)
            bar.update()
    account.refuse_bad_files()
    return ImageSet(torch.from_numpy(pixels), found.labels, found.classes)


def _made(image: Image.Image, form: Form) -> np.ndarray:
    """Resized and cropped as torchvision and timm do it; an image of the right size keeps its pixels."""
    width, height = image.size
    if min(width, height) != form.resize:
        scale = form.resize / min(width, height)
        size = (max(form.resize, int(width * scale)), max(form.resize, int(height * scale)))
        image = image.resize(size, RESAMPLING[form.interpolation])
    left, top = (round((side - form.crop) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + form.crop, top + form.crop)))


def to_channels(sets: Mapping[str, ImageSet], wanted: int | None) -> dict[str, ImageSet]:
    """All sets with three channels, or with one: as the model takes them, or where it does not tell, as they are."""
    grey = all(bool((s.images == s.images[:, :1]).all()) for s in sets.values())
    if wanted == 1 and not grey:
        raise UserError("the model takes grey images, and these have colours: make them grey first")
    if wanted == 1 or (wanted is None and grey):
        return {name: ImageSet(s.images[:, :1].contiguous(), s.labels, s.classes) for name, s in sets.items()}
    return dict(sets)


def judged(asked: Asked, found: Origin, image_set: ImageSet) -> Foreign:
    """The module behind the face that attacks and detectors know, looked at on made-up images of that form."""
    known = found.expected.moments if found.expected else NORMALIZATIONS["none"]
    return Foreign(
        found.module,
        origin=asked.model,
        channels=image_set.images.shape[1],
        size=image_set.images.shape[-1],
        classes=image_set.classes,
        moments=asked.normalize or known,
    ).eval()
