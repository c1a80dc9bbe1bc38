"""Ways to train the robust model, compared at about equal time: short runs, several seeds each.

    python -m benchmarks.variants                              # every variant, three seeds: an hour and a quarter
    python -m benchmarks.variants --only default "plain FGSM"  # some of them
    python -m benchmarks.variants --eps 8/255 --images 10000 --epochs 6 --seeds 3

A variant whose epochs cost less or more than the default's gets more or fewer of them. Nothing is undone here: an epoch
that overfits stays, so that a recipe shows what it does. A seed counts as overfitted if one of its epochs did. Minutes
are of processor time, all cores added, so that what runs beside does not count. Rows are kept in docs/variants.csv, and
what is there is not measured again (delete a row to do that), so that a run may be interrupted; the table in
docs/performance.md is made from them.
"""

import argparse
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pandas as pd
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

from benchmarks import common
from stages.common import evaluation, images, params, sampling, training
from stages.common.errors import UserError, run
from stages.common.images import ImageSet
from stages.common.models import Classifier

TABLE, DOCUMENT = Path("docs/variants.csv"), Path("docs/performance.md")
START, END = "<!-- table: python -m benchmarks.variants -->", "<!-- /table of variants -->"
TEST_IMAGES = 1000
KEY = ["variant", "eps", "images", "epochs", "seed"]

# variant -> what it changes: of train_robust; the weight decay; the net's widths or activation; averaged weights.
# `length` times the epochs evens out what one costs, as measured (half a batch attacked: 0.78, the nets: 1.35 and 0.78)
VARIANTS: dict[str, dict] = {
    "default": {},
    "plain FGSM": {"attack": "fgsm", "ramp": 0.0},
    "plain FGSM, half the batch clean": {"attack": "fgsm", "ramp": 0.0, "adversarial_fraction": 0.5, "length": 4 / 3},
    "RS-FGSM, ramped": {"attack": "rs-fgsm"},
    "N-FGSM without a ramp": {"ramp": 0.0},
    "half the batch clean": {"adversarial_fraction": 0.5, "length": 4 / 3},
    "noise 1": {"noise": 1.0},
    "noise 3": {"noise": 3.0},
    "ramp 0.4": {"ramp": 0.4},
    "no label smoothing": {"label_smoothing": 0.0},
    "a third of the weight decay": {"weight_decay": 0.00044},
    "widths 64/128/128": {"widths": [64, 128, 128], "length": 5 / 6},
    "widths 32/64/128/256, deeper": {"widths": [32, 64, 128, 256], "length": 4 / 3},
    "SiLU for ReLU": {"activation": F.silu},
    "weights averaged": {"average": True},
}


def measure(variant: str, eps: float, count: int, epochs: int, seed: int) -> dict[str, float | str]:
    """One short training from nothing, attacked on test images that it never saw."""
    knobs, changes = params.load(), {name: value for name, value in VARIANTS[variant].items() if name != "length"}
    average, activation = changes.pop("average", False), changes.pop("activation", F.relu)
    net = knobs.models.whitened_cnn
    net = net.model_copy(update={"widths": changes.pop("widths", net.widths)})
    plan = knobs.training
    plan = plan.model_copy(update={"weight_decay": changes.pop("weight_decay", plan.weight_decay)})
    robust = knobs.train_robust.model_copy(update=changes)
    net_section = knobs.models.model_copy(update={"whitened_cnn": net})
    knobs = knobs.model_copy(update={"seed": seed, "models": net_section, "training": plan, "train_robust": robust})
    train, val, test = (images.read(name) for name in ("train", "val", "test"))
    train = train.take(sampling.representative(train.labels, count))
    adversary = training.Adversary(
        eps=eps,
        largest_budget=knobs.data.training.largest_budget,
        attack=robust.attack,
        fraction=robust.adversarial_fraction,
        noise=robust.noise,
        ramp=robust.ramp,
        overfitting_gap=robust.overfitting_gap,
        undo_overfitting=False,
        pgd_steps=robust.pgd_steps,
        validation_images=200,
    )
    recipe = training.recipe(knobs, epochs=epochs, label_smoothing=robust.label_smoothing)
    recipe = replace(recipe, batch_size=min(recipe.batch_size, count))
    model, _ = training.new_model(knobs, train)
    averaged = AveragedModel(model, use_buffers=True)  # of the weights and BatchNorm's moments after late epochs

    def late(rows: list[dict[str, float]]) -> None:
        if len(rows) > epochs / 2:
            averaged.update_parameters(model)

    # The models call relu of this very module: a way to try another activation without a knob that nobody should turn
    with TemporaryDirectory() as folder, mock.patch.object(F, "relu", activation):
        start = time.process_time()
        result = training.train(
            model, train, val, recipe, adversary=adversary, resume_in=Path(folder), log=late, name=variant
        )
        minutes = (time.process_time() - start) / 60
        few = test.take(sampling.representative(test.labels, TEST_IMAGES))
        found = attacked(averaged.module.eval() if average else model, few, eps, knobs.fgsm_sweep.pgd_steps, seed)
    overfitted = sum(row["overfitted"] for row in result.rows)
    ran = {"overfitted": overfitted, "minutes": minutes, "processor": common.processor()}
    return key(variant, eps, count, epochs, seed) | found | ran


