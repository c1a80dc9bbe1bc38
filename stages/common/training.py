"""The one training loop: plain, or on clean images and one-step adversarial examples made on the fly.

Nesterov SGD with a triangular learning rate, as airbench94 (Jordan 2024). An epoch's shuffling, augmentation and
noise come from the seed and the epoch's number alone, so an interrupted run, started again, takes up after its last
whole epoch and ends with the same bytes.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common import artifacts, attacks, evaluation, images, models
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.params import Params

BIAS_RATE = 64  # BatchNorm's shifts learn this much faster than the weights (airbench94)
EARLY_SHARE = 0.5  # of the epochs that see images of `early_size`
BACK_OFF = 0.75  # of the budget that broke the model is what training goes on with
ABANDONED = 8  # work files of other runs, some of which may be at work now
LEARNT = 0.15  # of the way from guessing to all correct on clean images; a model below it is near to constant


@dataclass(frozen=True)
class Recipe:
    """What both trainings need. Rates are for the mean loss of a batch; `early_size` is in pixels or None."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    flip: bool
    translate: int
    early_size: int | None
    bfloat16: bool
    compile: bool
    seed: int


@dataclass(frozen=True)
class Adversary:
    """What adversarial training needs besides; budgets in pixels of [0, 1]. See params.yaml for each one's reason."""

    eps: float
    largest_budget: float
    attack: str
    fraction: float
    noise: float
    ramp: float
    overfitting_gap: float
    undo_overfitting: bool
    pgd_steps: int
    validation_images: int

    @property
    def goal(self) -> float:
        """The budget that training grows to: eps, unless that is more than a model can learn to withstand."""
        return min(self.eps, self.largest_budget)


class Result(NamedTuple):
    """The rows of plots/training_*.csv, and the epoch (from 1) whose weights the model carries."""

    rows: list[dict[str, float]]
    epoch: int


def recipe(params: Params, *, epochs: int, label_smoothing: float, device: torch.device | str = "cpu") -> Recipe:
    """The recipe that params.yaml asks for; the learning rate scales with the batch size (Goyal 2017)."""
    data, training = params.data.training, params.training
    return Recipe(
        epochs=epochs,
        batch_size=data.batch_size,
        learning_rate=params.architecture.learning_rate * data.batch_size / 1024,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        warmup=training.warmup,
        label_smoothing=label_smoothing,
        flip=data.flip,
        translate=data.translate,
        early_size=data.early_size,
        bfloat16=images.bfloat16(training.precision, device),
        compile=training.compile,
        seed=params.seed,
    )


def new_model(params: Params, train: ImageSet) -> tuple[Classifier, dict[str, Any]]:
    """An untrained model of the chosen architecture, adapted to the training images, and the options that built it."""
    options = params.architecture.model_dump(exclude={"learning_rate"})
    torch.manual_seed(params.seed)
    model = models.build(params.model.name, channels=train.images.shape[1], classes=train.classes, **options)
    model.adapt(images.to_float(train.images[images.first_per_class(train.labels, 5000)]))
    return model, options


