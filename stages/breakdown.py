"""For whom it fails: accuracy class by class, what is taken for what, and whether a model knows when it is right.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/breakdown.json, of each model clean, under PGD and under the strongest attack: accuracy with its interval,
     that of the worst class, and where confidence means something the calibration error; both models compared on the
     same images (McNemar's test); plots/classes.csv, plots/confusion.csv, plots/reliability.csv;
     data/rows/breakdown.csv, of each image whether it survives the strongest attack, and what it is taken for there

All of it is of the same `images` test images, 10000 of them being the whole set of CIFAR-10. The strongest attack is
the audit's own, its restarts included. How long both models will take is said first.
"""

from collections.abc import Iterator, Mapping

import pandas as pd
import torch
from torch import Tensor

from stages.common import (
    accuracy,
    artifacts,
    attacks,
    calibration,
    device,
    distributed,
    evaluation,
    images,
    pace,
    params,
    rows,
    stage,
)
from stages.common.artifacts import MODELS
from stages.common.audit.margins import MARGIN_CLASSES
from stages.common.audit.strongest import strongest_attack
from stages.common.images import Batch, ImageSet
from stages.common.models import Classifier, frozen
from stages.common.params import Params

SURE = ("clean", "pgd")  # where a confidence is the model's own: the strongest attack stops at the first error
TRIED = 50  # images that all attacks are tried on, so as to say how long the others will take


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
            confusion += [{**of, **row} for row in shares(shown, taken[name][attack])]
            print(f"{name}, {attack}: {figures[attack]['accuracy']:.3f}; {worst['class']} {worst['accuracy']:.3f}")
        for attack in SURE:
            probabilities = calibration.probabilities_of(logits[name][attack])
            figures[attack]["ece"] = calibration.ece(probabilities, shown.labels)
            reliability += [
                {"model": name, "attack": attack, **row} for row in calibration.reliability(probabilities, shown.labels)
            ]
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
    """How many images, which attacks, and about how long: passes are counted on a few images, and timed on a batch."""
    few, seconds = shown.take(images.sample(shown.labels, TRIED)), 0.0
    for model in both.values():
        with pace.Passes(model).counted() as passes:
            attacked(model, few, knobs)
        share = len(shown) / len(few)
        seconds += pace.timed(model, shown).seconds(share * passes.gradient, share * passes.plain) / distributed.count()
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
    logits = answers(model, shown, knobs.eps, knobs.breakdown.pgd_steps, knobs.seed)
    taken = {attack: found.argmax(1) for attack, found in logits.items()}
    first = torch.where(taken["clean"] == shown.labels, taken["pgd"], taken["clean"])  # what is wrong is not attacked
    steps, restarts = knobs.audit.pgd_steps, knobs.audit.restarts
    found = strongest_attack(model, shown, knobs.eps, first, steps=steps, restarts=restarts, seed=knobs.seed)
    return logits, {**taken, "strongest": found.strongest}


def answers(model: Classifier, shown: ImageSet, eps: float, steps: int, seed: int) -> dict[str, Tensor]:
    """The model's logits (N, K) on the images clean and under PGD; on the CPU."""

    def answered(batch: Batch) -> dict[str, Tensor]:
        _, _, x, y = batch
        generator = batch.generator(seed)
        pgd = attacks.pgd(model, x, y, eps, steps=steps, generator=generator)
        with frozen(model), torch.no_grad():
            moved = {"clean": x, "pgd": pgd}
            laid = {attack: each.contiguous(memory_format=torch.channels_last) for attack, each in moved.items()}
            return {attack: model(each).cpu() for attack, each in laid.items()}

    where = device.of(model)
    found = images.each_batch(answered, shown.images, shown.labels, device=where, description="attacked")
    return {attack: torch.cat([each[attack] for each in found]) for attack in found[0]}


def shares(shown: ImageSet, taken: Tensor) -> Iterator[dict[str, object]]:
    """The confusion matrix, a row a cell: the share of each class's images that is taken for each class."""
    count = len(shown.classes)
    cells = (shown.labels * count + taken).bincount(minlength=count**2).view(count, count).double()
    for name, row in zip(shown.classes, cells / cells.sum(1, keepdim=True).clamp(min=1), strict=True):
        for other, share in zip(shown.classes, row.tolist(), strict=True):
            yield {"class": name, "taken_for": other, "share": share}


def each_image(chosen: Tensor, shown: ImageSet, taken: Mapping[str, Mapping[str, Tensor]], eps: float) -> pd.DataFrame:
    """A row an image: by each model whether it survives the strongest attack, and what it is taken for there."""
    columns: dict[str, Tensor | list[str]] = {}
    for name, by_attack in taken.items():
        found, title = by_attack["strongest"], rows.column(name, "strongest", eps)
        columns |= {title: found == shown.labels, f"{title}_taken_for": [shown.classes[i] for i in found.tolist()]}
    return rows.part("test", chosen, columns)


if __name__ == "__main__":
    stage.run(main)
