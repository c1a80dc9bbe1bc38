"""Data sets: a reader a source, by name in READERS; more OOD sets by name in EXTRA, or a folder."""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

import numpy as np

from stages.common.datasets import cifar, copies, digits, folder, noise
from stages.common.datasets.account import Account
from stages.common.datasets.splits import Images, Split, fingerprint, hold_out, labelled
from stages.common.params import Params

__all__ = ["EXTRA", "READERS", "Account", "Split", "copies", "fingerprint", "hold_out", "labelled", "load"]

# The splits train, test and ood; the generator is for what a reader chooses at random
READERS: Mapping[str, Callable[[Params, np.random.Generator, Account], dict[str, Split]]] = {
    "cifar10": cifar.read,
    "digits": digits.read,
    "folder": folder.read,
}
# Images of each class, in the shape (C, H, W)
EXTRA: Mapping[str, Callable[[Params, tuple[int, ...]], dict[str, Images]]] = {
    "cifar100": cifar.extra,
    "digits": digits.extra,
    "noise": noise.extra,
}


def load(params: Params, account: Account | None = None) -> dict[str, Split]:
    """Read the data set of params.yaml: train, val and test (in-distribution), ood, and extra (more OOD sets).

    The classes of extra are named <set>/<class>; it may be empty. `account` is told what became of the files.
    Raises UserError for files that are absent, damaged or of another kind, for unknown class names and for classes of
    too few images; each message says what to do.
    """
    account = Account() if account is None else account
    rng = np.random.default_rng(params.seed)
    splits = READERS[params.dataset](params, rng, account)
    train, val = hold_out(splits["train"], params.data.prepare.validation_fraction, rng, "validation_fraction")
    extra = _extra(params, train, account)
    return {"train": train, "val": val, "test": splits["test"], "ood": splits["ood"], "extra": extra}


def _extra(params: Params, like: Split, account: Account) -> Split:
    """The sets that `extra_sets` names, in the shape of the images `like`, classes named <set>/<class>."""
    shape = like.images.shape[1:]
    knob = f"datasets.{params.dataset}.prepare.extra_sets ({', '.join(EXTRA)}, or a folder)"
    images: dict[str, Images] = {}
    for entry in params.data.prepare.extra_sets:
        name = PurePosixPath(entry).name
        found = EXTRA[entry](params, shape) if entry in EXTRA else folder.extra(entry, shape, knob, account)
        images |= {f"{name}/{class_name}": pixels for class_name, pixels in found.items()}
    if not images:
        return Split(np.empty((0, *shape), np.uint8), np.empty(0, np.int64), ())
    return labelled(images)
