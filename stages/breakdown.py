"""For whom it fails: accuracy class by class, what is taken for what, and whether a model knows when it is right.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/breakdown.json, of each model clean, under PGD and under the strongest attack: accuracy with its interval,
     that of the worst class, and where confidence means something the calibration error; both models compared on the
     same images (McNemar's test); plots/classes.csv, plots/confusion.csv, plots/reliability.csv;
     data/images.csv, a row for each image, in DVC's cache and not in git

All of it is of the same `images` test images. The strongest attack is the audit's: PGD, and on the images that it
leaves the attack on every margin.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from stages.common import accuracy, artifacts, attacks, calibration, device, evaluation, images, params, stage
from stages.common.artifacts import MODELS
from stages.common.audit.margins import MARGIN_CLASSES, multi_targeted
from stages.common.images import Batch, ImageSet
from stages.common.models import Classifier, frozen

SURE = ("clean", "pgd")  # where a confidence is the model's own: the strongest attack stops at the first error


def main() -> None:
    knobs = params.load_prepared()
    test = images.read("test")
    chosen = images.sample(test.labels, knobs.breakdown.images)
    shown = test.take(chosen)
    both = evaluation.load_both(test, where := device.choose(knobs.device))

    logits = {}  # (N, K) [model][attack]
    for name, model in both.items():
        with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
            logits[name] = answers(model, shown, knobs.eps, knobs.breakdown.pgd_steps, knobs.seed)
    taken = {name: {attack: found.argmax(1) for attack, found in by.items()} for name, by in logits.items()}
    right = {name: {attack: found == shown.labels for attack, found in by.items()} for name, by in taken.items()}

    metrics: dict[str, object] = {}
    sure: dict[str, Tensor] = {}  # confidence in the clean images (N,) [model]
    classes, confusion, reliability = [], [], []
    for name in MODELS:
        figures = {}
        for attack, correct in right[name].items():
            of = {"model": name, "attack": attack}
            rows = accuracy.by_class(shown.labels, correct, shown.classes, knobs.confidence)
            worst = accuracy.worst(rows)
            figures[attack] = accuracy.figures({"accuracy": correct}, knobs.confidence)
            figures[attack]["worst_class"] = worst["accuracy"]
            classes += [{**of, **row} for row in rows]
            confusion += [{**of, **row} for row in shares(shown, taken[name][attack])]
            print(f"{name}, {attack}: {figures[attack]['accuracy']:.3f}; {worst['class']} {worst['accuracy']:.3f}")
        for attack in SURE:
            probabilities = calibration.probabilities_of(logits[name][attack])
            figures[attack]["ece"] = calibration.ece(probabilities, shown.labels)
            if attack == "clean":
                sure[name] = probabilities.amax(1)
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
    artifacts.write_table(artifacts.ROWS, list(each_image(chosen, shown, taken, sure)))
    artifacts.write_metrics(artifacts.METRICS / "breakdown.json", metrics)


def answers(model: Classifier, shown: ImageSet, eps: float, steps: int, seed: int) -> dict[str, Tensor]:
    """The model's logits (N, K) on the images clean, under PGD, and under the strongest attack; on the CPU."""

    def answered(batch: Batch) -> dict[str, Tensor]:
        _, _, x, y = batch
        generator = batch.generator(seed)
        pgd = attacks.pgd(model, x, y, eps, steps=steps, generator=generator)
        left = attacks.withstood(model, pgd, y).nonzero().squeeze(1).to(x.device)
        strongest = pgd.clone()
        if len(left):
            strongest[left] = multi_targeted(
                model, x[left], y[left], eps, classes=MARGIN_CLASSES, steps=steps, generator=generator
            )
        with frozen(model), torch.no_grad():
            moved = {"clean": x, "pgd": pgd, "strongest": strongest}
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


def each_image(
    chosen: Tensor, shown: ImageSet, taken: Mapping[str, Mapping[str, Tensor]], sure: Mapping[str, Tensor]
) -> Iterator[dict[str, object]]:
    """A row an image: its place in the test set, its class, and by each model what it is taken for under each attack
    and how surely clean.
    """
    names = shown.classes
    for row, (place, label) in enumerate(zip(chosen.tolist(), shown.labels.tolist(), strict=True)):
        said: dict[str, object] = {"image": place, "class": names[label]}
        for name, by_attack in taken.items():
            said |= {f"{name}_{attack}": names[int(found[row])] for attack, found in by_attack.items()}
            said[f"{name}_confidence"] = float(sure[name][row])
        yield said


if __name__ == "__main__":
    stage.run(main)
