"""Tell test images (in-distribution, ID) from OOD images by every detector in `detectors.DETECTORS`, with both models.

In:  data/prepared/{train,val,test,ood,extra}.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/ood.json, of the main OOD set; plots/ood_scores.csv, every figure on every OOD set; plots/ood_classes.csv,
     AUROC for each OOD class; plots/{roc,pr}_{standard,robust,max_logit}.csv, curves of all scores on one model, and of
     the study's score on both; plots/ood_histogram_{standard,robust}.csv; plots/images/ood_{histograms,fooled}.png;
     data/rows/ood_eval.csv, of each image what it is taken for, how surely, and every detector's confidence

Scores are fitted on the training images; the validation images set the thresholds. No OOD image decides anything.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from stages.common import artifacts, calibration, detection, device, evaluation, figures, images, params, rows, stage
from stages.common.artifacts import MODELS
from stages.common.detection import detectors, tables
from stages.common.detection.scores import Options
from stages.common.images import ImageSet
from stages.common.models import Classifier

HEADLINE = "max_logit"  # the study's score: one picture compares the two models by it
BASELINE = "max_softmax"  # every score is tested against this one (Hendrycks 2017)
MAIN = "ood"  # the set that metrics/ood.json and the curves are about


def main() -> None:
    knobs = params.load_prepared()
    train, val, test, ood, extra = (images.read(name) for name in ("train", "val", "test", MAIN, "extra"))
    unknown = {MAIN: ood, **images.by_prefix(extra)}
    judged = {"id": test, **unknown}
    both = evaluation.load_both(train, device.choose(knobs.device))
    level = knobs.confidence

    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}  # confidences [model][detector][set]
    taken_for: dict[str, dict[str, Tensor]] = {}  # predicted classes [model][set]
    sure: dict[str, dict[str, Tensor]] = {}  # their probabilities [model][set]
    names = detectors.of_both(both, Options.from_params(knobs), train)
    for name, model in both.items():
        found[name], taken_for[name], sure[name] = examine(name, model, train, {"val": val, **judged}, names, knobs)

    main_pairs = {m: {s: (parts["id"], parts[MAIN]) for s, parts in found[m].items()} for m in MODELS}
    results = {
        model: {score: detection.evaluate(*pair, confidence=level) for score, pair in pairs.items()}
        for model, pairs in main_pairs.items()
    }
    paired = {
        score: detection.delong_test(*main_pairs["robust"][score], *pair, confidence=level)
        for score, pair in main_pairs["standard"].items()
    }
    sizes = {"id": len(test), "ood": len(ood)}
    base_rate = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    metrics = {**results, "robust_minus_standard": paired, "sizes": sizes, "base_rate": base_rate}
    artifacts.write_metrics(artifacts.METRICS / "ood.json", metrics)
    table = tables.by_set(found, unknown, baseline=BASELINE, accept=knobs.ood_eval.accept, confidence=level)
    artifacts.write_table(artifacts.PLOTS / "ood_scores.csv", table)
    by_class = tables.by_class(found, taken_for, unknown, test.classes)
    artifacts.write_table(artifacts.PLOTS / "ood_classes.csv", list(by_class))
    by_image = tables.by_image(found, taken_for, sure, judged, test.classes)
    rows.write(rows.FOLDER / "ood_eval.csv", by_image)
    draw(main_pairs, results)
    fooled = figures.fooled_grid(
        {model: (found[model][HEADLINE][MAIN], taken_for[model][MAIN]) for model in MODELS}, ood, test.classes
    )
    artifacts.write_figure(artifacts.IMAGES / "ood_fooled.png", fooled)
    for line in tables.lines(table, paired, headline=HEADLINE):
        print(line)


def examine(
    name: str,
    model: Classifier,
    train: ImageSet,
    sets: Mapping[str, ImageSet],
    names: Sequence[str],
    knobs: params.Params,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Tensor], dict[str, Tensor]]:
    """One model's confidences [detector][set], predicted classes [set] and their probabilities [set]. Frees all that it
    has fitted and seen.
    """
    sight, options = detectors.Sight.from_params(knobs), Options.from_params(knobs)
    fitted = detectors.fit_on(model, train, sight, options, names=names, description=f"{name}: train")
    confidences: dict[str, dict[str, np.ndarray]] = {score: {} for score in fitted}
    taken_for, sure = {}, {}
    for key, part in sets.items():
        seen = detectors.see(model, part, sight, names=detectors.views_of(names), description=f"{name}: {key}")
        sure[key], taken_for[key] = calibration.probabilities_of(seen["plain"].logits).max(1)
        for score, values in detectors.score(fitted, seen).items():
            confidences[score][key] = values.numpy()
    print(f"{name}: {len(fitted)} detectors on {sum(map(len, sets.values())):,} images", flush=True)
    return confidences, taken_for, sure


def draw(pairs: tables.Pairs, results: tables.Results) -> None:
    """Curves and histograms: every score on each model, and the headline score on both."""
    for kind in tables.CURVES:
        table = tables.curves(pairs, results, kind)
        for model in MODELS:
            artifacts.write_table(artifacts.PLOTS / f"{kind}_{model}.csv", table[table.model == model])
        artifacts.write_table(artifacts.PLOTS / f"{kind}_{HEADLINE}.csv", table[table.score == HEADLINE])
    table = tables.histograms(pairs)
    for model in MODELS:
        artifacts.write_table(artifacts.PLOTS / f"ood_histogram_{model}.csv", table[table.model == model])
    aurocs = {model: {score: row["auroc"] for score, row in rows.items()} for model, rows in results.items()}
    artifacts.write_figure(artifacts.IMAGES / "ood_histograms.png", figures.score_histograms(pairs, aurocs))


if __name__ == "__main__":
    stage.run(main)