def train(
    model: Classifier,
    train_set: ImageSet,
    val_set: ImageSet,
    recipe: Recipe,
    *,
    adversary: Adversary | None = None,
    device: torch.device | str = "cpu",
    resume_in: Path,
    log: Callable[[list[dict[str, float]]], None] = lambda rows: None,
    name: str,
) -> Result:
    """Train `model` in place and leave it in eval mode on the CPU. `log` gets all rows so far after each epoch.

    Without an adversary the last epoch's weights are kept. With one, the share `fraction` of each batch is replaced by
    one-step adversarial examples of the current model, whose budget grows over the first `ramp` of training to `goal`;
    after each epoch held-out images are attacked with FGSM and PGD. An epoch that has overfitted to the one step (FGSM
    minus PGD accuracy above `overfitting_gap`) or that knows little more than chance is discarded: training goes back
    to the best weights and on with a smaller budget. The best of the sound epochs by PGD at `goal` is kept. Without
    `undo_overfitting` such epochs are only marked, and the last one is kept.

    The folder `resume_in` gets a work file, named after all that the result depends on: written after each epoch, read
    by the same run started again, deleted at the end. Other runs, at the same time even, have files of their own.
    """
    run = _fingerprint(model, train_set, val_set, recipe, adversary)
    work = resume_in / f"{name}-{run[:16]}.pt"
    _tidy(resume_in, name)
    model.to(device)
    forward = _compiled(model, torch.device(device)) if recipe.compile else model
    optimizer = _optimizer(model, recipe)
    batch_size = min(recipe.batch_size, len(train_set))
    steps = len(train_set) // batch_size
    goal = adversary.goal if adversary else 0.0
    state = _Progress(rows=[], best=None, best_epoch=0, best_pgd=-1.0, budget_limit=goal)
    _resume(work, run, model, optimizer, state, name)
    if state.rows:
        log(state.rows)

    with images.progress(recipe.epochs * steps * batch_size, name) as bar:
        bar.update(len(state.rows) * steps * batch_size)
        for epoch in range(len(state.rows) + 1, recipe.epochs + 1):
            generator = torch.Generator().manual_seed(_seed(recipe.seed, epoch))
            order = torch.randperm(len(train_set), generator=generator)
            augmented = images.augment(
                train_set.images[order], flip=recipe.flip, translate=recipe.translate, generator=generator
            )
            labels = train_set.labels[order]
            early = recipe.early_size is not None and epoch <= recipe.epochs * EARLY_SHARE
            total_loss, total_correct = 0.0, 0
            model.train()
            for step in range(steps):
                done = ((epoch - 1) * steps + step) / (recipe.epochs * steps)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * triangle(done, recipe.warmup)
                part = slice(step * batch_size, (step + 1) * batch_size)
                x, y = images.to_float(augmented[part], device), labels[part].to(device)
                if early:
                    x = images.resize(x, recipe.early_size)
                if adversary:
                    budget = min(adversary.goal * ramp(done, adversary.ramp), state.budget_limit)
                    x = _mix(model, x, y, budget, adversary, generator)
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.bfloat16):
                    logits = forward(x).float()
                loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total_loss += float(loss.detach())
                total_correct += int((logits.detach().argmax(1) == y).sum())
                bar.set_postfix(epoch=f"{epoch}/{recipe.epochs}", loss=f"{total_loss / (step + 1):.3f}", refresh=False)
                bar.update(batch_size)
            model.eval()
            row = {
                "epoch": epoch,
                "loss": total_loss / steps,
                "train_accuracy": total_correct / (steps * batch_size),
                "val_accuracy": evaluation.accuracy(model, val_set, device=device),
                "learning_rate": optimizer.param_groups[0]["peak"] * triangle(epoch / recipe.epochs, recipe.warmup),
            }
            if not np.isfinite(row["loss"]):
                raise UserError(
                    f"{name}: the loss became {row['loss']} in epoch {epoch}; "
                    f"lower models.*.learning_rate (now {recipe.learning_rate:g} at this batch size)"
                )
            if adversary:
                found, pgd_at_goal = _robustness(model, val_set, adversary, budget, recipe.seed, device)
                row |= found
                _judge(row, pgd_at_goal, model, optimizer, state, adversary)
            state.rows.append(row)
            _report(name, row, recipe.epochs, bar.write, undone=adversary is None or adversary.undo_overfitting)
            _save(work, run, model, optimizer, state)
            log(state.rows)

    if adversary:
        model.load_state_dict(_best(state, name))
    work.unlink(missing_ok=True)
    model.to("cpu").eval()
    return Result(state.rows, state.best_epoch if adversary else recipe.epochs)


def triangle(done: float, warmup: float) -> float:
    """The learning rate's share of its peak when `done` of the training, 0 to 1, has passed: 0.2 up to 1, down to 0."""
    return float(np.interp(done, [0, warmup, 1], [0.2, 1, 0]))


def ramp(done: float, share: float) -> float:
    """The budget's share of its goal: grows in a straight line over the first `share` of training, then stays at 1."""
    return 1.0 if share == 0 else min(1.0, done / share)


@dataclass
class _Progress:
    """What a run has come to: everything that a resumed one needs besides the weights and the momentum."""

    rows: list[dict[str, float]]
    best: dict[str, Tensor] | None
    best_epoch: int
    best_pgd: float
    budget_limit: float


