"""Pictures of the test images that the models fail on, from data/images.csv: build/images/*.png

    python -m scripts.images_table      # or make images-table

The most confidently answered clean images are shown, of those that a model takes for another class (surest errors), of
those that the strongest attack breaks (broken), and of those that it does not (survivors).
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from scripts.judgement import ATTACKS
from stages.common import artifacts, figures, images
from stages.common.artifacts import MODELS
from stages.common.images import ImageSet

OUT = Path("build/images")
SHOWN = 10  # images a row
# Columns of class names, which may be digits, or the word nan
NAMES = ("class", *(f"{model}_{attack}" for model in MODELS for attack in ATTACKS))


def right(rows: pd.DataFrame, model: str, attack: str) -> pd.Series:
    """Which rows `model` has right under `attack`."""
    found: pd.Series = rows[f"{model}_{attack}"] == rows["class"]
    return found


# What a picture shows a row a model of: which of data/images.csv's rows, and the column of what they are taken for
PICTURES: dict[str, tuple[Callable[[pd.DataFrame, str], pd.Series], str]] = {
    "surest_errors": (lambda rows, model: ~right(rows, model, "clean"), "clean"),
    "broken": (lambda rows, model: right(rows, model, "clean") & ~right(rows, model, "strongest"), "strongest"),
    "survivors": (lambda rows, model: right(rows, model, "strongest"), "strongest"),
}


def picture(name: str, rows: pd.DataFrame, test: ImageSet) -> Figure:
    """The most confidently answered of the rows that the picture is of, a row a model: true name, taken for."""
    chosen, attack = PICTURES[name]
    drawn = {}
    for model in MODELS:
        some = rows[chosen(rows, model)].nlargest(SHOWN, f"{model}_confidence", keep="first")
        taken = [test.classes.index(guess) for guess in some[f"{model}_{attack}"]]
        drawn[model] = (torch.tensor(some["image"].to_numpy()), torch.tensor(taken, dtype=torch.int64))
    return figures.named_grid(f"{name.replace('_', ' ')}: true name, taken for", drawn, test, columns=SHOWN)


def main() -> None:
    if not artifacts.ROWS.is_file():
        sys.exit(f"error: {artifacts.ROWS} is not there; run `dvc repro breakdown`, or `dvc checkout`")
    rows, test = (
        pd.read_csv(artifacts.ROWS, dtype=dict.fromkeys(NAMES, str), keep_default_na=False),
        images.read("test"),
    )
    for name in PICTURES:
        artifacts.write_figure(OUT / f"{name}.png", picture(name, rows, test))
    print(f"{len(rows)} images in {artifacts.ROWS}; {', '.join(PICTURES)} drawn in {OUT}/")


if __name__ == "__main__":
    main()
