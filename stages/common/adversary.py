"""Adversarial training: one-step attacks by name, the ramp of their budget, the watch over catastrophic overfitting.

`Adversary` is what `training.train` is handed to train a robust model: it replaces a share of each batch by adversarial
examples of the current model, and judges each epoch. It holds no state: all that it needs is in the rows so far.
"""

from dataclasses import dataclass
from itertools import dropwhile
from typing import Protocol

import torch
from torch import Tensor, nn

from stages.common import attacks, evaluation, images, models, robustness
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.params import Params
from stages.common.training import Progress, Row, Verdict

BACK_OFF = 0.75  # of the budget that broke the model is what training goes on with


class TrainingAttack(Protocol):
    """Images of the same shape, one step away from `images`, float (N, C, H, W) in [0, 1], for about one pass more.

    `eps` is in pixels of [0, 1]; `noise`, in budgets, is how far N-FGSM starts away; `generator` is on the CPU.
    """

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, noise: float, generator: torch.Generator
    ) -> Tensor: ...


def fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, noise: float, generator: torch.Generator
) -> Tensor:
    """From the image itself, a step of eps (Goodfellow 2015): the reproduced study's. Overfits catastrophically."""
    return _one_step(model, images, labels, eps)


def rs_fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, noise: float, generator: torch.Generator
) -> Tensor:
    """From x + U(-eps, eps), a step of 1.25 eps, projected to the ball (Wong 2020, Fast is better than free)."""
    start = _start(images, eps, generator).clamp_(0, 1)
    return torch.clamp(_one_step(model, start, labels, 1.25 * eps), images - eps, images + eps)


def n_fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, noise: float, generator: torch.Generator
) -> Tensor:
    """From x + U(-noise eps, noise eps), a step of eps, not projected (de Jorge 2022, Make Some Noise).

    The noise is kept, which is what prevents catastrophic overfitting. Only [0, 1] bounds the result.
    """
    return _one_step(model, _start(images, noise * eps, generator), labels, eps)


ATTACKS: dict[str, TrainingAttack] = {"n-fgsm": n_fgsm, "rs-fgsm": rs_fgsm, "fgsm": fgsm}


