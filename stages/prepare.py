"""Read the data set of params.yaml and split it: train, val and test to learn; ood and extra, never to be learnt.

Reads data/raw (or the folder that CIFAR_ROOT names), a user's own folders, or nothing at all for the digits. Writes
data/prepared/{train,val,test,ood,extra}.npz, each with images uint8 (N, C, H, W), labels int64 (N,) and classes (names
that the labels index), and metrics/data.json, which accounts for every file. If one of them cannot be written, none is
left.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.common import artifacts, datasets, params, stage
from stages.common.datasets import Account, copies
from stages.common.params import faults

METRICS = artifacts.METRICS / "data.json"


def main() -> None:
    knobs = params.load()
    account, looked = Account(), datasets.look(knobs)
    if looked is not None:
        refuse_what_is_not_there(knobs, looked.images["train"])  # before the minutes that decoding may take
    splits = datasets.load(knobs, account)
    if looked is None:
        refuse_what_is_not_there(knobs, _per_class(splits["train"]))
    found = copies.find(splits, account)
    copies.refuse(found, knobs.data.prepare.copies, f"datasets.{knobs.dataset}.prepare.copies")
    try:
        for name, split in splits.items():
            classes = np.array(split.classes)
            artifacts.write_arrays(_path(name), images=split.images, labels=split.labels, classes=classes)
        of_files = {"files": account.summary(), "copies": {kind.where: kind.number for kind in found}}
        artifacts.write_metrics(METRICS, describe(knobs.dataset, splits) | of_files)
    except BaseException:
        for path in (METRICS, *map(_path, splits)):  # sets of two different runs must not stand side by side
            path.unlink(missing_ok=True)
        raise
    for line in (*account.lines(), *copies.lines(found)):
        print(line)
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    print(f"{knobs.dataset}: {sizes} images in {artifacts.PREPARED}; next: train_standard and train_robust")


def refuse_what_is_not_there(knobs: params.Params, learnt: Mapping[str, int]) -> None:
    """Raise UserError where parameters name what is none of the classes `learnt`, or ask for more images than these."""
    faults.refuse(faults.found_in_data(knobs, list(learnt), sum(learnt.values())))


def _path(name: str) -> Path:
    return artifacts.PREPARED / f"{name}.npz"


def describe(dataset: str, splits: Mapping[str, datasets.Split]) -> dict[str, Any]:
    """What metrics/data.json says of the sets: names, sizes, of each class too, image shape (C, H, W), fingerprints."""
    return {
        "dataset": dataset,
        "classes": splits["train"].classes,
        "ood_classes": splits["ood"].classes,
        "extra_sets": sorted({name.split("/")[0] for name in splits["extra"].classes}),
        "image_shape": splits["train"].images.shape[1:],
        "sizes": {name: len(split) for name, split in splits.items()},
        "images_per_class": {name: _per_class(split) for name, split in splits.items() if name != "extra"},
        "fingerprint": datasets.fingerprint(*splits.values()),
        "fingerprints": {name: datasets.fingerprint(split) for name, split in splits.items()},
    }


def _per_class(split: datasets.Split) -> dict[str, int]:
    counts = np.bincount(split.labels, minlength=len(split.classes)).tolist()
    return dict(zip(split.classes, counts, strict=True))


if __name__ == "__main__":
    stage.run(main, ranked=False)
