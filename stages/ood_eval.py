"""Tell test images (in-distribution, ID) from OOD images by every detector in `detectors.DETECTORS`, with both models.

In:  data/prepared/{train,val,test,ood,extra}.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/ood.json, of the main OOD set; plots/ood_scores.csv, every figure on every OOD set; plots/ood_classes.csv,
     AUROC for each OOD class; plots/{roc,pr}_{standard,robust,max_logit}.csv, curves of all scores on one model, and of
     the study's score on both; plots/ood_histogram_{standard,robust}.csv; plots/images/ood_{histograms,fooled}.png

Scores are fitted on the training images; the validation images set the thresholds. No OOD image decides anything.
"""

import numpy as np
import pandas as pd

from stages.common import artifacts, detection, detectors, errors, evaluation, figures, images, params

MODELS = ("standard", "robust")
HEADLINE = "max_logit"  # the study's score: one picture compares the two models by it
BASELINE = "max_softmax"  # every score is tested against this one (Hendrycks 2017)
MAIN = "ood"  # the set that metrics/ood.json and the curves are about
BINS = 50
WIDE = 0.2  # an AUROC interval beyond which no two scores can be told apart


def main() -> None:
    knobs = params.load()
    train, val, test, ood, extra = (images.read(name) for name in ("train", "val", "test", MAIN, "extra"))
    unknown = {MAIN: ood, **images.by_prefix(extra)}
    sets = {"val": val, "id": test, **unknown}
    device = images.device(knobs.device)
    both = evaluation.load_both(train, device)
    level = knobs.ood_eval.confidence

    found, taken_for = {}, {}  # confidences [model][detector][set], predicted classes [model][set]
    for name, model in both.items():
        found[name], taken_for[name] = examine(name, model, train, sets, knobs, device)

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
    artifacts.write_metrics(
        artifacts.METRICS / "ood.json",
        {**results, "robust_minus_standard": paired, "sizes": sizes, "base_rate": base_rate},
    )
    table = pd.DataFrame(rows(found, unknown, knobs.ood_eval.accept, level))
    artifacts.write_table(artifacts.PLOTS / "ood_scores.csv", table)
    artifacts.write_table(artifacts.PLOTS / "ood_classes.csv", class_rows(found, taken_for, unknown, test.classes))
    write_curves(main_pairs, results)
    fooled = figures.fooled_grid(
        {model: (found[model][HEADLINE][MAIN], taken_for[model][MAIN]) for model in MODELS}, ood, test.classes
    )
    artifacts.write_figure(artifacts.IMAGES / "ood_fooled.png", fooled)
    report(results, paired, table, sizes)


def examine(name, model, train, sets, knobs, device):
    """One model's confidences [detector][set] and predicted classes [set]. Frees all that it has fitted and seen."""
    sight, options = detectors.settings(knobs)
    fitted = detectors.fit_on(model, train, sight, options, device=device, description=f"{name}: train")
    confidences, taken_for = {score: {} for score in fitted}, {}
    for key, part in sets.items():
        seen = detectors.see(model, part, sight, device=device, description=f"{name}: {key}")
        taken_for[key] = seen["plain"].logits.argmax(1)
        for score, values in detectors.score(fitted, seen).items():
            confidences[score][key] = values.numpy()
    print(f"{name}: {len(fitted)} detectors on {sum(map(len, sets.values())):,} images", flush=True)
    return confidences, taken_for


def rows(found, unknown, accept, level):
    """One row per model, OOD set and score: the figures, the threshold's rates, the paired test against BASELINE."""
    for model in MODELS:
        for key, ood in unknown.items():
            for score, parts in found[model].items():
                pair, base = (parts["id"], parts[key]), found[model][BASELINE]
                test = {}
                if score != BASELINE:
                    test = detection.delong_test(*pair, base["id"], base[key], confidence=level)
                yield {
                    **{"model": model, "set": key, "score": score, "id_images": len(pair[0]), "ood_images": len(ood)},
                    **detection.evaluate(*pair, confidence=level),
                    **detection.balanced(*pair),
                    **detection.at_threshold(parts["val"], *pair, accept=accept),
                    **{f"minus_{BASELINE}{suffix}": test.get(name) for name, suffix in PAIRED.items()},
                }


PAIRED = {"difference": "", "low": "_low", "high": "_high", "p_value": "_p"}


def class_rows(found, taken_for, unknown, classes):
    """One row per model and OOD class: what it is most often taken for, and its AUROC by every score."""
    for model in MODELS:
        for key, ood in unknown.items():
            for label, name in enumerate(ood.classes):
                members = (ood.labels == label).numpy()
                guess = taken_for[model][key][members].bincount(minlength=len(classes))
                aurocs = {s: detection.auroc(parts["id"], parts[key][members]) for s, parts in found[model].items()}
                yield {
                    **{"model": model, "set": key, "class": name, "images": int(members.sum())},
                    **{"taken_for": classes[int(guess.argmax())], "share": float(guess.max() / guess.sum())},
                    **aurocs,
                }


def write_curves(pairs, results) -> None:
    aurocs = {model: {score: row["auroc"] for score, row in rows.items()} for model, rows in results.items()}
    for kind, curve, columns, figure in (
        ("roc", detection.roc_curve, ("fpr", "tpr"), "auroc"),
        ("pr", detection.pr_curve, ("recall", "precision"), "ap_id"),
    ):

        def thinned(inside, outside, curve=curve, columns=columns):
            return dict(zip(columns, detection.thin(*curve(inside, outside)), strict=True))

        table = long_table(pairs, thinned)
        table["area"] = [results[m][s][figure] for m, s in zip(table.model, table.score, strict=True)]
        for model in MODELS:
            artifacts.write_table(artifacts.PLOTS / f"{kind}_{model}.csv", table[table.model == model])
        artifacts.write_table(artifacts.PLOTS / f"{kind}_{HEADLINE}.csv", table[table.score == HEADLINE])
    table = long_table(pairs, histogram)
    for model in MODELS:
        artifacts.write_table(artifacts.PLOTS / f"ood_histogram_{model}.csv", table[table.model == model])
    artifacts.write_figure(artifacts.IMAGES / "ood_histograms.png", figures.score_histograms(pairs, aurocs))


def long_table(pairs, columns) -> pd.DataFrame:
    """The `columns` of every model and score below each other, behind a column for each of the two names."""
    return pd.concat(
        [
            pd.DataFrame({"model": model, "score": score, **columns(*pair)})
            for model, by_score in pairs.items()
            for score, pair in by_score.items()
        ],
        ignore_index=True,
    )


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


def report(results, paired, table, sizes) -> None:
    others = [key for key in table.set.unique() if key != MAIN]
    print(f"{sizes['id']} ID and {sizes['ood']} OOD images: AUROC [interval], FPR95; AUROC against {', '.join(others)}")
    wide = table.pivot(index=["model", "score"], columns="set", values="auroc")
    for model in MODELS:
        for score, row in results[model].items():
            more = "".join(f"  {wide.loc[(model, score), key]:.3f}" for key in others)
            print(
                f"{model:9} {score:22}{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
                f"  {row['fpr95']:.3f}{more}"
            )
    test = paired[HEADLINE]
    print(f"{HEADLINE}: robust less standard {test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]")
    widest = max(row["auroc_high"] - row["auroc_low"] for rows in results.values() for row in rows.values())
    if widest > WIDE:
        print(f"warning: so few images leave intervals up to {widest:.2f} wide: the scores cannot be told apart")


if __name__ == "__main__":
    errors.run(main)
