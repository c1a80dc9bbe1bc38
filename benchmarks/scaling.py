"""How cost grows: an FGSM sweep with images and with budgets, a training epoch with images and with the net's width.

python -m benchmarks.scaling     # five minutes; writes the table into docs/performance.md
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import common
from stages.common import attacks, images, models, params, training
from stages.common.errors import run
from stages.common.images import ImageSet

DOCUMENT = Path("docs/performance.md")
START, END = "<!-- table: python -m benchmarks.scaling -->", "<!-- /table of growth -->"
REPEATS = 3
IMAGES = (1024, 2048, 4096)
BUDGETS = (1, 5, 9, 17)
WIDTHS = ((32, 64, 128), (32, 128, 256), (64, 128, 256), (64, 192, 256))


def sweep(model: torch.nn.Module, image_set: ImageSet, budgets: int) -> Callable[[], None]:
    epsilons = torch.linspace(0.01, 0.1, budgets).tolist()

    def call() -> None:
        for _, x, y in images.batches(image_set.images, image_set.labels, device="cpu", description="sweep"):
            attacks.fgsm_sweep(model, x, y, epsilons)

    return call


def epoch(image_set: ImageSet, widths: tuple[int, ...]) -> Callable[[], None]:
    """An epoch of standard training at full image size, with the set-up that comes with it."""
    knobs = params.load()
    recipe = training.recipe(knobs, epochs=1, label_smoothing=knobs.training.label_smoothing)
    recipe = replace(recipe, early_size=None, batch_size=min(recipe.batch_size, len(image_set)))

    def call() -> None:
        model = models.build("whitened_cnn", channels=3, classes=image_set.classes, widths=list(widths))
        model.adapt(images.to_float(image_set.images[:500]))
        with tempfile.TemporaryDirectory() as folder:
            few = image_set.take(torch.arange(10))
            training.train(model, image_set, few, recipe, resume_in=Path(folder), name="epoch")

    return call


def row(what: str, sides: dict[str, Callable[[], None]]) -> str:
    """One line of the table: each side's seconds, and how many times those of the first."""
    seconds = common.alternate(sides, REPEATS)
    first = next(iter(seconds.values()))
    line = f"| {what} | " + "; ".join(f"{name}: {s:.1f} s ({s / first:.2f})" for name, s in seconds.items()) + " |"
    print(line, flush=True)
    return line


def main() -> None:
    start = time.perf_counter()
    images.device("cpu")
    train = images.read("train")
    parts = {count: train.take(torch.arange(0, len(train), len(train) // count)[:count]) for count in IMAGES}
    default = tuple(params.load().models.whitened_cnn.widths)
    model = models.build("whitened_cnn", channels=3, classes=train.classes, widths=list(default)).eval()
    model.adapt(images.to_float(train.images[:500]))
    lines = [
        "| what grows | seconds (times the first) |",
        "|---|---|",
        row("images of a sweep over nine budgets", {f"{n:,}": sweep(model, parts[n], 9) for n in IMAGES}),
        row(
            f"budgets of a sweep over {IMAGES[0]:,} images",
            {str(k): sweep(model, parts[IMAGES[0]], k) for k in BUDGETS},
        ),
        row("images of a training epoch", {f"{n:,}": epoch(parts[n], default) for n in IMAGES}),
        row(
            f"widths, a training epoch of {IMAGES[1]:,} images",
            {"/".join(map(str, widths)): epoch(parts[IMAGES[1]], widths) for widths in WIDTHS},
        ),
    ]
    common.put_table(DOCUMENT, START, END, "\n".join([f"Measured on {common.machine()}.", "", *lines]))
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    run(main)
