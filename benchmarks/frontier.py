"""Test accuracy against minutes of training: the standard recipe at several lengths and widths, each from nothing.

    python -m benchmarks.frontier                                      # the default's widths; twenty minutes
    python -m benchmarks.frontier --widths 64 256 384 --epochs 18      # another net: half an hour

Times are of `training.train`, validation after each epoch included. Rows are kept in docs/frontier.csv, with the
processor that they were timed on, and drawn as docs/frontier.png.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from matplotlib.figure import Figure

from benchmarks import common
from stages.common import artifacts, device, evaluation, images, params, training
from stages.common.errors import run

TABLE, PICTURE = Path("docs/frontier.csv"), Path("docs/frontier.png")
KEY = ["widths", "processor", "epochs"]  # what tells a row from the others


def measure(epochs: int, widths: Sequence[int] | None = None) -> dict[str, float | str]:
    """One training of the recipe in params.yaml, of another length and perhaps with other widths."""
    overrides: dict[str, object] = {"model.name": "whitened_cnn"}  # the architecture that has widths
    if widths:
        overrides["models.whitened_cnn.widths"] = list(widths)
    knobs = params.load(overrides=overrides)
    train, val, test = (images.read(name) for name in ("train", "val", "test"))
    model = training.new_model(knobs, "standard", train)
    recipe = replace(training.Recipe.from_params(knobs, "standard", device.of(model)), epochs=epochs)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        training.train(model, train, val, recipe, resume_in=Path(folder), name=f"{epochs} epochs")
        minutes = (time.perf_counter() - start) / 60
    shown = "/".join(map(str, knobs.models.whitened_cnn.widths))
    key: dict[str, float | str] = {"widths": shown, "processor": common.processor(), "epochs": epochs}
    return key | {"minutes": minutes, "accuracy": evaluation.accuracy(model, test)}


def draw(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(5.2, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    offsets = cycle([(4, -10), (-8, 6)])  # numbers of nets that lie close stand apart
    for (widths, processor), rows in table.sort_values("minutes").groupby(["widths", "processor"], sort=False):
        (line,) = axes.plot(rows.minutes, rows.accuracy, marker="o", label=f"{widths}, {processor}")
        offset = next(offsets)
        for row in rows.itertuples():
            axes.annotate(
                str(row.epochs),
                (row.minutes, row.accuracy),
                offset,
                textcoords="offset points",
                fontsize=8,
                color=line.get_color(),
            )
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50]
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    axes.margins(0.08)
    axes.set_xlabel("minutes of training on two cores (numbers: epochs)")
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="widths, processor", title_fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--widths", type=int, nargs="+", help="of the groups of layers (default: params.yaml's)")
    args = parser.parse_args()
    device.keep_freed_memory()
    print(common.machine())
    for epochs in args.epochs:
        row = measure(epochs, args.widths)
        print(f"{row['widths']}, {epochs} epochs: {row['accuracy']:.4f} in {row['minutes']:.2f} minutes", flush=True)
        common.put_row(TABLE, row, KEY, places=4)
    artifacts.write_figure(PICTURE, draw(pd.read_csv(TABLE)))


if __name__ == "__main__":
    run(main)
