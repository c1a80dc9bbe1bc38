"""What the detectors' confidences come to: the tables behind plots/ood_*.csv, roc_*.csv and pr_*.csv,
a row an image, and lines for the terminal.

`found[model][score][set]` are confidences float64 (N,), larger = more in-distribution, of the validation images (val),
the test images (id) and each OOD set; `pairs[model][score]` are the ID and the OOD ones of one set.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from stages.common import rows
from stages.common.detection import curves as curves_of
from stages.common.detection import measures
from stages.common.images import ImageSet

BINS = 50
WIDE = 0.2  # an AUROC interval beyond which no two scores can be told apart
PAIRED = {"difference": "", "low": "_low", "high": "_high", "p_value": "_p"}
CURVES = {
    "roc": (curves_of.roc_curve, ("fpr", "tpr"), "auroc"),
    "pr": (curves_of.pr_curve, ("recall", "precision"), "ap_id"),
}

Confidences = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
Pairs = Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]
Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # figures of `detection.evaluate`, [model][score]


def by_set(
    found: Confidences, unknown: Mapping[str, ImageSet], *, baseline: str, accept: float, confidence: float
) -> pd.DataFrame:
    """One row per model, OOD set and score: every figure, the rates of a threshold that accepts the share `accept` of
    the validation images, and the paired test against the score `baseline`.
    """
    return pd.DataFrame(_set_rows(found, unknown, baseline, accept, confidence))


def _set_rows(
    found: Confidences, unknown: Mapping[str, ImageSet], baseline: str, accept: float, confidence: float
) -> Iterator[dict[str, object]]:
    for model, by_score in found.items():
        for key, ood in unknown.items():
            for score, parts in by_score.items():
                pair, base = (parts["id"], parts[key]), by_score[baseline]
                test = {}
                if score != baseline:
                    test = measures.delong_test(*pair, base["id"], base[key], confidence=confidence)
                yield {
                    **{"model": model, "set": key, "score": score, "id_images": len(pair[0]), "ood_images": len(ood)},
                    **measures.evaluate(*pair, confidence=confidence),
                    **measures.balanced(*pair),
                    **measures.at_threshold(parts["val"], *pair, accept=accept),
                    **{f"minus_{baseline}{suffix}": test.get(name) for name, suffix in PAIRED.items()},
                }


def by_class(
    found: Confidences,
    taken_for: Mapping[str, Mapping[str, Tensor]],
    unknown: Mapping[str, ImageSet],
    classes: Sequence[str],
) -> Iterator[dict[str, object]]:
    """One row per model and OOD class: what it is most often taken for, and its AUROC by every score.

    `taken_for[model][set]` are predicted labels (N,), which index `classes`.
    """
    for model, by_score in found.items():
        for key, ood in unknown.items():
            for label, name in enumerate(ood.classes):
                members = (ood.labels == label).numpy()
                guess = taken_for[model][key][members].bincount(minlength=len(classes))
                aurocs = {s: measures.auroc(parts["id"], parts[key][members]) for s, parts in by_score.items()}
                yield {
                    **{"model": model, "set": key, "class": name, "images": int(members.sum())},
                    **{"taken_for": classes[int(guess.argmax())], "share": float(guess.max() / guess.sum())},
                    **aurocs,
                }


def by_image(
    found: Confidences,
    taken_for: Mapping[str, Mapping[str, Tensor]],
    sure: Mapping[str, Mapping[str, Tensor]],
    sets: Mapping[str, ImageSet],
    classes: Sequence[str],
) -> pd.DataFrame:
    """A row per image of `sets`, as `rows` has them: its class, and by each model which of `classes` it is taken for,
    how surely, and every detector's confidence.

    `taken_for[model][set]` are predicted labels (N,), and `sure[model][set]` their probabilities (N,).
    """
    parts = []
    for key, image_set in sets.items():
        columns: dict[str, Tensor | Sequence[object]] = {}
        columns["class"] = [image_set.classes[i] for i in image_set.labels.tolist()]
        for model, by_score in found.items():
            columns[f"{model}_taken_for"] = [classes[i] for i in taken_for[model][key].tolist()]
            columns[f"{model}_confidence"] = sure[model][key]
            columns |= {f"{model}_{score}": torch.from_numpy(values[key]) for score, values in by_score.items()}
        parts.append(rows.part("test" if key == "id" else key, torch.arange(len(image_set)), columns))
    return pd.concat(parts)


def lines(table: pd.DataFrame, paired: Mapping[str, Mapping[str, float]], *, headline: str) -> Iterator[str]:
    """Of the table `by_set`, for the terminal: the figures on its first set with their intervals, AUROC on the others;
    and of `paired`, [score], how the two models compare by the score `headline`.
    """
    main, *others = table["set"].unique()
    on_main = table[table["set"] == main]
    images = on_main.iloc[0]
    yield (
        f"{images.id_images} ID and {images.ood_images} OOD images: AUROC [interval], FPR95; "
        f"AUROC against {', '.join(others)}"
    )
    aurocs = table.pivot(index=["model", "score"], columns="set", values="auroc")
    for row in on_main.itertuples():
        more = "".join(f"  {aurocs.loc[(row.model, row.score), key]:.3f}" for key in others)
        interval = f"{row.auroc:.3f} [{row.auroc_low:.3f}, {row.auroc_high:.3f}]"
        yield f"{row.model:9} {row.score:22}{interval}  {row.fpr95:.3f}{more}"
    test = paired[headline]
    yield f"{headline}: robust less standard {test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]"
    widest = (on_main.auroc_high - on_main.auroc_low).max()
    if widest > WIDE:
        yield f"warning: so few images leave intervals up to {widest:.2f} wide: the scores cannot be told apart"


def curves(pairs: Pairs, results: Results, kind: str) -> pd.DataFrame:
    """The thinned curves `kind` (roc or pr) of every model and score, with the area that `results` states for each."""
    curve, columns, figure = CURVES[kind]

    def thinned(inside: ArrayLike, outside: ArrayLike) -> dict[str, np.ndarray]:
        return dict(zip(columns, curves_of.thin(*curve(inside, outside)), strict=True))

    table = _long(pairs, thinned)
    table["area"] = [results[m][s][figure] for m, s in zip(table.model, table.score, strict=True)]
    return table


def histograms(pairs: Pairs) -> pd.DataFrame:
    """The share of each set in BINS equal bins over the range of both, so that unequal sets compare."""

    def shares(inside: np.ndarray, outside: np.ndarray) -> dict[str, np.ndarray]:
        edges = np.histogram_bin_edges(np.concatenate([inside, outside]), BINS)
        found = [np.histogram(values, edges)[0] / len(values) for values in (inside, outside)]
        return {
            "set": np.repeat(["ID", "OOD"], BINS),
            "confidence": np.tile((edges[1:] + edges[:-1]) / 2, 2),
            "share": np.concatenate(found),
        }

    return _long(pairs, shares)


def _long(pairs: Pairs, columns: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]) -> pd.DataFrame:
    """The `columns` of every model and score below each other, behind a column for each of the two names."""
    return pd.concat(
        [
            pd.DataFrame({"model": model, "score": score, **columns(*pair)})
            for model, by_score in pairs.items()
            for score, pair in by_score.items()
        ],
        ignore_index=True,
    )
