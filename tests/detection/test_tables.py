"""Tables of confidences: every model, set and score once, with the figures that `detection` gives for it."""

import numpy as np
import pytest
import torch

from stages.common import detection
from stages.common.detection import tables
from stages.common.images import ImageSet

SCORES = ("max_softmax", "knn")
UNKNOWN = {
    name: ImageSet(torch.zeros(size, 1, 8, 8, dtype=torch.uint8), torch.arange(size) % 2, ["cup", "pen"])
    for name, size in (("ood", 60), ("near", 20))
}


@pytest.fixture(scope="module")
def found():
    draw = np.random.default_rng(0)
    sizes = {"val": 100, "id": 80, "ood": 60, "near": 20}
    shift = {"val": 1.0, "id": 1.0, "ood": 0.0, "near": 0.5}
    return {
        model: {score: {key: draw.normal(shift[key], 1, size) for key, size in sizes.items()} for score in SCORES}
        for model in ("standard", "robust")
    }


def main_pairs(found):
    return {m: {s: (parts["id"], parts["ood"]) for s, parts in by_score.items()} for m, by_score in found.items()}


def test_every_score_on_every_set_with_a_paired_test_against_the_baseline(found):
    table = tables.by_set(found, UNKNOWN, baseline="max_softmax", accept=0.9, confidence=0.95)
    table = table.set_index(["model", "set", "score"])
    assert len(table) == 2 * 2 * 2
    row, parts = table.loc[("robust", "near", "knn")], found["robust"]["knn"]
    assert row.auroc == detection.auroc(parts["id"], parts["near"])
    assert (row.id_images, row.ood_images) == (80, 20)
    threshold = np.sort(parts["val"])[-90]  # accepts 0.9 of the 100 validation images
    assert row.id_accepted == np.mean(parts["id"] >= threshold)
    base = found["robust"]["max_softmax"]
    difference = detection.auroc(parts["id"], parts["near"]) - detection.auroc(base["id"], base["near"])
    assert row.minus_max_softmax == pytest.approx(difference)
    assert row.minus_max_softmax_low < difference < row.minus_max_softmax_high
    assert table.minus_max_softmax.isna().tolist() == [score == "max_softmax" for *_, score in table.index]


def test_a_class_is_counted_with_its_own_images_and_its_most_frequent_guess(found):
    taken_for = {m: {key: torch.tensor([2, 1]).repeat(len(part) // 2) for key, part in UNKNOWN.items()} for m in found}
    rows = list(tables.by_class(found, taken_for, UNKNOWN, ["ant", "bee", "cat"]))
    counted = [(row["set"], row["class"], row["images"]) for row in rows[:4]]
    assert counted == [("ood", "cup", 30), ("ood", "pen", 30), ("near", "cup", 10), ("near", "pen", 10)]
    assert [(row["taken_for"], row["share"]) for row in rows[:2]] == [("cat", 1.0), ("bee", 1.0)]
    parts = found["standard"]["knn"]
    assert rows[1]["knn"] == detection.auroc(parts["id"], parts["ood"][1::2])


def test_an_image_has_a_row_with_what_each_model_says_of_it(found):
    sets = {
        "id": ImageSet(torch.zeros(80, 1, 8, 8, dtype=torch.uint8), torch.arange(80) % 2, ["ant", "bee"]),
        **UNKNOWN,
    }
    taken_for = {m: {key: torch.arange(len(part)) % 3 for key, part in sets.items()} for m in found}
    sure = {m: {key: torch.linspace(0, 1, len(part)) for key, part in sets.items()} for m in found}
    table = tables.by_image(found, taken_for, sure, sets, ["ant", "bee", "cat"])
    assert table["set"].tolist() == 80 * ["test"] + 60 * ["ood"] + 20 * ["near"]
    of = table[table["set"] == "near"].set_index("index")
    assert of["class"].tolist() == 10 * ["cup", "pen"]
    assert of["robust_taken_for"].tolist()[:4] == ["ant", "bee", "cat", "ant"]
    assert of["standard_confidence"].tolist() == sure["standard"]["near"].tolist()
    assert of["robust_knn"].tolist() == found["robust"]["knn"]["near"].tolist()


def test_the_lines_state_the_table_s_figures_and_warn_of_wide_intervals(found):
    table = tables.by_set(found, UNKNOWN, baseline="max_softmax", accept=0.9, confidence=0.95)
    paired = {"knn": {"difference": 0.01, "low": -0.02, "high": 0.04}}
    head, *rows, test = tables.lines(table, paired, headline="knn")
    assert head.startswith("80 ID and 60 OOD images") and head.endswith("AUROC against near")
    assert [row.split()[:2] for row in rows] == [[model, score] for model in found for score in SCORES]
    figures = table.set_index(["model", "score", "set"])
    at = figures.loc[("robust", "knn", "ood")]
    shown = f"{at.auroc:.3f} [{at.auroc_low:.3f}, {at.auroc_high:.3f}]  {at.fpr95:.3f}"
    assert rows[3].endswith(f"{shown}  {figures.loc[('robust', 'knn', 'near')].auroc:.3f}")
    assert test == "knn: robust less standard +0.010 [-0.020, +0.040]"
    *_, warning = tables.lines(table.assign(auroc_low=table.auroc_high - 0.3), paired, headline="knn")
    assert warning.startswith("warning: so few images leave intervals up to 0.30 wide")


@pytest.mark.parametrize(("kind", "figure"), [("roc", "auroc"), ("pr", "ap_id")])
def test_curves_carry_the_area_that_their_legend_states(found, kind, figure):
    pairs = main_pairs(found)
    results = {m: {s: detection.evaluate(*pair) for s, pair in by_score.items()} for m, by_score in pairs.items()}
    table = tables.curves(pairs, results, kind)
    for (model, score), part in table.groupby(["model", "score"]):
        assert set(part.area) == {results[model][score][figure]}
        x, y = part.iloc[:, 2], part.iloc[:, 3]
        assert np.trapezoid(y, x) == pytest.approx(results[model][score][figure], abs=1e-3 if kind == "roc" else 0.02)


def test_histograms_share_their_bins_and_hold_every_image(found):
    table = tables.histograms(main_pairs(found))
    for _, part in table.groupby(["model", "score"]):
        inside, outside = part[part.set == "ID"], part[part.set == "OOD"]
        assert inside.confidence.tolist() == outside.confidence.tolist()
        assert inside.share.sum() == pytest.approx(1) and outside.share.sum() == pytest.approx(1)
