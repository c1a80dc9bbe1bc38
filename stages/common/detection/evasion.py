"""Evading a detector: ID images pushed down, OOD images pushed up, on the detector's own confidence."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from stages.common import attacks, device, images
from stages.common.detection import detectors, measures
from stages.common.detection.detectors import Sight
from stages.common.detection.scores import Score
from stages.common.images import Batch, ImageSet
from stages.common.models import Classifier, frozen

DOWN, UP = -1, 1  # the way in which ID and OOD confidences are pushed
ATTACKS = ("noise", "fgsm", "pgd")

# Confidences (budgets, N) of the ID and of the OOD images, [model][detector][attack]
Found = Mapping[str, Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]]


def attack(
    model: Classifier,
    fitted: Mapping[str, Score],
    image_set: ImageSet,
    way: int,
    budgets: Sequence[float],
    *,
    sight: Sight,
    steps: int,
    seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Confidences (budgets, N) of one side by each fitted detector under each of ATTACKS. `budgets` ascend from 0.

    An attacker who may change a pixel by eps may also change it by less: at each budget every image keeps the most
    misleading confidence found so far, the clean one included, and PGD's `steps` go on from where they ended at the
    budget before, the first from a random start.
    """
    keep = np.minimum if way == DOWN else np.maximum
    unaimed = _noisy(model, fitted, image_set, budgets, sight=sight, seed=seed)
    found = {}
    for name, apply in fitted.items():
        clean = unaimed[name][0]
        aimed = _aimed(model, name, apply, image_set, way, budgets, clean, sight=sight, steps=steps, seed=seed)
        by_attack = {"noise": unaimed[name], **aimed}
        found[name] = {kind: keep.accumulate(values, axis=0) for kind, values in by_attack.items()}
    return found


@torch.no_grad()
def _noisy(
    model: Classifier,
    fitted: Mapping[str, Score],
    image_set: ImageSet,
    budgets: Sequence[float],
    *,
    sight: Sight,
    seed: int,
) -> dict[str, np.ndarray]:
    """Confidences (budgets, N) under random signs, which have no aim: one look at them serves every detector."""
    needed = detectors.views_of(tuple(fitted))

    def noisy(batch: Batch) -> dict[str, np.ndarray]:
        generator, rows = batch.generator(seed), []
        for eps in budgets:
            moved = attacks.sign_noise(batch.x, eps, generator=generator).contiguous(memory_format=torch.channels_last)
            rows.append(detectors.score(fitted, detectors.views(model, moved, sight, needed)))
        return {name: np.stack([row[name].numpy() for row in rows]) for name in fitted}

    with frozen(model):
        found = images.each_batch(noisy, image_set.images, device=device.of(model), description="noise")
    return _side_by_side(found)


def _side_by_side(found: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Each name's (budgets, n) of every batch in a row."""
    return {name: np.concatenate([each[name] for each in found], 1) for name in found[0]}


def _aimed(
    model: Classifier,
    name: str,
    apply: Score,
    image_set: ImageSet,
    way: int,
    budgets: Sequence[float],
    clean: np.ndarray,
    *,
    sight: Sight,
    steps: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Confidences (budgets, N) by one detector under FGSM and PGD on its own confidence; `clean` (N,) at budget 0."""

    def uphill(x: Tensor, search: bool = True) -> Tensor:
        return detectors.confidence_gradient(model, name, apply, x, sight, search=search).mul_(way)

    def aimed(batch: Batch) -> dict[str, np.ndarray]:
        x, generator = batch.x, batch.generator(seed)
        rows = {kind: [clean[batch.part]] for kind in ("fgsm", "pgd")}
        direction, reached = uphill(x, search=False).sign_(), None
        for eps in budgets[1:]:
            ball = attacks.Linf(x, eps)
            start = ball.start(generator) if reached is None else reached
            reached = attacks.ascend(uphill, ball, attacks.constant(ball, steps), start=start)
            for kind, moved in (("fgsm", attacks.step(x, direction, eps, False)), ("pgd", reached)):
                rows[kind].append(detectors.confidence(model, name, apply, moved, sight).numpy())
        return {kind: np.stack(confidences) for kind, confidences in rows.items()}

    with frozen(model):
        described = f"{name} attacked"
        found = images.each_batch(aimed, image_set.images, device=device.of(model), description=described)
    return _side_by_side(found)


def both_sides(
    model: Classifier,
    fitted: Mapping[str, Score],
    inside: ImageSet,
    outside: ImageSet,
    budgets: Sequence[float],
    *,
    sight: Sight,
    steps: int,
    seed: int,
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """`attack` on the ID images `inside`, pushed down, and on the OOD ones `outside`, pushed up: [detector][attack]."""
    down, up = (
        attack(model, fitted, part, way, budgets, sight=sight, steps=steps, seed=seed)
        for part, way in ((inside, DOWN), (outside, UP))
    )
    return {name: {kind: (down[name][kind], up[name][kind]) for kind in ATTACKS} for name in fitted}


def aurocs(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], at: int) -> dict[str, float]:
    """AUROC clean, at the first of the budgets, and under each attack on both sides at the budget numbered `at`."""
    clean = {"clean": measures.auroc(*(side[0] for side in pairs["pgd"]))}
    return clean | {kind: measures.auroc(*(side[at] for side in pair)) for kind, pair in pairs.items()}


def rows(found: Found, budgets: Sequence[float], level: float) -> Iterator[dict[str, object]]:
    """One row per model, detector, attack, attacked side and budget: AUROC with its interval at `level`."""
    for model, by_detector in found.items():
        for name, by_attack in by_detector.items():
            for kind, (inside, outside) in by_attack.items():
                for row, eps in enumerate(budgets):
                    for side, pair in {
                        "ID down": (inside[row], outside[0]),
                        "OOD up": (inside[0], outside[row]),
                        "both": (inside[row], outside[row]),
                    }.items():
                        low, high = measures.auroc_interval(*pair, confidence=level)
                        area = {"auroc": measures.auroc(*pair), "auroc_low": low, "auroc_high": high}
                        yield {"model": model, "score": name, "attack": kind, "side": side, "eps": eps, **area}
