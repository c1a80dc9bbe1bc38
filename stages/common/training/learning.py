"""A training stage as params.yaml asks for it: the model trained, or adopted, and what it comes to on every set."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from stages.common import artifacts, device, diagnosis, evaluation, images, models, wilson, workspace
from stages.common.images import Batch, ImageSet
from stages.common.models import Classifier
from stages.common.params import Params
from stages.common.training.loop import Plain, Progress, Regime, Row, train
from stages.common.training.recipe import Recipe, new_model

LEVEL = 0.95  # of a training stage's intervals: params.yaml's `confidence`, a knob of figures, would train again


class Learnt(NamedTuple):
    """A model, all rows of its training, and the epoch (from 1) whose weights it has; 0 where it was adopted."""

    model: Classifier
    rows: list[dict[str, float]]
    epoch: int
    metrics: dict[str, Any]  # accuracy with its intervals, balanced accuracy and epoch

    @property
    def kept(self) -> Row:
        """The row of the weights that it has."""
        return self.rows[max(0, self.epoch - 1)]


def learn(params: Params, which: str, regime: Callable[[Classifier, ImageSet], Regime] | None = None) -> Learnt:
    """Train the `standard` or the `robust` model, or adopt it where train_<which>.weights says so, and write its
    checkpoint and the rows of its training. `regime` makes, of the model and the validation set, what it is trained
    under.

    Raises UserError as `new_model` and `train` do.
    """
    where = device.choose(params.device)
    sets = {name: images.read(name) for name in ("train", "val", "test")}
    model = new_model(params, which, sets["train"]).to(where)
    under = Plain() if regime is None else regime(model, sets["val"])
    for remark in model.remarks:
        print(f"{which}: {remark}", flush=True)
    table = artifacts.PLOTS / f"training_{which}.csv"  # grows by a row an epoch: dvc plots show draws it at any time
    adopted = params.trained(which).weights
    if adopted is None:
        rows, epoch = train(
            model,
            sets["train"],
            sets["val"],
            Recipe.from_params(params, which, where),
            under,
            resume_in=workspace.resume_folder(),
            log=lambda rows: artifacts.write_table(table, rows),
            name=which,
        )
    found = {name: evaluation.accuracies(model.eval(), image_set) for name, image_set in sets.items()}
    accuracy, balanced = ({name: pair[kind] for name, pair in found.items()} for kind in (0, 1))
    if adopted is not None:
        print(f"{which}: adopted from {adopted}: val accuracy {accuracy['val']:.3f}", flush=True)
        rows, epoch = [_adopted(which, model, sets["val"], accuracy, under, params.seed)], 0
        artifacts.write_table(table, rows)
    artifacts.write_checkpoint(artifacts.CHECKPOINTS / f"{which}.pt", models.checkpoint(model))
    metrics = {"accuracy": with_intervals(accuracy, sets), "balanced_accuracy": balanced, "epoch": epoch}
    return Learnt(model, rows, epoch, metrics)


def with_intervals(accuracy: Mapping[str, float], sets: Mapping[str, ImageSet]) -> dict[str, float]:
    """Each set's accuracy, and its interval under name_low and name_high. A balanced accuracy, the mean of shares on
    different numbers of images, has no such interval; where classes are of one size it is the accuracy.
    """
    found: dict[str, float] = {}
    for name, share in accuracy.items():
        found |= wilson.figures_of_shares({name: share}, len(sets[name]), LEVEL)
    return found


def _adopted(
    which: str, model: Classifier, val: ImageSet, accuracy: Mapping[str, float], regime: Regime, seed: int
) -> dict[str, float]:
    """The row of a model that is not trained here: epoch 0. Says so where it knows little more than chance."""
    if evaluation.near_chance(accuracy["val"], evaluation.chance(val.labels)):
        for line in diagnosis.lines(model, val):
            print(f"warning: {which}: {line}", flush=True)
    row = {
        "epoch": 0,
        "loss": _loss(model, val),
        "train_accuracy": accuracy["train"],
        "val_accuracy": accuracy["val"],
        "learning_rate": 0.0,
    }
    progress = Progress(done=1.0, rows=[], last_epoch=False, generator=torch.Generator().manual_seed(seed))
    return row | dict(regime.after_epoch(row, progress).figures)


@torch.no_grad()
def _loss(model: Classifier, image_set: ImageSet) -> float:
    def total(batch: Batch) -> float:
        return float(F.cross_entropy(model(batch.x), batch.y, reduction="sum"))

    where = device.of(model)
    found = images.each_batch(total, image_set.images, image_set.labels, device=where, description="loss")
    return sum(found) / len(image_set)
