"""The one training loop. It knows no attack: what a batch teaches, and what an epoch is worth, a `Regime` says.

An epoch's shuffling, augmentation and noise come from the seed and the epoch's number alone, so an interrupted run,
started again, takes up after its last whole epoch and ends with the same bytes.
"""

import math
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common import device, distributed, evaluation, images
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.seeds import seed_of
from stages.common.training import resume
from stages.common.training.optimizer import new_optimizers, set_rate
from stages.common.training.recipe import Recipe

EARLY_SHARE = 0.5  # of the epochs that see images of `early_size`
TOLD = 10  # steps from one loss on the progress bar to the next: a number asked of every step would make a GPU wait

Row = Mapping[str, float]  # an epoch's line of plots/training_*.csv


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training is: the share `done` of its steps, 0 to 1, the rows of the epochs before, and the epoch's
    source of randomness, on the model's device.
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


class Learner(NamedTuple):
    """What a training hands to its regime: the model's logits, and what they are judged by. Logits (N, K) of images are
    float32 whatever precision the recipe computes in; `answer` gives those that are learnt from, whose gradients ranks
    share, `forward` those that images are attacked by.
    """

    forward: Callable[[Tensor], Tensor]
    answer: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]  # logits, labels -> the batch's mean cross-entropy, smoothed


class Objective(NamedTuple):
    """What a batch came to: the logits (N, K) that count as the model's answer, and the loss that is descended."""

    logits: Tensor
    loss: Tensor


class Regime(Protocol):
    """What a training makes of its batches and its epochs. `settings` is what its results depend on, by its repr."""

    @property
    def settings(self) -> object: ...

    def objective(self, learner: Learner, images: Tensor, labels: Tensor, progress: Progress) -> Objective:
        """What is learnt from a batch, float images (N, C, H, W) in [0, 1]; the model is in train mode."""
        ...

    def after_epoch(self, row: Row, progress: Progress) -> Verdict:
        """What the epoch of `row` is worth; `progress` is that of its last step."""
        ...


