"""The pictures that stages write as PNG: matplotlib figures of a fixed size, drawn without a display.

Colours are of Okabe and Ito's palette, which colour-blind readers can tell apart.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from stages.common import attacks, device, images
from stages.common.images import ImageSet
from stages.common.models import Classifier

DPI = 100
SCORES_PER_ROW = 4  # of histograms: a picture that a page shows whole
STANDARD, ROBUST = "#0072B2", "#D55E00"  # of the two models, in every picture
ID, OOD = "#0072B2", "#E69F00"
RIGHT, WRONG, HIT = "#009E73", "#D55E00", "#AA3377"  # of the predicted names under the images
# Of class names: the first that has a letter draws it. Those behind matplotlib's own are of other scripts than Latin,
# as Linux, macOS and Windows bring them along
FONTS = (
    *("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Arial Unicode MS"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAexGothic", "IPAGothic", "NanumGothic", "Noto Sans Devanagari"),
    *("Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "FreeSans", "FreeSerif", "Droid Sans Fallback"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI"),
)
BOX = "\N{WHITE SQUARE}"  # stands for a letter that no font has
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it warns where a family of one weight is taken


def score_histograms(
    curves: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    aurocs: Mapping[str, Mapping[str, float]],
    *,
    bins: int = 50,
) -> Figure:
    """Histograms of confidences, ID against OOD: up to four scores a row, the models below each other.

    `curves[model][score]` holds the confidences of ID (N,) and of OOD images (M,); `aurocs[model][score]`, in [0, 1],
    stands in the titles. Each histogram shows the share of its set per bin over the central 98 % of both, so that
    neither the sets' sizes nor a stray value hide the shapes. Every model must have the first one's scores.
    """
    models, scores = list(curves), list(next(iter(curves.values())))
    columns = min(len(scores), SCORES_PER_ROW)
    rows = [(model, scores[start : start + columns]) for start in range(0, len(scores), columns) for model in models]
    figure = Figure(figsize=(2.6 * columns, 2.4 * len(rows)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (model, part) in zip(grid, rows, strict=True):
        for axes, score in zip(line, part, strict=False):
            inside, outside = (np.asarray(side, dtype=np.float64) for side in curves[model][score])
            low, high = np.quantile(np.concatenate([inside, outside]), [0.01, 0.99])
            edges = np.linspace(low, high, bins + 1) if high > low else np.linspace(low - 0.5, low + 0.5, bins + 1)
            for values, name, colour in ((inside, "ID", ID), (outside, "OOD", OOD)):
                shares = np.histogram(values, edges)[0] / len(values)
                axes.stairs(shares, edges, fill=True, alpha=0.5, color=colour, label=name)
                axes.stairs(shares, edges, color=colour, linewidth=1)
            axes.set_title(f"{model}: {score.replace('_', ' ')}\nAUROC {aurocs[model][score]:.3f}", fontsize=9)
            axes.tick_params(labelsize=7)
            axes.locator_params(axis="x", nbins=4)
            axes.set_yticks([])
        for empty in line[len(part) :]:
            empty.set_axis_off()
        line[0].set_ylabel("share of images", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("confidence", fontsize=8)
    grid[0, 0].legend(fontsize=8, loc="upper left")
    return figure


def attack_grid(
    model: Classifier,
    image_set: ImageSet,
    epsilons: Sequence[float],
    *,
    name: str,
    columns: int = 10,
) -> Figure:
    """The same images clean and under FGSM at each budget, one row per budget, with true and predicted names."""
    chosen = image_set.take(images.sample(image_set.labels, columns))
    where = device.of(model)
    x, y = images.to_float(chosen.images, where), chosen.labels.to(where)
    rows = {"clean": x} | {f"eps {eps:.3g}": attacks.fgsm(model, x, y, eps) for eps in epsilons}
    figure = _grid_figure(f"FGSM on the {name} model: true name, predicted name", len(rows), len(chosen))
    for axes, (label, batch) in zip(figure.subplots(len(rows), len(chosen), squeeze=False), rows.items(), strict=True):
        _draw_row(axes, batch, y, _predict(model, batch), chosen.classes)
        axes[0].set_ylabel(label, fontsize=9)
    return figure


def fooled_grid(
    guesses: Mapping[str, tuple[ArrayLike, Tensor]], ood: ImageSet, classes: Sequence[str], *, columns: int = 10
) -> Figure:
    """The OOD images that each model is surest of: a row per model, each image under its true name.

    `guesses[model]` holds the confidences (N,) of the images in `ood` and the predicted labels (N,), which index
    `classes`; the class that an image is taken for stands below it.
    """
    columns, rows = min(columns, len(ood)), {}
    for name, (confidences, predicted) in guesses.items():
        surest = torch.from_numpy(np.argsort(-np.asarray(confidences), kind="stable")[:columns].copy())
        rows[name] = (surest, predicted[surest])
    title = "OOD images that fool each model most: true name, taken for"
    return named_grid(title, rows, ood, known=classes, columns=columns)


def named_grid(
    title: str,
    rows: Mapping[str, tuple[Tensor, Tensor]],
    image_set: ImageSet,
    *,
    known: Sequence[str] = (),
    columns: int = 10,
) -> Figure:
    """A row of images by name, each image under its true name and above what it is taken for: `rows[name]` holds up to
    `columns` indices (n,) of images in `image_set` and the predicted labels (n,), which index `known`, or where none
    are given the set's own classes.
    """
    figure = _grid_figure(title, len(rows), columns)
    names = [*known, *image_set.classes]  # true names behind the known ones, so that none is taken for right
    for axes, (name, (chosen, predicted)) in zip(
        figure.subplots(len(rows), columns, squeeze=False), rows.items(), strict=True
    ):
        some = image_set.take(chosen)
        _draw_row(axes, images.to_float(some.images), some.labels + len(known), predicted, names)
        axes[0].set_ylabel(name, fontsize=9)
    return figure


def targeted_grids(
    standard: Classifier,
    robust: Classifier,
    image_set: ImageSet,
    target: int,
    eps: float,
    *,
    columns: int = 9,
    rows: int = 2,
) -> dict[str, Figure]:
    """Images of other classes than `target`, before and after FGSM towards it, as each model sees them.

    clean_standard, attacked_standard and transferred_robust (made on the standard model, shown to the robust one) are
    the three grids of the reproduced study; attacked_robust is the robust model attacked itself.
    """
    others = (image_set.labels != target).nonzero().squeeze(1)
    chosen = image_set.take(others[images.sample(image_set.labels[others], columns * rows)])
    where = device.of(standard)
    x, y = images.to_float(chosen.images, where), chosen.labels.to(where)
    goal = torch.full_like(y, target)
    on_standard, on_robust = (attacks.fgsm(model, x, goal, eps, targeted=True) for model in (standard, robust))
    wanted = f"towards {image_set.classes[target]}, eps {eps:.3g}"
    grids = {
        "clean_standard": ("clean images, seen by the standard model", x, standard),
        "attacked_standard": (f"standard model attacked {wanted}", on_standard, standard),
        "transferred_robust": (f"standard model attacked {wanted}, seen by the robust model", on_standard, robust),
        "attacked_robust": (f"robust model attacked {wanted}", on_robust, robust),
    }
    figures = {}
    for key, (title, batch, model) in grids.items():
        figure = _grid_figure(f"{title}: true name, predicted name", rows, columns)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        _draw_row(axes, batch, y, _predict(model, batch), chosen.classes, target=target)
        figures[key] = figure
    return figures


@torch.no_grad()
def _predict(model: Classifier, batch: Tensor) -> Tensor:
    return model(batch).argmax(1)


def _grid_figure(title: str, rows: int, columns: int) -> Figure:
    figure = Figure(figsize=(1.05 * columns + 0.4, 1.4 * rows + 0.4), dpi=DPI, layout="constrained")
    figure.suptitle(_drawn(title), fontsize=10, fontfamily=_fonts(), parse_math=False)  # a class may be called $5
    return figure


def _fonts() -> list[str]:
    """Those of FONTS that this machine has."""
    there = set(font_manager.get_font_names())
    return [family for family in FONTS if family in there]


@cache
def _letters(family: str, weight: str) -> frozenset[int]:
    """The code points that a font has."""
    properties = font_manager.FontProperties(family=family, weight=weight)
    return frozenset(font_manager.get_font(font_manager.findfont(properties)).get_charmap())


def _drawn(name: str) -> str:
    """`name` with BOX for each letter that no font here has: matplotlib draws one too, and warns of each."""
    weights = [[_letters(family, weight) for family in _fonts()] for weight in ("normal", "bold")]
    return "".join(c if all(any(ord(c) in has for has in fonts) for fonts in weights) else BOX for c in name)


@cache
def _warn_of_boxes(classes: tuple[str, ...]) -> None:
    """Say it once in a run if names of `classes` cannot be drawn."""
    lacking = [name for name in classes if _drawn(name) != name]
    if lacking:
        some = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        print(f"warning: no font here has the letters of class {some}: install one such as fonts-noto-cjk")


def _draw_row(
    row: Iterable[Axes],
    batch: Tensor,
    labels: Tensor,
    predicted: Tensor,
    classes: Sequence[str],
    *,
    target: int | None = None,
) -> None:
    """Images (N, C, H, W) in [0, 1]; predictions green if right, red if wrong, purple if the target of the attack."""
    _warn_of_boxes(tuple(classes))
    text: dict[str, Any] = {"fontsize": 8, "fontfamily": _fonts(), "parse_math": False}
    for axes in row:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_frame_on(False)
    for axes, image, label, guess in zip(row, batch.cpu(), labels.tolist(), predicted.tolist(), strict=False):
        axes.imshow(image.permute(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(_drawn(classes[label]), pad=2, **text)
        colour = HIT if guess == target else RIGHT if guess == label else WRONG
        axes.set_xlabel(_drawn(classes[guess]), labelpad=2, color=colour, fontweight="bold", **text)


def loss_surfaces(surfaces: Mapping[str, Tensor], reaches: Sequence[float]) -> Figure:
    """Each model's mean loss (k, k) over FGSM's direction (rows, upwards) and a random one, both at `reaches` (k,).

    A sound model's lines of equal loss lie flat and evenly spaced: only FGSM's direction matters, and linearly.
    """
    figure = Figure(figsize=(4.6 * len(surfaces), 3.8), dpi=DPI, layout="constrained")
    for axes, (name, surface) in zip(
        figure.subplots(1, len(surfaces), squeeze=False)[0], surfaces.items(), strict=True
    ):
        colours = axes.pcolormesh(reaches, reaches, surface.numpy(), cmap="viridis", shading="nearest")
        if float(surface.max()) > float(surface.min()):
            axes.contour(reaches, reaches, surface.numpy(), levels=9, colors="white", linewidths=0.7)
        axes.plot([0], [0], marker="+", color="white")
        axes.set_title(f"{name}: mean loss round an image", fontsize=9)
        axes.set_xlabel("along random signs (eps)", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_ylabel("along FGSM's direction (eps)", fontsize=8)
        figure.colorbar(colours, ax=axes).ax.tick_params(labelsize=7)
    return figure
