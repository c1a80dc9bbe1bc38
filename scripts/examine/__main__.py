"""Judge one classifier on one folder of images: is it as robust as it looks, and can that figure be believed?

    python -m scripts.examine torchvision:resnet18 --weights mine.pt --images photos/test --classes names.txt
    python -m scripts.examine py:my_model.py:build --images photos/test --ood photos/other --budget 10m --strict

Clean accuracy first; then FGSM over budgets, its worst case, PGD, targeted FGSM and the audit's checks, with --ood the
detectors and what an attack leaves of them. Everything else is as params.yaml has it. A table on the terminal,
DIR/metrics.json and DIR/report.html, one page that opens without a network; nothing else is written.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scripts.examine import inputs, measure, page, plan
from scripts.examine.arguments import Asked, parse
from stages.common import accuracy, artifacts, device, diagnosis, errors, evaluation, images, pace, params
from stages.common.audit import verdicts
from stages.common.datasets.account import Account
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.models.foreign import input_channels
from stages.common.pace import Speed
from stages.common.params import Params

PARAMS = Path(__file__).parents[2] / "params.yaml"


class Brought(NamedTuple):
    """The model on its device, and the sets: test, and where they are asked for train and ood."""

    model: Classifier
    sets: Mapping[str, ImageSet]
    form: str


def main() -> None:
    asked = parse(__doc__)
    knobs = params.load(PARAMS, overrides={"eps": asked.eps})
    account = Account()
    model, sets, form = bring(asked, knobs, account)
    test = sets["test"]
    remarks = [*model.remarks, *clean(model, test)]
    for line in [*account.lines(), *remarks]:
        print(f"note: {line}")
    target = target_of(asked, test)

    count, speed, expected = planned(asked, knobs, model, sets)
    examined = test.take(images.sample(test.labels, count))
    print(f"{count} of {len(test)} images of {form}, eps {asked.eps:.4g}: up to {pace.said(expected)}", flush=True)
    with images.progress(math.ceil(expected), "examine", "s") as bar, pace.Passes(model, bar, speed).counted():
        subject = measure.subject(knobs, model, examined, test.classes.index(target))
        rows = verdicts.printed(verdicts.judge(subject))
        found: dict[str, Any] = {
            "model": asked.model,
            "classes": len(test.classes),
            "images": count,
            "eps": asked.eps,
            **measure.accuracies(subject),
            "targeted": {"target": target, **measure.targeted(subject)},
            "audit": verdicts.figures_of(subject, rows),
        }
        detected = None
        if asked.ood is not None:
            known, inside = (sets["train"], examined) if asked.train else measure.halves(examined)
            outside = sets["ood"].take(images.sample(sets["ood"].labels, count))
            detected = measure.detect(knobs, model, known, inside, outside)
            found["ood"] = detected.figures
    print(page.table(found, detected))
    artifacts.write_metrics(asked.out / "metrics.json", found | {"remarks": remarks})
    content = page.page(found, rows, detected, remarks, form, model, examined)
    artifacts.write_bytes(asked.out / "report.html", content.encode())
    print(f"{asked.out / 'report.html'} opens in any browser; figures in {asked.out / 'metrics.json'}")
    if asked.strict and found["audit"]["failed"]:
        failed = found["audit"]["failed"]
        raise errors.UserError(f"{failed} check{'s' * (failed > 1)} of the audit failed (--strict)")


def bring(asked: Asked, knobs: Params, account: Account) -> Brought:
    """Read the model and a fair sample of the images it is asked about."""
    where = device.choose(knobs.device)
    if inputs.is_checkpoint(asked):
        model = inputs.checkpoint(asked)
        files = listed(asked, model.classes, account)
        sets, form = inputs.sets(asked, files, None, len(model.normalize.mean), account)
        return Brought(model.to(where), sets, form)
    files = listed(asked, inputs.class_names(asked.classes), account)
    origin = inputs.module(asked, len(files["test"].classes))
    sets, form = inputs.sets(asked, files, origin.expected, input_channels(origin.module), account)
    return Brought(inputs.judged(asked, origin, sets["test"]).to(where), sets, form)


def listed(asked: Asked, classes: list[str] | None, account: Account) -> dict[str, inputs.Listed]:
    """The files of each set, no more than can be of use."""
    test = inputs.listed(asked.images, "--images", classes, account).sample(asked.limit)
    found = {"test": test}
    if asked.train is not None:
        found["train"] = inputs.listed(asked.train, "--train", test.classes, account).sample(10 * asked.limit)
    if asked.ood is not None:
        found["ood"] = inputs.strangers(asked.ood, account).sample(asked.limit)
    return found


def clean(model: Classifier, test: ImageSet) -> list[str]:
    """Print clean accuracy on all images that were read; what to remark where it is near chance."""
    right = evaluation.predictions(model, test.images) == test.labels
    low, high = accuracy.interval(right, measure.CONFIDENCE)
    shown = f"{float(right.double().mean()):.3f} [{low:.3f}, {high:.3f}]"
    print(f"clean accuracy {shown} of {len(test)} images in {len(test.classes)} classes", flush=True)
    near = evaluation.near_chance(low, evaluation.chance(test.labels))
    return diagnosis.lines(model, test) if near else []


def target_of(asked: Asked, test: ImageSet) -> str:
    """The class of the targeted attack: any will do, since what is asked is whether the step goes there."""
    if asked.target is None:
        return test.classes[int(test.labels.max())]
    if asked.target not in test.classes:
        raise errors.UserError(f"--target {asked.target!r}: the classes are {', '.join(test.classes[:20])}")
    return asked.target


def planned(asked: Asked, knobs: Params, model: Classifier, sets: Mapping[str, ImageSet]) -> tuple[int, Speed, float]:
    """How many images are examined, how fast the model is, and the seconds that it may take."""
    test = sets["test"]
    cost = plan.rehearse(knobs, test.classes, asked.ood is not None)
    speed = pace.timed(model, test)
    count = len(test) if asked.budget is None else plan.affordable(cost, speed, asked.budget, len(test))
    fewest = min(plan.FEWEST, len(test))
    if count < fewest:
        needed = pace.said(cost.seconds(fewest, speed))
        raise errors.UserError(
            f"--budget {pace.said(asked.budget or 0)} is too short: {fewest} images take up to {needed}, and attacks "
            "are not made weaker to save time; allow more, or take smaller images (--size)"
        )
    return count, speed, cost.seconds(count, speed)


if __name__ == "__main__":
    errors.run(main)