class Plain:
    """Clean images, and the last epoch's weights."""

    settings = None

    def objective(self, learner: Learner, images: Tensor, labels: Tensor, progress: Progress) -> Objective:
        logits = learner.answer(images)
        return Objective(logits, learner.loss(logits, labels))

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

    `regime` (`Plain` if None) says what is learnt from a batch and which epochs to keep; an epoch that it undoes takes
    the momentum with it, which leads back to where the model broke.

    The folder `resume_in` gets a work file, named after all that the result depends on: written after each epoch, read
    by the same run started again, deleted at the end.

    Raises UserError for a training set below a batch that ranks cannot share evenly, and as `_epoch` does.
    """
    if len(train_set) < recipe.batch_size and len(train_set) % (ranks := distributed.count()):
        raise UserError(
            f"{name}: the {len(train_set)} training images are one batch, which {ranks} processes cannot share evenly; "
            f"set datasets.*.training.batch_size to a multiple of {ranks} below it, or ask for fewer processes"
        )
    regime = Plain() if regime is None else regime
    run = resume.fingerprint(model, train_set, val_set, recipe, regime.settings)
    distributed.agree("training set, model or code", run)
    work = resume.WorkFile(resume_in, name, run)
    optimizers = new_optimizers(model, recipe)
    learner = _learner(model, recipe)
    shown = images.Feed(train_set, device.of(model))
    state = resume.State(rows=[], best=None, best_epoch=0)
    if work.load(model, optimizers, state):
        print(f"{name}: going on after epoch {len(state.rows)}", flush=True)
        log(state.rows)
    with images.progress(recipe.epochs * len(train_set), name) as bar:
        bar.update(len(state.rows) * len(train_set))
        for epoch in range(len(state.rows) + 1, recipe.epochs + 1):
            learnt, progress = _epoch(epoch, model, learner, optimizers, shown, recipe, regime, state.rows, bar)
            row = {
                "epoch": epoch,
                **learnt,
                "val_accuracy": evaluation.accuracy(model, val_set),
                "learning_rate": set_rate(optimizers, epoch / recipe.epochs, recipe.warmup),
            }
            verdict = distributed.from_first(regime.after_epoch(row, progress))
            row |= verdict.figures
            if verdict.keep:
                state.best = {key: value.detach().clone() for key, value in model.state_dict().items()}
                state.best_epoch = epoch
            elif verdict.undo and state.best is not None:
                model.load_state_dict(state.best)
                for optimizer in optimizers:
                    optimizer.state.clear()
            state.rows.append(row)
            _say(f"{name}: epoch {epoch}/{recipe.epochs}", row, verdict.remark, bar)
            work.save(model, optimizers, state)
            log(state.rows)
    if state.best is not None:
        model.load_state_dict(state.best)
    work.delete()
    model.eval()
    return Result(state.rows, state.best_epoch or recipe.epochs)


def _epoch(
    epoch: int,
    model: nn.Module,
    learner: Learner,
    optimizers: Sequence[torch.optim.Optimizer],
    shown: images.Feed,
    recipe: Recipe,
    regime: Regime,
    rows: Sequence[Row],
    bar: Any,
) -> tuple[dict[str, float], Progress]:
    """One pass over the training images in a new order: the mean loss, the accuracy, the progress of the last step.

    Every rank draws the same order, augmentation and noise for whole batches, and takes the images of each that are
    dealt out to it. Raises UserError for a loss that is not finite.
    """
    where = device.of(model)
    batch_size = min(recipe.batch_size, count := len(shown))
    steps = count // batch_size
    generator = torch.Generator().manual_seed(seed := seed_of(recipe.seed, epoch))
    order = torch.randperm(count, generator=generator)
    drawn = images.Augmentation.draw(
        order, epoch, flip=recipe.flip, translate=recipe.translate, seed=recipe.seed, generator=generator
    ).to(where)
    noise = generator if where.type == "cpu" else torch.Generator(where).manual_seed(seed)
    size = recipe.early_size if epoch <= recipe.epochs * EARLY_SHARE else None
    losses, right = [], []  # tensors: a number asked of each step would make a GPU wait
    model.train()
    for step in range(steps):
        done = ((epoch - 1) * steps + step) / (recipe.epochs * steps)
        progress = Progress(done=done, rows=rows, last_epoch=epoch == recipe.epochs, generator=noise)
        set_rate(optimizers, done, recipe.warmup)
        part = slice(step * batch_size + distributed.rank(), (step + 1) * batch_size, distributed.count())
        pixels, y = shown.take(order[part])
        x = images.to_float(drawn.apply(pixels, part), where)
        x = x if size is None else images.resize(x, size)
        logits, loss = regime.objective(learner, x, y, progress)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())
        right.append((logits.detach().argmax(1) == y).sum())
        if not bar.disable and step % TOLD == 0:
            bar.set_postfix(epoch=f"{epoch}/{recipe.epochs}", loss=f"{float(losses[-1]):.3f}", refresh=False)
        bar.update(batch_size)
    model.eval()
    distributed.average(buffer for buffer in model.buffers() if buffer.is_floating_point())  # BatchNorm's, of each rank
    mean = float(np.mean(distributed.gathered(float(torch.stack(losses).cpu().double().mean()))))
    if not math.isfinite(mean):
        raise UserError(
            f"the loss became {mean} in epoch {epoch}; "
            f"lower models.*.learning_rate (now {recipe.learning_rate:g} at this batch size) or models.*.filter_rate"
        )
    found = sum(distributed.gathered(int(torch.stack(right).sum())))
    return {"loss": mean, "train_accuracy": found / (steps * batch_size)}, progress


def _learner(model: nn.Module, recipe: Recipe) -> Learner:
    """The model in the recipe's precision, compiled where it says so; validation uses the plain one, in float32. What
    is learnt from goes through DistributedDataParallel where there are ranks; buffers are averaged once an epoch.
    """
    where = device.of(model)
    if recipe.sync_batchnorm and distributed.count() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, with the same weights
    plain = _compiled(model) if recipe.compile else model
    shared = plain
    if distributed.count() > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch is about to rename the option
            shared = nn.parallel.DistributedDataParallel(plain, broadcast_buffers=False)

    def computed(by: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with torch.autocast(where.type, torch.bfloat16, enabled=recipe.bfloat16):
            return by(images).float()

    smoothed = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    return Learner(partial(computed, plain), partial(computed, shared), smoothed)


def _compiled(model: nn.Module) -> nn.Module:
    """The model as torch.compile makes it."""
    if device.of(model).type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("params.yaml: training.compile = true needs a C++ compiler on a CPU; install g++, or set false")
    compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]  # of a module it makes a module
    return compiled


def _say(start: str, row: Row, remark: str, bar: Any) -> None:
    line = f"{start}  loss {row['loss']:.3f}  val accuracy {row['val_accuracy']:.3f}  {remark}".rstrip()
    bar.write(line) if sys.stderr.isatty() else print(line, flush=True)