def _seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _compiled(model: Classifier, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The model as torch.compile makes it, for the training step; attacks and validation use the plain one."""
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("params.yaml: training.compile = true needs a C++ compiler on a CPU; install g++, or set false")
    return torch.compile(model)


def _optimizer(model: Classifier, recipe: Recipe) -> torch.optim.SGD:
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    shifts = [norm.bias for norm in norms]
    fast = {id(bias) for bias in shifts}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in fast]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    groups = [{"params": weights, "lr": rate, "peak": rate, "weight_decay": decay}]
    if shifts:
        peak = rate * BIAS_RATE
        groups.append({"params": shifts, "lr": peak, "peak": peak, "weight_decay": decay / BIAS_RATE})
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _mix(
    model: Classifier, x: Tensor, y: Tensor, budget: float, adversary: Adversary, generator: torch.Generator
) -> Tensor:
    """The batch with its first `fraction` replaced by adversarial examples (the order is random already)."""
    count = round(adversary.fraction * len(x))
    if count == 0 or budget == 0:
        return x
    attacked = attacks.training_example(
        model, x[:count], y[:count], budget, attack=adversary.attack, noise=adversary.noise, generator=generator
    )
    return torch.cat([attacked, x[count:]]).contiguous(memory_format=torch.channels_last)


def _robustness(
    model: Classifier, val_set: ImageSet, adversary: Adversary, budget: float, seed: int, device: torch.device | str
) -> tuple[dict[str, float], float]:
    """Validation FGSM and PGD accuracy at eps with their gap at the budget that training has reached; PGD at the goal.

    The gap says nothing above that budget: there even a plainly trained model withstands one step and not ten.
    """
    held_out = val_set.take(images.first_per_class(val_set.labels, adversary.validation_images))
    budgets = sorted({budget, adversary.goal, adversary.eps})
    right = evaluation.fgsm_predictions(model, held_out, budgets, device=device) == held_out.labels
    alive = evaluation.pgd_survivors(model, held_out, budgets, steps=adversary.pgd_steps, seed=seed, device=device)
    fgsm, pgd = (dict(zip(budgets, rows.double().mean(1).tolist(), strict=True)) for rows in (right, alive))
    gap = fgsm[budget] - pgd[budget]
    found = {"eps": budget, "val_fgsm": fgsm[adversary.eps], "val_pgd": pgd[adversary.eps], "gap": gap}
    return found, pgd[adversary.goal]


def _judge(
    row: dict[str, float],
    pgd_at_goal: float,
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    state: _Progress,
    adversary: Adversary,
) -> None:
    """Mark the epoch; keep its weights if they are sound and the best, go back to the best if they are not."""
    row["overfitted"] = int(row["gap"] > adversary.overfitting_gap)
    chance = 1 / len(model.classes)
    row["collapsed"] = int(row["val_accuracy"] < chance + LEARNT * (1 - chance))
    if not adversary.undo_overfitting or not (row["overfitted"] or row["collapsed"]):
        if pgd_at_goal >= state.best_pgd or not adversary.undo_overfitting:
            state.best = {key: value.detach().clone() for key, value in model.state_dict().items()}
            state.best_epoch, state.best_pgd = int(row["epoch"]), pgd_at_goal
        return
    state.budget_limit = BACK_OFF * row["eps"]
    if state.best is not None:
        model.load_state_dict(state.best)
        optimizer.state.clear()  # the momentum leads back to where the model broke


def _best(state: _Progress, name: str) -> dict[str, Tensor]:
    if state.best is None:
        raise UserError(
            f"{name}: no epoch was sound (FGSM far above PGD accuracy, or little better than chance), so no model is "
            "worth keeping; lower eps, or raise train_robust.noise, train_robust.ramp or the data set's epochs_robust"
        )
    return state.best


def _report(name: str, row: dict[str, float], epochs: int, write: Callable[[str], None], *, undone: bool) -> None:
    line = f"{name}: epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}  val accuracy {row['val_accuracy']:.3f}"
    if "val_pgd" in row:
        line += f"  eps {row['eps']:.3f}  FGSM {row['val_fgsm']:.3f}  PGD {row['val_pgd']:.3f}"
        if row["overfitted"]:
            line += "  catastrophic overfitting"
        elif row["collapsed"]:
            line += "  little better than chance"
        if undone and (row["overfitted"] or row["collapsed"]):
            line += ": going back"
    write(line) if sys.stderr.isatty() else print(line, flush=True)


def _fingerprint(
    model: Classifier, train_set: ImageSet, val_set: ImageSet, recipe: Recipe, adversary: Adversary | None
) -> str:
    """Of everything that the run's result depends on: data, initial weights, recipe, code and torch's version."""
    digest = hashlib.sha256()
    for tensor in (train_set.images, train_set.labels, val_set.images, val_set.labels, *model.state_dict().values()):
        digest.update(tensor.contiguous().numpy())
    digest.update(repr((asdict(recipe), adversary and asdict(adversary), torch.__version__)).encode())
    for module in (attacks, evaluation, images, models):
        digest.update(Path(module.__file__).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def _tidy(folder: Path, name: str) -> None:
    """Delete the work files of runs given up long ago: all but the newest ABANDONED of this name."""
    files = sorted(folder.glob(f"{name}-*.pt"), key=lambda file: file.stat().st_mtime)
    for file in files[:-ABANDONED]:
        file.unlink(missing_ok=True)


def _save(path: Path, run: str, model: Classifier, optimizer: torch.optim.Optimizer, state: _Progress) -> None:
    content = {"run": run, "model": model.state_dict(), "optimizer": optimizer.state_dict(), **vars(state)}
    artifacts.write_checkpoint(path, content)


def _resume(
    path: Path, run: str, model: Classifier, optimizer: torch.optim.Optimizer, state: _Progress, name: str
) -> None:
    """Take up an interrupted run of this very kind; a work file of any other run, or a damaged one, is left aside."""
    if not path.is_file():
        return
    try:
        content = artifacts.read_checkpoint(path)
    except UserError:
        return
    if content.get("run") != run:
        return
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    for key in vars(state):
        setattr(state, key, content[key])
    print(f"{name}: going on after epoch {len(state.rows)}", flush=True)
