"""How cost grows: an FGSM sweep with images and with budgets, a training epoch with images and with the net's width.

python -m benchmarks.scaling     # five minutes; writes the table into docs/performance.md
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import common
from stages.common import attacks, device, images, params, training
from stages.common.errors import run
from stages.common.images import ImageSet

DOCUMENT = Path("docs/performance.md")
START, END = "<!-- table: python -m benchmarks.scaling -->", "<!-- /table of growth -->"
REPEATS = 3
IMAGES = (1024, 2048, 4096)
BUDGETS = (1, 5, 9, 17)
WIDTHS = ((32, 64, 128), (32, 128, 256), (48, 192, 384), (64, 256, 384))


def sweep(model: torch.nn.Module, image_set: ImageSet, budgets: int) -> Callable[[], None]:
    epsilons = torch.linspace(0.01, 0.1, budgets).tolist()

    def call() -> None:
        where = device.of(model)
        for _, _, x, y in images.batches(image_set.images, image_set.labels, device=where, description="sweep"):
            attacks.fgsm_sweep(model, x, y, epsilons)

    return call


def of_widths(widths: Sequence[int]) -> params.Params:
    """params.yaml's parameters with a net of other widths."""
    return params.load(overrides={"model.name": "whitened_cnn", "models.whitened_cnn.widths": list(widths)})


def epoch(image_set: ImageSet, widths: Sequence[int]) -> Callable[[], None]:
    """An epoch of standard training at full image size, with the set-up that comes with it."""
    knobs = of_widths(widths)
    recipe = replace(training.Recipe.from_params(knobs, "standard", torch.device("cpu")), epochs=1)
    recipe = replace(recipe, early_size=None)
    few = common.take(image_set, 10)

    def call() -> None:
        model = training.new_model(knobs, "standard", image_set)
        with tempfile.TemporaryDirectory() as folder:
            training.train(model, image_set, few, recipe, resume_in=Path(folder), name="epoch")

    return call


def row(what: str, sides: Mapping[str, Callable[[], None]]) -> str:
    """One line of the table: each side's seconds, and how many times those of the first."""
    seconds = common.alternate(sides, REPEATS)
    first = next(iter(seconds.values()))
    line = f"| {what} | " + "; ".join(f"{name}: {s:.1f} s ({s / first:.2f})" for name, s in seconds.items()) + " |"
    print(line, flush=True)
    return line


def main() -> None:
    start = time.perf_counter()
    device.keep_freed_memory()
    train = images.read("train")
    parts = {count: common.take(train, count) for count in IMAGES}
    default = params.load().models.whitened_cnn.widths
    model = training.new_model(of_widths(default), "standard", train).eval()
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
