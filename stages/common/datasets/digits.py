"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels that need no download."""

import numpy as np
from PIL import Image

from stages.common import class_names
from stages.common.datasets.account import Account
from stages.common.datasets.sources import fitted
from stages.common.datasets.splits import Images, Split, hold_out, labelled
from stages.common.params import Params


def read(params: Params, rng: np.random.Generator, account: Account) -> dict[str, Split]:
    """The digits, those of ood_classes never to be learnt."""
    images, data = _images(), params.datasets.digits.prepare
    known = labelled({name: images[name] for name in class_names.DIGITS if name not in data.ood_classes})
    train, test = hold_out(known, data.test_fraction, rng, "test_fraction")
    return {"train": train, "test": test, "ood": labelled({name: images[name] for name in data.ood_classes})}


def extra(params: Params, shape: tuple[int, ...]) -> dict[str, Images]:
    """scikit-learn's digits, enlarged: far from any photograph."""
    digits = _images()
    return {name: np.stack([fitted(Image.fromarray(pixels[0]), shape) for pixels in digits[name]]) for name in digits}


def _images() -> dict[str, Images]:
    from sklearn.datasets import load_digits  # slow to import, and not always needed

    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]  # grey levels 0 to 16
    return {name: pixels[digits.target == number] for number, name in enumerate(class_names.DIGITS)}
