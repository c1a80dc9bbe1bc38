"""Is all there that a run needs? Checks parameters, data and machine in seconds, decodes no image, writes nothing.

    python -m scripts.check, or make check

What would stop a stage is one message, and exit status 1; else a short account of the data. Which images are damaged,
and which are copies of others, only prepare tells.
"""

import argparse
import math
import shutil
from collections.abc import Iterator, Mapping

from stages.common import artifacts, datasets, device, errors, params
from stages.common.datasets import Account, Look
from stages.common.params import faults

LISTED = 20  # classes that are named; more are counted
BESIDE = 500_000_000  # bytes for models, interrupted trainings, plots and DVC's own
GIGABYTE = 1e9


def main() -> None:
    knobs = params.load()
    where = device.choose(knobs.device)
    steps = "bfloat16" if device.bfloat16(knobs.precision, where) else "float32"
    print(f"params.yaml: sound; device: {where}, steps in {steps}")
    account = Account()
    looked = datasets.look(knobs, account)
    if account.absent:
        raise errors.UserError(account.absent[0])
    for name, place in account.places.items():
        print(f"{name}: {place}")
    if looked is None:
        print(f"{knobs.dataset}: its images can be told only by prepare")
    else:
        learnt = looked.images["train"]
        faults.refuse(faults.found_in_data(knobs, list(learnt), sum(learnt.values())))
        for line in (*lines(looked), *account.lines(), disk(looked)):
            print(line)
    print("next: dvc repro")


def lines(looked: Look) -> Iterator[str]:
    """How many images of each class prepare would write, unless some are copies of others."""
    yield f"images of {'x'.join(map(str, looked.shape))}:"
    for split in ("train", "val", "test", "ood", "extra"):
        counts = looked.images[split]
        yield f"  {split:<5} {sum(counts.values()):>9,}  {per_class(counts)}".rstrip()
    for kind, split in {"learnt": "train", "OOD": "ood"}.items():
        names = list(looked.images[split])
        more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
        yield f"classes {kind}: {', '.join(names[:LISTED])}{more}"


def per_class(counts: Mapping[str, int]) -> str:
    """The numbers of images of the classes, the smallest and the largest class named if these differ."""
    if not counts:
        return ""
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    classes = f"{len(counts):,} class{'es' * (len(counts) > 1)}"
    if counts[least] == counts[most]:
        return f"{classes} of {counts[most]:,}"
    return f"{classes} of {counts[least]:,} ({least}) to {counts[most]:,} ({most})"


def disk(looked: Look) -> str:
    """The space that is needed and free. Raises UserError if that is too little."""
    images = sum(sum(counts.values()) for counts in looked.images.values())
    sets = images * (math.prod(looked.shape) + 8)  # a byte a pixel, eight a label
    held = sum(path.stat().st_size for path in artifacts.PREPARED.glob("*.npz"))  # will be written over
    needed, free = max(2 * sets - held, 0) + BESIDE, shutil.disk_usage(".").free
    said = f"disk: {needed / GIGABYTE:.1f} GB needed, {free / GIGABYTE:.1f} GB free"
    if needed > free:
        raise errors.UserError(f"{said}: prepared images lie in data/prepared and in DVC's cache; free some space")
    return said


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    errors.run(main)
