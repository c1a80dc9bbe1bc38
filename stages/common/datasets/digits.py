"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels that need no download."""

import numpy as np
from PIL import Image

from stages.common import arrays, class_names
from stages.common.datasets.account import Account
from stages.common.datasets.sources import fitted
from stages.common.datasets.splits import Images, Look, Split, apart, hold_out, hold_out_counts, labelled
from stages.common.params import Params


def read(params: Params, rng: np.random.Generator, account: Account) -> dict[str, Split]:
    """The digits, those of ood_classes never to be learnt."""
    images, data = _images(), params.datasets.digits.prepare
    known = labelled({name: images[name] for name in class_names.DIGITS if name not in data.ood_classes})
    train, test = hold_out(known, data.test_fraction, rng, "test_fraction")
    return {"train": train, "test": test, "ood": labelled({name: images[name] for name in data.ood_classes})}


def look(params: Params, account: Account) -> Look:
    """What `read` would find."""
    data, counts = params.datasets.digits.prepare, look_extra(params, account)
    known = {name: count for name, count in counts.items() if name not in data.ood_classes}
    train, test = hold_out_counts(known, data.test_fraction, "test_fraction")
    return Look({"train": train, "test": test, "ood": {name: counts[name] for name in data.ood_classes}}, (1, 8, 8))


def look_extra(params: Params, account: Account) -> dict[str, int]:
    """What `extra` would find: they come with scikit-learn."""
    account.places["digits"] = "scikit-learn"
    return {name: len(images) for name, images in _images().items()}


def extra(params: Params, shape: tuple[int, ...]) -> dict[str, Images]:
    """scikit-learn's digits, enlarged: far from any photograph."""
    digits = _images()
    sizes = {name: len(images) for name, images in digits.items()}
    pictures = (Image.fromarray(pixels[0]) for images in digits.values() for pixels in images)
    return apart(arrays.stack((fitted(picture, shape) for picture in pictures), sum(sizes.values()), shape), sizes)


def _images() -> dict[str, Images]:
    from sklearn.datasets import load_digits  # slow to import, and not always needed

    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]  # grey levels 0 to 16
    return {name: pixels[digits.target == number] for number, name in enumerate(class_names.DIGITS)}
