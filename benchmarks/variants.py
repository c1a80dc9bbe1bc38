"""Ways to train the robust model, compared at about equal time: short runs, several seeds each.

    python -m benchmarks.variants                              # every variant, three seeds: three hours
    python -m benchmarks.variants --only default "plain FGSM"  # some of them
    python -m benchmarks.variants --eps 8/255 --images 10000 --epochs 6 --seeds 3

A variant whose epochs cost less or more than the default's gets more or fewer of them. Nothing is undone here: an epoch
that overfits stays, so that a recipe shows what it does. A seed counts as overfitted if one of its epochs did. What
ranks them is the audit's strongest attack: PGD alone flatters some recipes by points (Croce and Hein 2020). Minutes are
of processor time, all cores added, so that what runs beside does not count. Rows are kept in docs/variants.csv, and
what is there is not measured again (delete a row to do that), so that a run may be interrupted; the table in
docs/performance.md is made from them.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from torch.optim.swa_utils import AveragedModel

from benchmarks import common
from stages.common import attacks, device, evaluation, images, params, training
from stages.common.adversary import Adversary, Settings
from stages.common.audit.subject import Subject
from stages.common.errors import UserError, run
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.params import Params

TABLE, DOCUMENT = Path("docs/variants.csv"), Path("docs/performance.md")
START, END = "<!-- table: python -m benchmarks.variants -->", "<!-- /table of variants -->"
TEST_IMAGES = 1000
KEY = ["variant", "eps", "images", "epochs", "seed"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a variant changes: parameters, or the weights to their mean over the late epochs.

    `length` times the epochs evens out what one of them costs.
    """

    changes: Mapping[str, object] = field(default_factory=dict)
    average: bool = False
    length: float = 1


def of_training(**changes: object) -> dict[str, object]:
    """These keys of train_robust, as dotted ones."""
    return {f"train_robust.{key}": value for key, value in changes.items()}


def of_widths(*widths: int) -> dict[str, object]:
    return {"models.whitened_cnn.widths": list(widths)}


# Passes over a batch, of which one to the weights counts double: 5 for one step, 23 and 27 for ten, 4 for half a batch
VARIANTS = {
    "default": Variant(),
    "PGD of 10 steps (Madry)": Variant(changes=of_training(attack="pgd"), length=5 / 23),
    "TRADES of 10 steps": Variant(changes=of_training(attack="trades"), length=5 / 27),
    "plain FGSM": Variant(changes=of_training(attack="fgsm", ramp=0)),
    "plain FGSM, half the batch clean": Variant(
        changes=of_training(attack="fgsm", ramp=0, adversarial_fraction=0.5), length=5 / 4
    ),
    "RS-FGSM, ramped": Variant(changes=of_training(attack="rs-fgsm")),
    "no ramp": Variant(changes=of_training(ramp=0)),
    "half the batch clean": Variant(changes=of_training(adversarial_fraction=0.5), length=5 / 4),
    "noise 1": Variant(changes=of_training(noise=1)),
    "noise 3": Variant(changes=of_training(noise=3)),
    "no label smoothing": Variant(changes=of_training(label_smoothing=0)),
    "widths 32/128/256": Variant(changes=of_widths(32, 128, 256), length=2),
    "SGD on the filters": Variant(changes={"models.whitened_cnn.filter_rate": None}),
    "float32": Variant(changes={"precision": "float32"}, length=5 / 9),
    "ReLU for SiLU": Variant(changes={"models.whitened_cnn.activation": "relu"}),
    "weights averaged": Variant(average=True),
    # Another net altogether, a quarter of its filters left so that an epoch takes 1.4 times as long
    "resnet18 of width 32": Variant(changes={"model.name": "resnet18", "models.resnet18.width": 32}, length=5 / 7),
}