def key(variant: str, eps: float, count: int, epochs: int, seed: int) -> dict[str, float | str]:
    """What tells a row of the table from the others."""
    return dict(zip(KEY, (variant, round(eps, 6), count, epochs, seed), strict=True))


def attacked(model: Classifier, image_set: ImageSet, eps: float, steps: int, seed: int) -> dict[str, float]:
    """Accuracy on clean images, under FGSM and under PGD of one start."""
    fgsm = evaluation.fgsm_predictions(model, image_set, [eps])[0] == image_set.labels
    return {
        "clean": evaluation.accuracy(model, image_set),
        "fgsm": float(fgsm.double().mean()),
        "pgd": float(evaluation.pgd_correct(model, image_set, eps, steps=steps, seed=seed).double().mean()),
    }


def table(rows: pd.DataFrame) -> str:
    """Markdown: the mean over seeds, and how many seeds overfitted; the best PGD first at each budget.

    Minutes compare on one processor only: they are of the rows that ran on the commonest.
    """
    usual = rows.processor.mode()[0]
    lines = [
        f"| variant | eps | epochs | clean | FGSM | PGD-20 (seeds' range) | seeds overfitted | minutes, {usual} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    timed = rows.minutes.where(rows.processor == usual)
    groups = rows.assign(broken=rows.overfitted > 0, minutes=timed).groupby(
        ["eps", "images", "variant", "epochs"], as_index=False
    )
    found = groups.agg(
        clean=("clean", "mean"), fgsm=("fgsm", "mean"), pgd=("pgd", "mean"), low=("pgd", "min"), high=("pgd", "max"),
        minutes=("minutes", "mean"), broken=("broken", "sum"), seeds=("seed", "count"),
    )  # fmt: skip
    for row in found.sort_values(["eps", "images", "pgd"], ascending=[True, True, False]).itertuples():
        minutes = "" if pd.isna(row.minutes) else f"{row.minutes:.1f}"
        lines.append(
            f"| {row.variant} | {row.eps:.4g} | {row.epochs} | {row.clean:.3f} | {row.fgsm:.3f} "
            f"| {row.pgd:.3f} ({row.low:.3f} to {row.high:.3f}) | {row.broken} of {row.seeds} | {minutes} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--eps", default=None, help="in pixels of [0, 1]; the default is params.yaml's")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    unknown = set(args.only) - set(VARIANTS)
    if unknown:
        raise UserError(f"{', '.join(sorted(unknown))}: no such variant; there are {', '.join(VARIANTS)}")
    images.device("cpu")
    print(common.machine())
    eps = float(Fraction(args.eps)) if args.eps else params.load().eps
    for seed in range(args.seeds):
        for variant in args.only:
            kept = pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=KEY)
            epochs = round(args.epochs * VARIANTS[variant].get("length", 1))
            wanted = key(variant, eps, args.images, epochs, seed)
            if (kept[KEY] == pd.Series(wanted)).all(axis=1).any():
                continue
            row = measure(variant, eps, args.images, epochs, seed)
            print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
            common.put_row(TABLE, row, KEY, places=6)
    common.put_table(DOCUMENT, START, END, table(pd.read_csv(TABLE)))


if __name__ == "__main__":
    run(main)
