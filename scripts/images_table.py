"""Pictures of what the models get wrong, and of what they hold out against, from data/images.csv: build/images/*.png

    python -m scripts.images_table      # or make images-table

Ten images a model, the most telling ones first. Of test images: the surest errors, the surest of those that the
strongest attack breaks and of those that survive it, and what the smallest budgets change. Of the detector that tells
OOD images best: the OOD images that it takes for known ones, and the known ones that it takes for OOD.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure

from stages.common import artifacts, detection, errors, figures, images, rows
from stages.common.artifacts import MODELS
from stages.common.detection.detectors import DETECTORS
from stages.common.images import ImageSet

OUT = Path("build/images")
SHOWN = 10  # images a row
OURS, OTHER = "test", "ood"  # the sets that pictures are of


class Picture(NamedTuple):
    """Of which set it is, what it shows, and how it chooses: of the set's rows, those that it may show of a model, the
    ones shown first having the largest values. `taken` is the column, behind the model's name, of what they are taken
    for.
    """

    of: str
    title: str
    values: Callable[[pd.DataFrame, str], pd.Series]
    taken: str = "taken_for"


def right(table: pd.DataFrame, model: str) -> pd.Series:
    """Which rows `model` has right, clean."""
    found: pd.Series = table[f"{model}_taken_for"] == table["class"]
    return found


def strongest(table: pd.DataFrame, model: str) -> str:
    """The column of what survives the strongest attack: there is one, at eps."""
    return next(title for title in map(str, table) if title.startswith(f"{model}_strongest_"))


def best_detector(table: pd.DataFrame, model: str) -> str:
    """The column of the detector with the largest AUROC between test and OOD images."""
    columns = [title for name in DETECTORS if (title := f"{model}_{name}") in table]
    ours, other = (table[table["set"] == name] for name in (OURS, OTHER))
    return max(columns, key=lambda title: detection.auroc(ours[title].to_numpy(), other[title].to_numpy()))


def surest(table: pd.DataFrame, model: str, among: pd.Series) -> pd.Series:
    """The model's confidences in the rows `among`."""
    found: pd.Series = table.loc[among, f"{model}_confidence"]
    return found


PICTURES = {
    "surest_errors": Picture(OURS, "surest errors", lambda t, model: surest(t, model, ~right(t, model))),
    "broken": Picture(
        OURS,
        "surest of those that the strongest attack breaks",
        lambda t, model: surest(t, model, right(t, model) & (t[strongest(t, model)] == 0)),
        "strongest",
    ),
    "survivors": Picture(
        OURS, "surest of those that survive", lambda t, model: surest(t, model, t[strongest(t, model)] == 1)
    ),
    "fragile": Picture(
        OURS, "changed by the smallest budgets", lambda t, model: -t.loc[right(t, model), f"{model}_smallest_pgd"]
    ),
    "unknown_taken_in": Picture(
        OTHER, "OOD images that the best detector is surest to know", lambda t, model: t[best_detector(t, model)]
    ),
    "known_turned_away": Picture(
        OURS, "test images that the best detector is surest not to know", lambda t, model: -t[best_detector(t, model)]
    ),
}


def chosen(name: str, table: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows that a picture shows of a model, the first one first: index and taken_for."""
    picture = PICTURES[name]
    values = picture.values(table, model)[lambda found: table.loc[found.index, "set"] == picture.of]
    some = table.loc[values.dropna().nlargest(SHOWN, keep="first").index]
    column = f"{strongest(table, model)}_taken_for" if picture.taken == "strongest" else f"{model}_{picture.taken}"
    return pd.DataFrame({"index": some["index"], "taken_for": some[column]})


def drawn(name: str, table: pd.DataFrame, sets: dict[str, ImageSet]) -> Figure:
    """The picture `name`, a row a model: true name, taken for."""
    picture, names = PICTURES[name], sets[OURS].classes
    grid = {}
    for model in MODELS:
        some = chosen(name, table, model)
        taken = [names.index(guess) for guess in some["taken_for"]]
        grid[model] = (torch.tensor(some["index"].to_numpy()), torch.tensor(taken, dtype=torch.int64))
    known = names if picture.of == OTHER else []
    return figures.named_grid(
        f"{picture.title}: true name, taken for", grid, sets[picture.of], known=known, columns=SHOWN
    )


def main() -> None:
    table = rows.numbers(rows.read(artifacts.ROWS))
    sets = {name: images.read(name) for name in (OURS, OTHER)}
    for name in PICTURES:
        artifacts.write_figure(OUT / f"{name}.png", drawn(name, table, sets))
    best = ", ".join(f"{best_detector(table, model)}" for model in MODELS)
    print(f"{len(table):,} images in {artifacts.ROWS}, best detectors {best}; {', '.join(PICTURES)} drawn in {OUT}/")


if __name__ == "__main__":
    errors.run(main)