def measure(name: str, eps: float, count: int, epochs: int, seed: int) -> dict[str, float | str]:
    """One short training from nothing, attacked on test images that it never saw."""
    variant = VARIANTS[name]
    knobs = params.load(
        overrides={
            "model.name": "whitened_cnn",
            "eps": eps,
            "seed": seed,
            **of_training(undo_overfitting=False, validation_images=200),
            **variant.changes,
        }
    )
    train, val, test = (images.read(part) for part in ("train", "val", "test"))
    train = common.take(train, count)
    model = training.new_model(knobs, "robust", train)
    recipe = replace(training.Recipe.from_params(knobs, "robust", device.of(model)), epochs=epochs)
    recipe = replace(recipe, batch_size=min(recipe.batch_size, count))
    averaged = AveragedModel(model, use_buffers=True)  # of the weights and BatchNorm's moments after late epochs

    def late(rows: list[dict[str, float]]) -> None:
        if len(rows) > epochs / 2:
            averaged.update_parameters(model)

    with TemporaryDirectory() as folder:
        opponent = Adversary(model, val, Settings.from_params(knobs))
        start = time.process_time()
        result = training.train(model, train, val, recipe, opponent, resume_in=Path(folder), log=late, name=name)
        minutes = (time.process_time() - start) / 60
        if variant.average:
            model.load_state_dict(averaged.module.state_dict())
        found = attacked(model, common.take(test, TEST_IMAGES), eps, knobs)
    overfitted = sum(row["overfitted"] for row in result.rows)
    ran = {"overfitted": overfitted, "minutes": minutes, "processor": common.processor()}
    return key(name, eps, count, epochs, seed) | found | ran


def key(name: str, eps: float, count: int, epochs: int, seed: int) -> dict[str, float | str]:
    """What tells a row of the table from the others."""
    return dict(zip(KEY, (name, round(eps, 6), count, epochs, seed), strict=True))


def attacked(model: Classifier, image_set: ImageSet, eps: float, knobs: Params) -> dict[str, float]:
    """Accuracy on clean images, under FGSM, under PGD of one start, and under the audit's strongest attack after it."""
    subject = Subject.from_params(knobs, model=model, other=None, defended=True, image_set=image_set)
    subject = replace(subject, eps=eps, epsilons=(eps,), restarts=1)
    with attacks.searching(bfloat16=device.bfloat16(knobs.precision, device.of(model))):
        return {
            "clean": evaluation.accuracy(model, image_set),
            "fgsm": subject.fgsm[eps],
            "pgd": subject.pgd[eps],
            "strongest": float(subject.strongest.double().mean()),
        }


def table(rows: pd.DataFrame) -> str:
    """Markdown: the mean over seeds, and how many seeds overfitted; the strongest first at each budget.

    Minutes compare on one processor only: they are of the rows that ran on the commonest.
    """
    usual = rows.processor.mode()[0]
    lines = [
        f"| variant | eps | epochs | clean | FGSM | PGD-20 | strongest (seeds' range) | seeds overfitted | "
        f"minutes, {usual} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    timed = rows.minutes.where(rows.processor == usual)
    groups = rows.assign(broken=rows.overfitted > 0, minutes=timed).groupby(
        ["eps", "images", "variant", "epochs"], as_index=False
    )
    found = groups.agg(
        clean=("clean", "mean"), fgsm=("fgsm", "mean"), pgd=("pgd", "mean"),
        strongest=("strongest", "mean"), low=("strongest", "min"), high=("strongest", "max"),
        minutes=("minutes", "mean"), broken=("broken", "sum"), seeds=("seed", "count"),
    )  # fmt: skip
    for row in found.sort_values(["eps", "images", "strongest"], ascending=[True, True, False]).to_dict("records"):
        minutes = "" if pd.isna(row["minutes"]) else f"{row['minutes']:.1f}"
        lines.append(
            f"| {row['variant']} | {row['eps']:.4g} | {row['epochs']} | {row['clean']:.3f} | {row['fgsm']:.3f} "
            f"| {row['pgd']:.3f} | {row['strongest']:.3f} ({row['low']:.3f} to {row['high']:.3f}) "
            f"| {row['broken']} of {row['seeds']} | {minutes} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--eps", type=common.budget, help="in pixels of [0, 1]; the default is params.yaml's")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    unknown = set(args.only) - set(VARIANTS)
    if unknown:
        raise UserError(f"{', '.join(sorted(unknown))}: no such variant; there are {', '.join(VARIANTS)}")
    device.keep_freed_memory()
    print(common.machine())
    eps = params.load().eps if args.eps is None else args.eps
    for seed in range(args.seeds):
        for variant in args.only:
            kept = pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=KEY)
            epochs = round(args.epochs * VARIANTS[variant].length)
            wanted = key(variant, eps, args.images, epochs, seed)
            if (kept[KEY] == pd.Series(wanted)).all(axis=1).any():
                continue
            row = measure(variant, eps, args.images, epochs, seed)
            print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
            common.put_row(TABLE, row, KEY, places=6)
    common.put_table(DOCUMENT, START, END, table(pd.read_csv(TABLE)))


if __name__ == "__main__":
    run(main)
