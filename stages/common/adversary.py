"""Adversarial training: methods by name, the ramp of their budget, the watch over catastrophic overfitting.

`Adversary` is what `training.train` is handed to train a robust model: it says what is learnt of a batch, of which a
share is attacked, and judges each epoch. It holds no state: all that it needs is in the rows so far.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import dropwhile
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common import attacks, distributed, evaluation, images, models, robustness
from stages.common.attacks import Uphill
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.params import Params
from stages.common.training import Learner, Objective, Plain, Progress, Row, Verdict

BACK_OFF = 0.75  # of the budget that broke the model is what training goes on with
TRADES_WEIGHT = 6.0  # 1 / lambda of Zhang 2019, its choice for CIFAR-10


class Duel(NamedTuple):
    """What a method works with at one step: the model as it stands, the budget and how to use it.

    `learner.forward` is the model in train mode; `eps` is in pixels of [0, 1]; `noise`, in budgets, is how far N-FGSM
    starts away; `steps` are those of iterated attacks; `total` images of a batch are attacked, those of all ranks.
    `generator` is on the model's device.
    """

    model: nn.Module
    learner: Learner
    eps: float
    noise: float
    steps: int
    total: int
    generator: torch.Generator

    @property
    def attacked(self) -> int:
        """How many of this rank's part of the batch are attacked, the first ones."""
        return distributed.share(self.total)

    def uphill(self, value: Callable[[Tensor], Tensor]) -> Uphill:
        """The gradient to the images of `value`, logits (N, K) -> (N,), in the precision that training computes in:
        in bfloat16 too, whose exponents are float32's, so that small gradients stay above 0.
        """
        return lambda attacked: attacks.gradient(lambda x: value(self.learner.forward(x)), attacked)


def fgsm(duel: Duel, uphill: Uphill, images: Tensor) -> Tensor:
    """From the image itself, a step of eps (Goodfellow 2015): the reproduced study's. Overfits catastrophically."""
    return _step(images, uphill, duel.eps)


def rs_fgsm(duel: Duel, uphill: Uphill, images: Tensor) -> Tensor:
    """From x + U(-eps, eps), a step of 1.25 eps, projected to the ball (Wong 2020, Fast is better than free)."""
    start = _away(duel, images, duel.eps).clamp_(0, 1)
    return torch.clamp(_step(start, uphill, 1.25 * duel.eps), images - duel.eps, images + duel.eps)


def n_fgsm(duel: Duel, uphill: Uphill, images: Tensor) -> Tensor:
    """From x + U(-noise eps, noise eps), a step of eps, not projected (de Jorge 2022, Make Some Noise).

    The noise is kept, which is what prevents catastrophic overfitting. Only [0, 1] bounds the result.
    """
    return _step(_away(duel, images, duel.noise * duel.eps), uphill, duel.eps)


def pgd(duel: Duel, uphill: Uphill, images: Tensor) -> Tensor:
    """From a random point of the ball, `steps` steps of 2.5 eps / steps (Madry 2018): as many passes more."""
    ball = attacks.Linf(images, duel.eps)
    start = torch.clamp(_away(duel, images, duel.eps), ball.low, ball.high)
    return attacks.ascend(uphill, ball, attacks.constant(ball, duel.steps), start=start)


def _away(duel: Duel, images: Tensor, reach: float) -> Tensor:
    noise = distributed.uniform(duel.total, images, duel.generator)
    return (images + (2 * noise - 1) * reach).contiguous(memory_format=torch.channels_last)


def _step(start: Tensor, uphill: Uphill, size: float) -> Tensor:
    return attacks.step(start, uphill(start).sign_(), size, False)


# Images of the same shape, float (N, C, H, W) in [0, 1], from those given, by the gradient of what is to be raised
TrainingAttack = Callable[[Duel, Uphill, Tensor], Tensor]


class Method(NamedTuple):
    """A way to train: how images are attacked, and what is learnt of the attacked and the clean ones of a batch."""

    attack: TrainingAttack
    learn: Callable[["Method", Duel, Tensor, Tensor], Objective]


def learn_attacked(method: Method, duel: Duel, images: Tensor, labels: Tensor) -> Objective:
    """The classes of attacked images (Madry 2018) and of the clean rest; the attack raises the cross-entropy."""
    count = duel.attacked
    with models.frozen(duel.model):
        climbed = duel.uphill(lambda logits: F.cross_entropy(logits, labels[:count], reduction="none"))
        attacked = method.attack(duel, climbed, images[:count])
    logits = duel.learner.answer(_beside(attacked, images[count:]))
    return Objective(logits, duel.learner.loss(logits, labels))


def learn_trades(method: Method, duel: Duel, images: Tensor, labels: Tensor) -> Objective:
    """The classes of clean images, and to answer alike on attacked ones: TRADES (Zhang 2019), cross-entropy plus
    TRADES_WEIGHT times the divergence of the answers, which is what the attack raises.
    """
    count = duel.attacked
    with models.frozen(duel.model):
        with torch.no_grad():
            clean = duel.learner.forward(images[:count]).log_softmax(1)
        attacked = method.attack(duel, duel.uphill(lambda logits: _divergence(logits, clean)), images[:count])
    logits = duel.learner.answer(images)
    apart = _divergence(duel.learner.answer(attacked), logits[:count].log_softmax(1)).sum() / len(images)
    return Objective(logits, duel.learner.loss(logits, labels) + TRADES_WEIGHT * apart)