def _start(images: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    return (images + (2 * noise - 1) * reach).contiguous(memory_format=torch.channels_last)


def _one_step(model: nn.Module, start: Tensor, labels: Tensor, size: float) -> Tensor:
    with models.frozen(model):
        return attacks.step(start, attacks.input_gradient(model, start, labels).sign_(), size, False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What adversarial training is told; budgets in pixels of [0, 1]. See params.yaml for each one's reason.

    Raises ValueError for an attack that ATTACKS does not name.
    """

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
    seed: int

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise ValueError(f"training attack {self.attack!r} is not one of {', '.join(ATTACKS)}")

    @classmethod
    def from_params(cls, params: Params) -> "Settings":
        robust = params.train_robust
        return cls(
            eps=params.eps,
            largest_budget=params.data.train_robust.largest_budget,
            attack=robust.attack,
            fraction=robust.adversarial_fraction,
            noise=robust.noise,
            ramp=robust.ramp,
            overfitting_gap=robust.overfitting_gap,
            undo_overfitting=robust.undo_overfitting,
            pgd_steps=robust.pgd_steps,
            validation_images=robust.validation_images,
            seed=params.seed,
        )

    @property
    def goal(self) -> float:
        """The budget that training grows to: eps, unless that is more than a model can learn to withstand."""
        return min(self.eps, self.largest_budget)


class Adversary:
    """Attacks the batches of `model` and judges its epochs on a fair sample of the validation images `val_set`."""

    def __init__(self, model: nn.Module, val_set: ImageSet, settings: Settings):
        self.model, self.settings = model, settings
        self.held_out = val_set.take(images.sample(val_set.labels, settings.validation_images))
        self.chance = evaluation.chance(val_set.labels)

    def perturb(self, images: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The batch with its first `fraction` replaced by adversarial examples (the order is random already)."""
        settings, budget = self.settings, self.budget(progress)
        count = round(settings.fraction * len(images))
        if count == 0 or budget == 0:
            return images
        attack = ATTACKS[settings.attack]
        attacked = attack(
            self.model, images[:count], labels[:count], budget, noise=settings.noise, generator=progress.generator
        )
        return torch.cat([attacked, images[count:]]).contiguous(memory_format=torch.channels_last)

    def budget(self, progress: Progress) -> float:
        """The ramp's share of the goal, but never more than BACK_OFF of a budget that has broken the model.

        Epochs that begin the training and have merely not learnt yet are no budget's fault, below the goal.
        """
        goal = self.settings.goal
        begun = dropwhile(lambda row: row["collapsed"] and not row["overfitted"] and row["eps"] < goal, progress.rows)
        broken = [row["eps"] for row in begun if self._undone(row)]
        ramped = goal * ramp(progress.done, self.settings.ramp)
        return min([ramped, *(BACK_OFF * eps for eps in broken)])

    def after_epoch(self, row: Row, progress: Progress) -> Verdict:
        """Mark an epoch that has overfitted to the one step, or that knows little more than chance; keep the best sound
        one by PGD at the goal, go back to it from an unsound one.

        Without `undo_overfitting` such epochs are only marked, and the last one is kept. Raises UserError after the
        last epoch if none was sound.
        """
        found = self._robustness(self.budget(progress))
        found["overfitted"] = int(found["gap"] > self.settings.overfitting_gap)
        found["collapsed"] = int(evaluation.near_chance(row["val_accuracy"], self.chance))
        undone = self._undone(found)
        sound = [earlier for earlier in progress.rows if not self._undone(earlier)]
        if undone and not sound and progress.last_epoch:
            raise UserError(
                "no epoch was sound (FGSM far above PGD accuracy, or little better than chance), so no model is worth "
                "keeping; lower eps, or raise train_robust.noise, train_robust.ramp or datasets.*.train_robust.epochs"
            )
        best = max((earlier["val_pgd_at_goal"] for earlier in sound), default=0.0)
        keep = not undone and (found["val_pgd_at_goal"] >= best or not self.settings.undo_overfitting)
        return Verdict(found, keep=keep, undo=undone, remark=_remark(found, bool(undone and sound)))

    def _undone(self, row: Row) -> bool:
        return self.settings.undo_overfitting and bool(row["overfitted"] or row["collapsed"])

    def _robustness(self, budget: float) -> dict[str, float]:
        """FGSM and PGD accuracy at eps with their gap at the budget that training has reached; PGD at the goal.

        The gap says nothing above that budget: there even a plainly trained model withstands one step and not ten.
        """
        settings, held_out = self.settings, self.held_out
        budgets = sorted({budget, settings.goal, settings.eps})
        right = robustness.fgsm_predictions(self.model, held_out, budgets) == held_out.labels
        alive = robustness.pgd_survivors(self.model, held_out, budgets, steps=settings.pgd_steps, seed=settings.seed)
        fgsm, pgd = (dict(zip(budgets, rows.double().mean(1).tolist(), strict=True)) for rows in (right, alive))
        return {
            "eps": budget,
            "val_fgsm": fgsm[settings.eps],
            "val_pgd": pgd[settings.eps],
            "val_pgd_at_goal": pgd[settings.goal],
            "gap": fgsm[budget] - pgd[budget],
        }


def ramp(done: float, share: float) -> float:
    """The budget's share of its goal: grows in a straight line over the first `share` of training, then stays at 1."""
    return 1.0 if share == 0 else min(1.0, done / share)


def _remark(found: Row, undone: bool) -> str:
    said = f"eps {found['eps']:.3f}  FGSM {found['val_fgsm']:.3f}  PGD {found['val_pgd']:.3f}"
    if found["overfitted"]:
        said += "  catastrophic overfitting"
    elif found["collapsed"]:
        said += "  little better than chance"
    return said + (": going back" if undone else "")
