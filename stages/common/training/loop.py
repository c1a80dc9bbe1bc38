"""The one training loop. It knows no attack: what happens to a batch, and what an epoch is worth, a `Regime` says.

An epoch's shuffling, augmentation and noise come from the seed and the epoch's number alone, so an interrupted run,
started again, takes up after its last whole epoch and ends with the same bytes.
"""

import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common import device, evaluation, images
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.training import resume
from stages.common.training.optimizer import new_optimizer, set_rate
from stages.common.training.recipe import Recipe

EARLY_SHARE = 0.5  # of the epochs that see images of `early_size`

Row = Mapping[str, float]  # an epoch's line of plots/training_*.csv


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training is: the share `done` of its steps, 0 to 1, the rows of the epochs before, and the epoch's
    source of randomness, on the CPU.
    """

    done: float
    rows: Sequence[Row]
    last_epoch: bool
    generator: torch.Generator


class Verdict(NamedTuple):
    """What becomes of an epoch's weights: kept as the best so far, or undone, so that the best are gone on with."""

    figures: Mapping[str, float]  # for the epoch's row
    keep: bool
    undo: bool = False
    remark: str = ""  # for the epoch's line


class Regime(Protocol):
    """What a training does to its batches and to its epochs. `settings` is what its results depend on, by its repr."""

    @property
    def settings(self) -> object: ...

    def perturb(self, images: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The batch to learn from, float (N, C, H, W) in [0, 1], in place of `images`."""
        ...

    def after_epoch(self, row: Row, progress: Progress) -> Verdict:
        """What the epoch of `row` is worth; `progress` is that of its last step."""
        ...


class Plain:
    """Clean images, and the last epoch's weights."""

    settings = None

    def perturb(self, images: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        return images

    def after_epoch(self, row: Row, progress: Progress) -> Verdict:
        return Verdict({}, keep=True)


class Result(NamedTuple):
    """The rows of plots/training_*.csv, and the epoch (from 1) whose weights the model carries."""

    rows: list[dict[str, float]]
    epoch: int


def train(
    model: nn.Module,
    train_set: ImageSet,
    val_set: ImageSet,
    recipe: Recipe,
    regime: Regime | None = None,
    *,
    resume_in: Path,
    log: Callable[[list[dict[str, float]]], None] = lambda rows: None,
    name: str,
) -> Result:
    """Train `model` in place, where it is, and leave it in eval mode. `log` gets all rows so far after each epoch.

    `regime` (`Plain` if None) changes the batches and says which epochs to keep; an epoch that it undoes takes the
    momentum with it, which leads back to where the model broke.

    The folder `resume_in` gets a work file, named after all that the result depends on: written after each epoch, read
    by the same run started again, deleted at the end.
    """
    regime = Plain() if regime is None else regime
    work = resume.WorkFile(resume_in, name, resume.fingerprint(model, train_set, val_set, recipe, regime.settings))
    optimizer = new_optimizer(model, recipe)
    forward = _compiled(model) if recipe.compile else model
    state = resume.State(rows=[], best=None, best_epoch=0)
    if work.load(model, optimizer, state):
        print(f"{name}: going on after epoch {len(state.rows)}", flush=True)
        log(state.rows)
    with images.progress(recipe.epochs * len(train_set), name) as bar:
        bar.update(len(state.rows) * len(train_set))
        for epoch in range(len(state.rows) + 1, recipe.epochs + 1):
            learnt, progress = _epoch(epoch, model, forward, optimizer, train_set, recipe, regime, state.rows, bar)
            row = {
                "epoch": epoch,
                **learnt,
                "val_accuracy": evaluation.accuracy(model, val_set),
                "learning_rate": set_rate(optimizer, epoch / recipe.epochs, recipe.warmup),
            }
            verdict = regime.after_epoch(row, progress)
            row |= verdict.figures
            if verdict.keep:
                state.best = {key: value.detach().clone() for key, value in model.state_dict().items()}
                state.best_epoch = epoch
            elif verdict.undo and state.best is not None:
                model.load_state_dict(state.best)
                optimizer.state.clear()
            state.rows.append(row)
            _say(f"{name}: epoch {epoch}/{recipe.epochs}", row, verdict.remark, bar)
            work.save(model, optimizer, state)
            log(state.rows)
    if state.best is not None:
        model.load_state_dict(state.best)
    work.delete()
    model.eval()
    return Result(state.rows, state.best_epoch or recipe.epochs)


def _epoch(
    epoch: int,
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    train_set: ImageSet,
    recipe: Recipe,
    regime: Regime,
    rows: Sequence[Row],
    bar: Any,
) -> tuple[dict[str, float], Progress]:
    """One pass over the training images in a new order: the mean loss, the accuracy, the progress of the last step.

    Raises UserError for a loss that is not finite.
    """
    where = device.of(model)
    batch_size = min(recipe.batch_size, count := len(train_set))
    steps = count // batch_size
    generator = torch.Generator().manual_seed(_seed(recipe.seed, epoch))
    order = torch.randperm(count, generator=generator)
    drawn = images.Augmentation.draw(count, flip=recipe.flip, translate=recipe.translate, generator=generator)
    size = recipe.early_size if epoch <= recipe.epochs * EARLY_SHARE else None
    losses, right = [], []  # tensors: a number asked of each step would make a GPU wait
    model.train()
    for step in range(steps):
        done = ((epoch - 1) * steps + step) / (recipe.epochs * steps)
        progress = Progress(done=done, rows=rows, last_epoch=epoch == recipe.epochs, generator=generator)
        set_rate(optimizer, done, recipe.warmup)
        part = slice(step * batch_size, (step + 1) * batch_size)
        batch = train_set.take(order[part])
        x, y = images.to_float(drawn.apply(batch.images, part), where), batch.labels.to(where)
        x = regime.perturb(x if size is None else images.resize(x, size), y, progress)
        with torch.autocast(where.type, torch.bfloat16, enabled=recipe.bfloat16):
            logits = forward(x).float()
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        right.append((logits.detach().argmax(1) == y).sum())
        if not bar.disable:
            bar.set_postfix(epoch=f"{epoch}/{recipe.epochs}", loss=f"{float(losses[-1]):.3f}", refresh=False)
        bar.update(batch_size)
    model.eval()
    mean = float(torch.stack(losses).cpu().double().mean())
    if not math.isfinite(mean):
        raise UserError(
            f"the loss became {mean} in epoch {epoch}; "
            f"lower models.*.learning_rate (now {recipe.learning_rate:g} at this batch size)"
        )
    return {"loss": mean, "train_accuracy": int(torch.stack(right).sum()) / (steps * batch_size)}, progress


def _seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model as torch.compile makes it, for the training step; attacks and validation use the plain one."""
    if device.of(model).type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("params.yaml: training.compile = true needs a C++ compiler on a CPU; install g++, or set false")
    compiled: Callable[[Tensor], Tensor] = torch.compile(model)
    return compiled


def _say(start: str, row: Row, remark: str, bar: Any) -> None:
    line = f"{start}  loss {row['loss']:.3f}  val accuracy {row['val_accuracy']:.3f}  {remark}".rstrip()
    bar.write(line) if sys.stderr.isatty() else print(line, flush=True)