def _divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Kullback-Leibler's, of the answers with log-probabilities `others` from those of `logits`, (N, K) each: (N,)."""
    return F.kl_div(logits.log_softmax(1), others, reduction="none", log_target=True).sum(1)


def _beside(attacked: Tensor, clean: Tensor) -> Tensor:
    return torch.cat([attacked, clean]).contiguous(memory_format=torch.channels_last)


METHODS: dict[str, Method] = {
    "n-fgsm": Method(n_fgsm, learn_attacked),
    "rs-fgsm": Method(rs_fgsm, learn_attacked),
    "fgsm": Method(fgsm, learn_attacked),
    "pgd": Method(pgd, learn_attacked),
    "trades": Method(pgd, learn_trades),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What adversarial training is told; budgets in pixels of [0, 1]. See params.yaml for each one's reason.

    Raises ValueError for an attack that METHODS does not name.
    """

    eps: float
    goal: float  # the budget that training grows to
    attack: str
    fraction: float
    noise: float
    steps: int
    ramp: float
    overfitting_gap: float
    undo_overfitting: bool
    pgd_steps: int
    validation_images: int
    seed: int

    def __post_init__(self) -> None:
        if self.attack not in METHODS:
            raise ValueError(f"training attack {self.attack!r} is not one of {', '.join(METHODS)}")

    @classmethod
    def from_params(cls, params: Params) -> "Settings":
        robust = params.train_robust
        return cls(
            eps=params.eps,
            goal=params.trained_budget("robust"),
            attack=robust.attack,
            fraction=robust.adversarial_fraction,
            noise=robust.noise,
            steps=robust.steps,
            ramp=robust.ramp,
            overfitting_gap=robust.overfitting_gap,
            undo_overfitting=robust.undo_overfitting,
            pgd_steps=robust.pgd_steps,
            validation_images=robust.validation_images,
            seed=params.seed,
        )


class Adversary:
    """Attacks the batches of `model` and judges its epochs on a fair sample of the validation images `val_set`."""

    def __init__(self, model: nn.Module, val_set: ImageSet, settings: Settings):
        self.model, self.settings = model, settings
        self.held_out = val_set.take(images.sample(val_set.labels, settings.validation_images))
        self.chance = evaluation.chance(val_set.labels)

    def objective(self, learner: Learner, images: Tensor, labels: Tensor, progress: Progress) -> Objective:
        """What the method makes of the batch, whose first `fraction` is attacked (the order is random already); clean
        images alone while the budget is 0.
        """
        settings = self.settings
        duel = Duel(
            model=self.model,
            learner=learner,
            eps=self.budget(progress),
            noise=settings.noise,
            steps=settings.steps,
            total=round(settings.fraction * len(images) * distributed.count()),
            generator=progress.generator,
        )
        if duel.eps == 0 or duel.total == 0:
            return Plain().objective(learner, images, labels, progress)
        method = METHODS[settings.attack]
        return method.learn(method, duel, images, labels)

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
        one under PGD on the margin at the goal, of those that the images cannot tell apart the last, whose rate was the
        lowest; go back to it from an unsound one.

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
        best = max((earlier["val_margin"] for earlier in sound), default=0.0)
        as_good = found["val_margin"] >= best - standard_error(best, len(self.held_out))
        keep = not undone and (as_good or not self.settings.undo_overfitting)
        return Verdict(found, keep=keep, undo=undone, remark=_remark(found, bool(undone and sound)))

    def _undone(self, row: Row) -> bool:
        return self.settings.undo_overfitting and bool(row["overfitted"] or row["collapsed"])

    def _robustness(self, budget: float) -> dict[str, float]:
        """FGSM and PGD accuracy at eps with their gap at the budget that training has reached; at the goal what PGD on
        the loss, which flatters a model, and then on the margin leave.

        The gap says nothing above that budget: there even a plainly trained model withstands one step and not ten.
        """
        settings, held_out = self.settings, self.held_out
        budgets = sorted({budget, settings.goal, settings.eps})
        right = robustness.fgsm_predictions(self.model, held_out, budgets) == held_out.labels
        alive = robustness.pgd_survivors(self.model, held_out, budgets, steps=settings.pgd_steps, seed=settings.seed)
        left = held_out.take(alive[budgets.index(settings.goal)].nonzero().squeeze(1))
        predicted = robustness.pgd_predictions(
            self.model, left, settings.goal, steps=settings.pgd_steps, seed=settings.seed, climbed=attacks.margin_of
        )
        fgsm, pgd = (dict(zip(budgets, rows.double().mean(1).tolist(), strict=True)) for rows in (right, alive))
        return {
            "eps": budget,
            "val_fgsm": fgsm[settings.eps],
            "val_pgd": pgd[settings.eps],
            "val_margin": int((predicted == left.labels).sum()) / len(held_out),
            "gap": fgsm[budget] - pgd[budget],
        }


def ramp(done: float, share: float) -> float:
    """The budget's share of its goal: grows in a straight line over the first `share` of training, then stays at 1."""
    return 1.0 if share == 0 else min(1.0, done / share)


def standard_error(share: float, count: int) -> float:
    """Of a share found on `count` images."""
    return float((share * (1 - share) / count) ** 0.5)


def _remark(found: Row, undone: bool) -> str:
    said = f"eps {found['eps']:.3f}  FGSM {found['val_fgsm']:.3f}  PGD {found['val_pgd']:.3f}"
    if found["overfitted"]:
        said += "  catastrophic overfitting"
    elif found["collapsed"]:
        said += "  little better than chance"
    return said + (": going back" if undone else "")
