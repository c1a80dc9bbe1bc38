"""How long an epoch of training takes on this machine's device, and PGD: both nets, standard and adversarial training.

python -m benchmarks.devices     # minutes on two cores, half of one on a GPU
Adds its rows to docs/devices.csv, in place of those of the same device, and writes the table of all of them into
docs/performance.md. Images are made up; --quick uses a few small ones and narrow nets, and writes nothing.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from benchmarks import common
from stages.common import attacks, device, evaluation, params, robustness, training
from stages.common.adversary import Adversary, Settings
from stages.common.errors import run
from stages.common.images import ImageSet

TABLE, DOCUMENT = Path("docs/devices.csv"), Path("docs/performance.md")
START, END = "<!-- table: python -m benchmarks.devices -->", "<!-- /table of devices -->"
EPOCH = 45_000  # images of CIFAR-10 that training sees in one
SHOWN = {"cuda": EPOCH}  # images that a measured epoch has; fewer on slow devices, and its time is scaled
FEW, ATTACKED, STEPS = 2048, 500, 20  # images of an epoch and of PGD, and the steps of that
DIGITS = {"standard": 3, "robust": 3, "pgd": 2}  # of each column of seconds, that count
NARROW = {"models.whitened_cnn.widths": [8, 8, 8], "models.resnet18.width": 8}


def made_up(count: int, side: int) -> ImageSet:
    """`count` images of noise in ten classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 10, [f"class {number}" for number in range(10)])


def epoch_seconds(knobs: params.Params, which: str, train_set: ImageSet, where: torch.device) -> float:
    """Seconds of a warm epoch of full-sized images."""
    val_set = train_set.take(torch.arange(len(train_set.classes)))
    model = training.new_model(knobs, which, train_set).to(where)
    recipe = replace(training.Recipe.from_params(knobs, which, where), epochs=2, early_size=None)
    settings = replace(Settings.from_params(knobs), ramp=0.0, undo_overfitting=False)
    regime = Adversary(model, val_set, settings) if which == "robust" else training.Plain()
    ended: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            model,
            train_set,
            val_set,
            recipe,
            regime,
            resume_in=Path(folder),
            log=lambda rows: ended.append(time.perf_counter()),
            name=which,
        )
    return ended[1] - ended[0]


def pgd_seconds(knobs: params.Params, some: ImageSet, where: torch.device, *, steps: int) -> float:
    """Seconds of PGD on images that all stay unbroken: their labels are what the model takes them for."""
    model = training.new_model(knobs, "robust", some).to(where).eval()
    kept = ImageSet(some.images, evaluation.predictions(model, some.images), some.classes)
    start = time.perf_counter()
    robustness.pgd_predictions(model, kept, 0.0, steps=steps, seed=0)
    return time.perf_counter() - start


def measured(quick: bool) -> Iterator[dict[str, object]]:
    """A row for each net and what is done with it."""
    knobs = params.load()
    where = device.choose(knobs.device)
    count, side = (64, 8) if quick else (SHOWN.get(where.type, FEW), 32)
    train_set = made_up(count, side)
    for net in ("whitened_cnn", "resnet18"):
        overrides: dict[str, object] = {"model.name": net}
        if quick:
            overrides |= {**NARROW, "datasets.cifar10.training.batch_size": 32}
        knobs = params.load(overrides=overrides)
        row: dict[str, object] = {
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else common.processor(),
            "torch": torch.__version__,
            "net": net,
        }
        with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
            for which in ("standard", "robust"):
                row[which] = epoch_seconds(knobs, which, train_set, where) * EPOCH / count
            row["pgd"] = pgd_seconds(knobs, train_set.take(torch.arange(min(ATTACKED, count))), where, steps=STEPS)
        yield row


def table(rows: pd.DataFrame) -> str:
    lines = [
        "| device | torch | net | standard epoch, s | n-fgsm epoch, s | PGD-20 on 500 images, s |",
        "|---|---|---|---:|---:|---:|",
    ]
    shown = {name: rows[name].map(partial(_seconds, digits=digits)) for name, digits in DIGITS.items()}
    for row in rows.assign(**shown).itertuples():
        lines.append(f"| {row.device} | {row.torch} | {row.net} | {row.standard} | {row.robust} | {row.pgd} |")
    return "\n".join(lines)


def _seconds(value: float, digits: int) -> str:
    """`value` to so many digits, but whole seconds whole: 1.29, 70.6, 1424."""
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def main() -> None:
    quick = common.asked_quick(__doc__)
    rows = list(measured(quick))
    if quick:
        print(table(pd.DataFrame(rows)))
        return
    for row in rows:
        common.put_row(TABLE, row, ("device", "net"), places=3)
    shown = table(pd.read_csv(TABLE))
    common.put_table(DOCUMENT, START, END, shown)
    print(shown)


if __name__ == "__main__":
    run(main)
