"""Tell test images (in-distribution, ID) from the OOD classes by every score in `scores.SCORES`, with both models.

Reads data/prepared/{train,test,ood}.npz and data/checkpoints/{standard,robust}.pt. Scores are fitted on the training
images. Writes metrics/ood.json; plots/roc_{standard,robust,max_logit}.csv, plots/pr_{standard,robust,max_logit}.csv
(all scores of one model; or the study's score, max logit, on both), plots/ood_histogram_{standard,robust}.csv and
plots/images/ood_histograms.png.
"""

import numpy as np
import pandas as pd

from stages.common import artifacts, detection, errors, evaluation, figures, images, params, scores

MODELS = ("standard", "robust")
HEADLINE = "max_logit"  # the study's score: one picture compares the two models by it
BINS = 50
WIDE = 0.2  # an AUROC interval beyond which no two scores can be told apart


def main() -> None:
    knobs = params.load()
    train, test, ood = (images.read(name) for name in ("train", "test", "ood"))
    options = scores.Options(temperature=knobs.ood_eval.temperature, neighbours=knobs.ood_eval.neighbours)
    device = images.device(knobs.device)
    both = evaluation.load_both(train, device)
    confidences = {name: score_images(name, both[name], train, test, ood, options, device) for name in MODELS}

    level = knobs.ood_eval.confidence
    results = {
        model: {score: detection.evaluate(*pair, confidence=level) for score, pair in by_score.items()}
        for model, by_score in confidences.items()
    }
    paired = {
        score: detection.delong_test(*confidences["robust"][score], *confidences["standard"][score], confidence=level)
        for score in scores.SCORES
    }
    sizes = {"id": len(test), "ood": len(ood)}
    base_rate = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    artifacts.write_metrics(
        artifacts.METRICS / "ood.json",
        {**results, "robust_minus_standard": paired, "sizes": sizes, "base_rate": base_rate},
    )
    write_plots(confidences, results)
    report(results, paired, sizes, level)


def score_images(name, model, train, test, ood, options, device) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Confidences of the ID and the OOD images by every score, from one forward pass per set."""
    fit_data, inside, outside = (
        images.outputs(model, part.images, device=device, description=f"{name}: {what}")
        for part, what in ((train, "train"), (test, "test"), (ood, "OOD"))
    )
    fitted = {score: fit(scores.FitData(*fit_data, train.labels), options) for score, fit in scores.SCORES.items()}
    return {score: (apply(*inside).numpy(), apply(*outside).numpy()) for score, apply in fitted.items()}


def write_plots(confidences, results) -> None:
    for kind, curve, columns in (
        ("roc", detection.roc_curve, ("fpr", "tpr")),
        ("pr", detection.pr_curve, ("recall", "precision")),
    ):
        table = long_table(confidences, thinned, curve, columns)
        for model in MODELS:
            artifacts.write_table(artifacts.PLOTS / f"{kind}_{model}.csv", table[table.model == model])
        artifacts.write_table(artifacts.PLOTS / f"{kind}_{HEADLINE}.csv", table[table.score == HEADLINE])
    table = long_table(confidences, histogram)
    for model in MODELS:
        artifacts.write_table(artifacts.PLOTS / f"ood_histogram_{model}.csv", table[table.model == model])
    aurocs = {model: {score: row["auroc"] for score, row in rows.items()} for model, rows in results.items()}
    artifacts.write_figure(artifacts.IMAGES / "ood_histograms.png", figures.score_histograms(confidences, aurocs))


def long_table(confidences, columns, *options) -> pd.DataFrame:
    """The `columns` of every model and score below each other, behind a column for each of the two names."""
    return pd.concat(
        pd.DataFrame({"model": model, "score": score, **columns(*pair, *options)})
        for model, by_score in confidences.items()
        for score, pair in by_score.items()
    )


def thinned(inside, outside, curve, columns) -> dict[str, np.ndarray]:
    return dict(zip(columns, detection.thin(*curve(inside, outside)), strict=True))


def histogram(inside, outside) -> dict[str, np.ndarray]:
    """The share of each set in BINS equal bins over the range of both, so that unequal sets compare."""
    edges = np.histogram_bin_edges(np.concatenate([inside, outside]), BINS)
    shares = [np.histogram(values, edges)[0] / len(values) for values in (inside, outside)]
    centres = (edges[1:] + edges[:-1]) / 2
    return {
        "set": np.repeat(["ID", "OOD"], BINS),
        "confidence": np.tile(centres, 2),
        "share": np.concatenate(shares),
    }


def report(results, paired, sizes, level) -> None:
    print(f"{sizes['id']} ID and {sizes['ood']} OOD images; AUROC [{level:.0%} interval], FPR95")
    print(f"{'':22}" + "".join(f"{model:30}" for model in MODELS) + "robust - standard")
    for score in scores.SCORES:
        cells = ""
        for model in MODELS:
            row = results[model][score]
            cell = f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]  {row['fpr95']:.3f}"
            cells += f"{cell:30}"
        test = paired[score]
        chance = f"p = {test['p_value']:.2g}" if test["p_value"] >= 1e-4 else "p < 0.0001"
        print(f"{score:22}{cells}{test['difference']:+.3f} ({chance})")
    widest = max(row["auroc_high"] - row["auroc_low"] for rows in results.values() for row in rows.values())
    if widest > WIDE:
        print(f"warning: so few images leave intervals up to {widest:.2f} wide: the scores cannot be told apart")
    print("next: dvc plots show")


if __name__ == "__main__":
    errors.run(main)
