"""Read the data set of params.yaml and split it: train, val and test to learn; ood and extra, never to be learnt.

Reads data/raw (or the folder that CIFAR_ROOT names), a user's own folders, or nothing at all for the digits. Writes
data/prepared/{train,val,test,ood,extra}.npz, each with images uint8 (N, C, H, W), labels int64 (N,) and classes (names
that the labels index), and metrics/data.json. If one of them cannot be written, none is left.
"""

from pathlib import Path

import numpy as np

from stages.common import artifacts, datasets, errors, params

METRICS = artifacts.METRICS / "data.json"


def main() -> None:
    knobs = params.load()
    splits = datasets.load(knobs)
    try:
        for name, split in splits.items():
            classes = np.array(split.classes)
            artifacts.write_arrays(_path(name), images=split.images, labels=split.labels, classes=classes)
        artifacts.write_metrics(METRICS, describe(knobs.dataset, splits))
    except BaseException:
        for path in (METRICS, *map(_path, splits)):  # sets of two different runs must not stand side by side
            path.unlink(missing_ok=True)
        raise
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    print(f"{knobs.dataset}: {sizes} images in {artifacts.PREPARED}; next: train_standard and train_robust")


def _path(name: str) -> Path:
    return artifacts.PREPARED / f"{name}.npz"


def describe(dataset: str, splits: dict[str, datasets.Split]) -> dict:
    """The content of metrics/data.json: names, sizes, image shape (C, H, W) and fingerprints, of all and of each."""
    return {
        "dataset": dataset,
        "classes": splits["train"].classes,
        "ood_classes": splits["ood"].classes,
        "extra_sets": sorted({name.split("/")[0] for name in splits["extra"].classes}),
        "image_shape": splits["train"].images.shape[1:],
        "sizes": {name: len(split) for name, split in splits.items()},
        "fingerprint": datasets.fingerprint(*splits.values()),
        "fingerprints": {name: datasets.fingerprint(split) for name, split in splits.items()},
    }


if __name__ == "__main__":
    errors.run(main)
