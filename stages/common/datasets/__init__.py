"""Data sets: a reader a source, by name in READERS; more OOD sets by name in EXTRA, of torchvision, or a folder."""

from collections.abc import Callable, Mapping

import numpy as np

from stages.common.datasets import cifar, copies, digits, folder, noise, torchvision
from stages.common.datasets.account import Account
from stages.common.datasets.splits import Images, Look, Split, fingerprint, hold_out, hold_out_counts, labelled
from stages.common.params import Params
from stages.common.params.types import TORCHVISION, set_name

__all__ = [
    "EXTRA",
    "EXTRA_LOOKS",
    "LOOKS",
    "READERS",
    "Account",
    "Look",
    "Split",
    "copies",
    "fingerprint",
    "hold_out",
    "labelled",
    "load",
    "look",
]

# The splits train, test and ood; the generator is for what a reader chooses at random
READERS: Mapping[str, Callable[[Params, np.random.Generator, Account], dict[str, Split]]] = {
    "cifar10": cifar.read,
    "digits": digits.read,
    "folder": folder.read,
    "torchvision": torchvision.read,
}
# Images of each class, in the shape (C, H, W)
EXTRA: Mapping[str, Callable[[Params, tuple[int, ...]], dict[str, Images]]] = {
    "cifar100": cifar.extra,
    "digits": digits.extra,
    "noise": noise.extra,
}


# What a reader would find, before an image is decoded. Of a data set that is not here only reading it tells
LOOKS: Mapping[str, Callable[[Params, Account], Look]] = {
    "cifar10": cifar.look,
    "digits": digits.look,
    "folder": folder.look,
}
EXTRA_LOOKS: Mapping[str, Callable[[Params, Account], dict[str, int]]] = {
    "cifar100": cifar.look_extra,
    "digits": digits.look_extra,
    "noise": noise.look_extra,
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
    train, val = hold_out(splits.pop("train"), params.data.prepare.validation_fraction, rng, "validation_fraction")
    extra = _extra(params, train, account)
    return {"train": train, "val": val, "test": splits["test"], "ood": splits["ood"], "extra": extra}


def look(params: Params, account: Account | None = None) -> Look | None:
    """What `load` would find, without decoding an image: how many of each class each split has if no image is a copy.

    None for a data set of which only reading tells. `account` is told where the sources are, and which are absent: what
    is to be downloaded is taken for there. Raises UserError as `load` does, for all that names of files tell.
    """
    if params.dataset not in LOOKS:
        return None
    account = Account() if account is None else account
    found = LOOKS[params.dataset](params, account)
    images, fraction = dict(found.images), params.data.prepare.validation_fraction
    images["train"], images["val"] = hold_out_counts(images["train"], fraction, "validation_fraction")
    images["extra"] = {}
    for entry in params.data.prepare.extra_sets:
        if entry.startswith(TORCHVISION):
            account.places[entry] = "can be told only by prepare"
            continue
        name, knob = set_name(entry), _extra_knob(params)
        of = EXTRA_LOOKS[entry](params, account) if entry in EXTRA else folder.look_extra(entry, knob, account)
        images["extra"] |= {f"{name}/{class_name}": count for class_name, count in of.items()}
    return found._replace(images=images)


def _extra_knob(params: Params) -> str:
    return f"datasets.{params.dataset}.prepare.extra_sets ({', '.join(EXTRA)}, {TORCHVISION}NAME, or a folder)"


def _extra(params: Params, like: Split, account: Account) -> Split:
    """The sets that `extra_sets` names, in the shape of the images `like`, classes named <set>/<class>."""
    shape = like.images.shape[1:]
    knob = _extra_knob(params)
    images: dict[str, Images] = {}
    for entry in params.data.prepare.extra_sets:
        if entry in EXTRA:
            found = EXTRA[entry](params, shape)
        elif entry.startswith(TORCHVISION):
            found = torchvision.extra(set_name(entry), like, knob, account)
        else:
            found = folder.extra(entry, shape, knob, account)
        images |= {f"{set_name(entry)}/{class_name}": pixels for class_name, pixels in found.items()}
    if not images:
        return Split(np.empty((0, *shape), np.uint8), np.empty(0, np.int64), ())
    return labelled(images)
