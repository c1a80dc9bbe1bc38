"""AutoAttack's standard version (Croce and Hein 2020): its four parts in turn, each on what the ones before left.

Images and results are on the CPU; batches go to where the model is, and come back. What is known after each part is
given out at once, so that a run that was cut off can go on from there.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.common import attacks, device, evaluation, images
from stages.common.audit.square import square_attack
from stages.common.autoattack.apgd import FEWEST_CLASSES, apgd, apgd_targeted
from stages.common.autoattack.fab import fab
from stages.common.images import Batch, ImageSet
from stages.common.seeds import seed_of

STEPS, TARGETS, QUERIES = 100, 9, 5000  # of each gradient attack, of wrong classes, of Square: the standard version's


class Effort(NamedTuple):
    """What the parts may spend on an image, and the norm that its budget is measured by."""

    steps: int
    queries: int
    norm: type[attacks.Ball] = attacks.Linf


Attack = Callable[[nn.Module, Tensor, Tensor, float, Effort, torch.Generator], Tensor]  # images, labels, eps -> images


class Part(NamedTuple):
    """One of the attacks, the fewest classes of a model that it can attack, and the norms that it knows."""

    attack: Attack
    classes: int = 2
    norms: tuple[type[attacks.Ball], ...] = (attacks.Linf,)


def _apgd_ce(model: nn.Module, x: Tensor, y: Tensor, eps: float, effort: Effort, generator: torch.Generator) -> Tensor:
    return apgd(model, x, y, eps, loss=attacks.loss_of, steps=effort.steps, generator=generator, norm=effort.norm)


def _apgd_t(model: nn.Module, x: Tensor, y: Tensor, eps: float, effort: Effort, generator: torch.Generator) -> Tensor:
    return apgd_targeted(model, x, y, eps, classes=TARGETS, steps=effort.steps, generator=generator, norm=effort.norm)


def _fab_t(model: nn.Module, x: Tensor, y: Tensor, eps: float, effort: Effort, _: torch.Generator) -> Tensor:
    return fab(model, x, y, eps, classes=TARGETS, steps=effort.steps)


def _square(model: nn.Module, x: Tensor, y: Tensor, eps: float, effort: Effort, generator: torch.Generator) -> Tensor:
    return square_attack(model, x, y, eps, queries=effort.queries, generator=generator)


PARTS: dict[str, Part] = {
    "apgd_ce": Part(_apgd_ce, norms=(attacks.Linf, attacks.L2)),
    "apgd_t": Part(_apgd_t, classes=FEWEST_CLASSES, norms=(attacks.Linf, attacks.L2)),
    "fab_t": Part(_fab_t),
    "square": Part(_square),
}


def parts(classes: int, norm: type[attacks.Ball] = attacks.Linf) -> list[str]:
    """The parts that can attack a model of so many classes by this norm, in order: below `FEWEST_CLASSES` there is no
    apgd_t, and in L2 there are the two of APGD alone.
    """
    return [name for name, part in PARTS.items() if classes >= part.classes and norm in part.norms]


def run(
    model: nn.Module,
    image_set: ImageSet,
    eps: float,
    *,
    steps: int = STEPS,
    queries: int = QUERIES,
    seed: int,
    norm: type[attacks.Ball] = attacks.Linf,
    done: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield, after each of `parts`, its name and which images it and all before it left correct: bool (N,).

    `done` holds what a run with the same arguments yielded before it was cut off: those parts are not run again, nor
    yielded. Every batch of every part has a randomness of its own, from `seed`, so that the rest is what it would have
    been. Raises ValueError, at the first step, when `done` is not of the first parts and of these images.
    """
    names, done = parts(len(image_set.classes), norm), done or {}
    if set(done) != set(names[: len(done)]):
        raise ValueError(f"done must hold the first of {', '.join(names)}; it holds {', '.join(done)}")
    for name, left in done.items():
        if left.dtype != torch.bool or left.shape != (len(image_set),):
            raise ValueError(f"done[{name!r}] must be bool ({len(image_set)},), got {left.dtype} {tuple(left.shape)}")
    alive = done[names[len(done) - 1]] if done else _right(model, image_set)
    for name in names[len(done) :]:
        chosen = alive.nonzero().squeeze(1)
        alive = alive.clone()  # what was yielded is the caller's
        alive[chosen] = _survivors(model, image_set.take(chosen), eps, name, Effort(steps, queries, norm), seed)
        yield name, alive


def _right(model: nn.Module, image_set: ImageSet) -> Tensor:
    return evaluation.predictions(model, image_set.images) == image_set.labels


def _survivors(model: nn.Module, image_set: ImageSet, eps: float, name: str, effort: Effort, seed: int) -> Tensor:
    """Which images the part `name` leaves correct: bool (N,)."""
    where, described = device.of(model), f"AutoAttack: {name} at {eps:.3g}"

    def withstood(batch: Batch) -> Tensor:
        generator = torch.Generator(where).manual_seed(seed_of(seed, name, batch.number))
        attacked = PARTS[name].attack(model, batch.x, batch.y, eps, effort, generator)
        return attacks.withstood(model, attacked, batch.y)

    found = images.each_batch(withstood, image_set.images, image_set.labels, device=where, description=described)
    return images.joined(found, torch.bool)
