"""For whom it fails: accuracy class by class, what is taken for what, and whether a model knows when it is right.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/breakdown.json, of each model clean, under PGD and under the strongest attack: accuracy with its interval,
     that of the worst class, and where confidence means something the calibration error; both models compared on the
     same images (McNemar's test); plots/classes.csv, plots/confusion.csv, plots/reliability.csv;
     data/rows/breakdown.csv, of each image whether it survives the strongest attack, and what it is taken for there

All of it is of the same `images` test images, 10000 of them being the whole set of CIFAR-10. The strongest attack is
the audit's own, its restarts included. How long both models will take is said first.
"""

from collections.abc import Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from stages.common import (
    accuracy,
    artifacts,
    attacks,
    calibration,
    device,
    evaluation,
    images,
    pace,
    params,
    robustness,
    rows,
    stage,
)
from stages.common.artifacts import MODELS
from stages.common.audit.margins import MARGIN_CLASSES
from stages.common.audit.strongest import strongest_attack
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.params import Params


def main() -> None:
    knobs = params.load_prepared()
    test = images.read("test")
    chosen = images.sample(test.labels, knobs.breakdown.images)
    shown = test.take(chosen)
    both = evaluation.load_both(test, where := device.choose(knobs.device))

    logits, taken = {}, {}  # (N, K) [model][attack], (N,) [model][attack]
    with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
        print(announced(both, shown, knobs), flush=True)
        for name, model in both.items():
            logits[name], taken[name] = attacked(model, shown, knobs)
    right = {name: {attack: found == shown.labels for attack, found in by.items()} for name, by in taken.items()}

    metrics: dict[str, object] = {}
    classes, confusion, reliability = [], [], []
    for name in MODELS:
        figures = {}
        for attack, correct in right[name].items():
            of = {"model": name, "attack": attack}
            by_class = accuracy.by_class(shown.labels, correct, shown.classes, knobs.confidence)
            worst = accuracy.worst(by_class)
            figures[attack] = accuracy.figures({"accuracy": correct}, knobs.confidence)
            figures[attack]["worst_class"] = worst["accuracy"]
            classes += [{**of, **row} for row in by_class]
            confusion += [{**of, **row} for row in accuracy.confusion(shown.labels, taken[name][attack], shown.classes)]
            print(f"{name}, {attack}: {figures[attack]['accuracy']:.3f}; {worst['class']} {worst['accuracy']:.3f}")
            if attack in logits[name]:  # the strongest one stops at the first error, where no model is sure of itself
                probabilities = calibration.probabilities_of(logits[name][attack])
                figures[attack]["ece"] = calibration.ece(probabilities, shown.labels)
                reliability += [{**of, **row} for row in calibration.reliability(probabilities, shown.labels)]
        metrics[name] = figures
    metrics["robust_minus_standard"] = {
        attack: accuracy.mcnemar(correct, right["standard"][attack], knobs.confidence)
        for attack, correct in right["robust"].items()
    }
    artifacts.write_table(artifacts.PLOTS / "classes.csv", classes)
    artifacts.write_table(artifacts.PLOTS / "confusion.csv", confusion)
    artifacts.write_table(artifacts.PLOTS / "reliability.csv", reliability)
    rows.write(rows.FOLDER / "breakdown.csv", each_image(chosen, shown, taken, knobs.eps))
    artifacts.write_metrics(artifacts.METRICS / "breakdown.json", metrics)


def announced(both: Mapping[str, Classifier], shown: ImageSet, knobs: Params) -> str:
    """How many images, which attacks, and about how long all of it will take."""
    seconds = sum(pace.foreseen(model, shown, partial(attacked, model, knobs=knobs)) for model in both.values())
    classes = min(MARGIN_CLASSES, len(shown.classes) - 1)
    return (
        f"{len(shown):,} test images, {len(both)} models: PGD of {knobs.breakdown.pgd_steps} steps; the strongest "
        f"attack, PGD from {knobs.audit.restarts} starts and the margins of {classes} classes, {knobs.audit.pgd_steps} "
        f"steps each: about {pace.said(seconds)}"
    )


def attacked(model: Classifier, shown: ImageSet, knobs: Params) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's logits (N, K) on the images clean and under PGD, and what it takes them for, int64 (N,), clean, under
    PGD and under the strongest attack, which goes on from that PGD; on the CPU.
    """
    logits = robustness.logits(model, shown, knobs.eps, steps=knobs.breakdown.pgd_steps, seed=knobs.seed)
    taken = {attack: found.argmax(1) for attack, found in logits.items()}
    first = torch.where(taken["clean"] == shown.labels, taken["pgd"], taken["clean"])  # what is wrong is not attacked
    steps, restarts = knobs.audit.pgd_steps, knobs.audit.restarts
    found = strongest_attack(model, shown, knobs.eps, first, steps=steps, restarts=restarts, seed=knobs.seed)
    return logits, {**taken, "strongest": found.strongest}


def each_image(chosen: Tensor, shown: ImageSet, taken: Mapping[str, Mapping[str, Tensor]], eps: float) -> pd.DataFrame:
    """A row an image: by each model whether it survives the strongest attack, and what it is taken for there."""
    columns: dict[str, Tensor | list[str]] = {}
    for name, by_attack in taken.items():
        found, title = by_attack["strongest"], rows.column(name, "strongest", eps)
        columns |= {title: found == shown.labels, f"{title}_taken_for": [shown.classes[i] for i in found.tolist()]}
    return rows.part("test", chosen, columns)


if __name__ == "__main__":
    stage.run(main)
