"""APGD: projected gradient descent that finds each image's step size by itself, on any loss or towards wrong classes.

Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
algorithm 1: the first steps are twice the budget, and an image's are halved, from the best point so far, where they no
longer lead up. Lengths are rounded to whole steps as in the authors' code.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.common import attacks
from stages.common.audit.margins import lead_of, towards_each
from stages.common.models import frozen

MOMENTUM = 0.75  # share of the new direction in a step; the rest is the step before (alpha)
RISES = 0.75  # share of the steps since the last check that must have led up (rho)
FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06  # of all steps: up to the first check, each next less by, and at least
FEWEST_CLASSES = 4  # logits that the targeted ratio looks at
TINY = 1e-12  # against a division by 0


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    loss: attacks.Climbed = attacks.loss_of,
    steps: int,
    generator: torch.Generator,
    norm: type[attacks.Ball] = attacks.Linf,
) -> Tensor:
    """Untargeted APGD up the `loss` from a random start: images of the same shape within eps by `norm` and in [0, 1].

    An image is given back where it is first misclassified, clean if it is from the start, and where its loss was
    highest if it never is. `generator` lives on the images' device. Raises ValueError as `attacks.fgsm` does, and for
    steps < 1.
    """
    attacks.check(images, labels, eps, norm)
    attacks.at_least_1(steps=steps)
    found = images.clone()
    with frozen(model):
        alive = attacks.withstood(model, images, labels).nonzero().squeeze(1).to(images.device)
        if len(alive):
            ball, y = norm(images[alive], eps), labels[alive]
            found[alive] = climb(model, y, loss(y), ball, steps, ball.start(generator))
    return found


def apgd_targeted(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    classes: int,
    steps: int,
    generator: torch.Generator,
    norm: type[attacks.Ball] = attacks.Linf,
) -> Tensor:
    """APGD on the targeted difference of logits ratio, towards the `classes` likeliest wrong classes of the clean image
    (or all there are), one after another, each from a random start: images of the same shape within eps by `norm` and
    in [0, 1].

    An image is given back where it is first misclassified, and clean if it is from the start or never is. `generator`
    lives on the images' device. Raises ValueError as `apgd` does, for classes < 1, and as `ratio_of` does for a model
    of too few classes.
    """
    attacks.check(images, labels, eps, norm)
    attacks.at_least_1(steps=steps, classes=classes)

    def attack(x: Tensor, y: Tensor, goals: Tensor) -> Tensor:
        ball = norm(x, eps)
        return climb(model, y, ratio_of(y, goals), ball, steps, ball.start(generator))

    with frozen(model):
        return towards_each(model, images, labels, classes, attack)


def ratio_of(labels: Tensor, goals: Tensor) -> attacks.Value:
    """The targeted difference of logits ratio, (z[goal] - z[label]) / (z1 - (z3 + z4) / 2) with the logits z1 >= z2 ...
    in order (Croce and Hein 2020, equation 8): a lead that no factor nor shift of the logits changes.

    Raises ValueError for fewer logits than `FEWEST_CLASSES`.
    """
    lead = lead_of(labels, goals)

    def ratio(logits: Tensor, chosen: Tensor) -> Tensor:
        if logits.shape[1] < FEWEST_CLASSES:
            raise ValueError(
                f"the targeted difference of logits ratio needs {FEWEST_CLASSES} classes, the model has "
                f"{logits.shape[1]}: use `audit.margins.multi_targeted`, which takes any number"
            )
        first, _, third, fourth = logits.topk(FEWEST_CLASSES, dim=1).values.unbind(1)
        return lead(logits, chosen) / (first - (third + fourth) / 2 + TINY)

    return ratio


def climb(
    model: nn.Module, labels: Tensor, value: attacks.Value, ball: attacks.Ball, steps: int, start: Tensor
) -> Tensor:
    """APGD up `value` of the logits, from `start` in `ball`: each image where it is first misclassified, and where its
    value was highest if it never is.

    All is in float32, whatever `attacks.searching` says: step sizes hang on which of two values is larger, and near a
    boundary bfloat16 rounds that away. `model` is one that `frozen` holds.
    """
    found, standing, lengths = start.clone(), _Standing.at(start, ball), checks(steps)
    for step in range(steps + 1):
        if step > 0:
            standing = standing.moved(ball, 1.0 if step == 1 else MOMENTUM)
        logits, values, slope = look(model, value, standing.x, standing.number)
        left = logits.argmax(1) == labels[standing.number]
        if not left.all():
            found[standing.number[~left]] = standing.x[~left]
            keep = left.nonzero().squeeze(1)
            standing, values, slope, ball = standing.take(keep), values[keep], slope[keep], ball.take(keep)
        if len(values) == 0:
            break
        standing = standing.seen(values, slope)
        if step in lengths:
            standing = standing.checked(lengths[step])
    found[standing.number] = standing.best
    return found


def checks(steps: int) -> dict[int, int]:
    """After which of the steps sizes are checked, and how many steps that is after the time before: of 100 steps
    {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}.
    """
    length, shorter, shortest = (max(int(share * steps), 1) for share in (FIRST, SHORTER, SHORTEST))
    found, step = {}, length
    while step <= steps:
        found[step] = length
        length = max(length - shorter, shortest)
        step += length
    return found


def look(model: nn.Module, value: attacks.Value, images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, K) of the images with these numbers, their values (n,) and the gradients of these, from one pass."""
    passed: list[Tensor] = []

    def climbed(x: Tensor) -> Tensor:
        logits = model(x)
        values = value(logits, numbers)
        passed.extend((logits.detach(), values.detach()))
        return values

    slope = attacks.gradient(climbed, images.contiguous(memory_format=torch.channels_last))
    logits, values = passed
    return logits, values, slope


