"""A training stage as params.yaml asks for it: the model trained, or adopted, and what it comes to on every set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from stages.common import artifacts, device, diagnosis, evaluation, images, models, workspace
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.models.foreign import Foreign
from stages.common.params import Params
from stages.common.training.loop import Plain, Progress, Regime, Row, train
from stages.common.training.recipe import Recipe, new_model


class Learnt(NamedTuple):
    """A model, all rows of its training, and the epoch (from 1) whose weights it has; 0 where it was adopted."""

    model: Classifier
    rows: list[dict[str, float]]
    epoch: int
    metrics: dict[str, Any]  # accuracy, balanced accuracy and epoch

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
    for remark in model.remarks if isinstance(model, Foreign) else ():
        print(f"{which}: {remark}", flush=True)
    table = artifacts.PLOTS / f"training_{which}.csv"  # grows by a row an epoch: dvc plots show draws it at any time
    if params.trained(which).weights is None:
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
    else:
        rows, epoch = [_adopted(params, which, model.eval(), sets, under)], 0
        artifacts.write_table(table, rows)
    found = {name: evaluation.accuracies(model, image_set) for name, image_set in sets.items()}
    accuracy, balanced = ({name: pair[kind] for name, pair in found.items()} for kind in (0, 1))
    artifacts.write_checkpoint(artifacts.CHECKPOINTS / f"{which}.pt", models.checkpoint(model))
    return Learnt(model, rows, epoch, {"accuracy": accuracy, "balanced_accuracy": balanced, "epoch": epoch})


def _adopted(
    params: Params, which: str, model: Classifier, sets: dict[str, ImageSet], regime: Regime
) -> dict[str, float]:
    """The row of a model that is not trained here: epoch 0. Says so where it knows little more than chance."""
    val = sets["val"]
    right = evaluation.predictions(model, val.images) == val.labels
    accuracy = float(right.double().mean())
    print(f"{which}: adopted from {params.trained(which).weights}: val accuracy {accuracy:.3f}", flush=True)
    if diagnosis.near_chance(val.labels, accuracy):
        for line in diagnosis.lines(model, val):
            print(f"warning: {which}: {line}", flush=True)
    row = {
        "epoch": 0,
        "loss": _loss(model, val),
        "train_accuracy": evaluation.accuracy(model, sets["train"]),
        "val_accuracy": accuracy,
        "learning_rate": 0.0,
    }
    generator = torch.Generator().manual_seed(params.seed)
    progress = Progress(done=1.0, rows=[], last_epoch=False, generator=generator)
    return row | dict(regime.after_epoch(row, progress).figures)


@torch.no_grad()
def _loss(model: Classifier, image_set: ImageSet) -> float:
    total = 0.0
    where = device.of(model)
    for _, x, y in images.batches(image_set.images, image_set.labels, device=where, description="loss"):
        total += float(F.cross_entropy(model(x), y, reduction="sum"))
    return total / len(image_set)