class _Standing(NamedTuple):
    """The n images that stand: where each is, the best of where it was, and what the choice of its step looks at."""

    number: Tensor  # int64 (n,), the place in the batch
    x: Tensor
    before: Tensor  # the point that the last step left
    slope: Tensor  # the gradient at x
    value: Tensor  # (n,), at x
    best: Tensor  # the point of the highest value so far
    best_slope: Tensor
    best_value: Tensor
    size: Tensor  # (n, 1, 1, 1), of the next step
    rises: Tensor  # (n,), steps since the last check that led up
    halved: Tensor  # bool (n,), whether the last check halved the size
    best_then: Tensor  # (n,), the best value at the last check

    @classmethod
    def at(cls, start: Tensor, ball: attacks.Ball) -> "_Standing":
        """At `start`, before anything is known of it."""
        nothing = torch.full((len(start),), -torch.inf, dtype=start.dtype, device=start.device)
        return cls(
            number=torch.arange(len(start), device=start.device),
            x=start,
            before=start,
            slope=torch.zeros_like(start),
            value=-nothing,  # the first point is no rise
            best=start,
            best_slope=torch.zeros_like(start),
            best_value=nothing,
            size=torch.ones_like(start[:, :1, :1, :1]) * (2 * ball.reach),
            rises=torch.zeros_like(nothing),
            halved=torch.zeros_like(nothing, dtype=torch.bool),
            best_then=nothing,
        )

    def take(self, chosen: Tensor) -> "_Standing":
        """Those at the indices `chosen`."""
        return _Standing(*(each[chosen] for each in self))

    def moved(self, ball: attacks.Ball, share: float) -> "_Standing":
        """A step along the slope, `share` of it, and of the last step the rest."""
        ahead = ball.step(self.x, self.slope, self.size)
        mixed = self.x + share * (ahead - self.x) + (1 - share) * (self.x - self.before)
        return self._replace(x=ball.project(mixed), before=self.x)

    def seen(self, value: Tensor, slope: Tensor) -> "_Standing":
        """What was found at x, and whether it is the best."""
        better = value > self.best_value
        here = better.view(-1, 1, 1, 1)
        return self._replace(
            slope=slope,
            value=value,
            best=torch.where(here, self.x, self.best),
            best_slope=torch.where(here, slope, self.best_slope),
            best_value=torch.where(better, value, self.best_value),
            rises=self.rises + (value > self.value),
        )

    def checked(self, length: int) -> "_Standing":
        """Half the step size, and back to the best point, where too few of the last `length` steps led up (condition 1
        of the paper), or where they found no better point and the check before did not halve it (condition 2).
        """
        halve = (self.rises <= RISES * length) | (~self.halved & (self.best_value == self.best_then))
        back = halve.view(-1, 1, 1, 1)
        return self._replace(
            x=torch.where(back, self.best, self.x),
            slope=torch.where(back, self.best_slope, self.slope),
            size=torch.where(back, self.size / 2, self.size),
            rises=torch.zeros_like(self.rises),
            halved=halve,
            best_then=self.best_value,
        )
