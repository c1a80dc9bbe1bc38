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
    rivals: Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Confidences (budgets, N) of one side by each fitted detector under each of ATTACKS. `budgets` ascend from 0.

    An attacker who may change a pixel by eps may also change it by less: at each budget every image keeps the most
    misleading confidence found so far, the clean one included, and PGD's `steps` go on from where they ended at the
    budget before, the first from a random start.

    `rivals` are the clean confidences of the other side's images by each detector, which attacks only push the other
    way. An image that all of them are on the wrong side of cannot be ranked worse: PGD leaves it there.
    """
    keep = np.minimum if way == DOWN else np.maximum
    unaimed = _noisy(model, fitted, image_set, budgets, sight=sight, seed=seed)
    found = {}
    for name, apply in fitted.items():
        clean = unaimed[name][0]
        worst = way * np.inf if rivals is None else float(keep.reduce(rivals[name]))
        aimed = _aimed(model, name, apply, image_set, way, budgets, clean, worst, sight=sight, steps=steps, seed=seed)
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
    worst: float,
    *,
    sight: Sight,
    steps: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Confidences (budgets, N) by one detector under FGSM and PGD on its own confidence; `clean` (N,) at budget 0. PGD
    leaves an image whose confidence has come past `worst`.
    """

    def uphill(x: Tensor, search: bool = True) -> Tensor:
        return detectors.confidence_gradient(model, name, apply, x, sight, search=search).mul_(way)

    def confidence(moved: Tensor) -> np.ndarray:
        return detectors.confidence(model, name, apply, moved, sight).numpy()

    def aimed(batch: Batch) -> dict[str, np.ndarray]:
        x = batch.x
        direction = uphill(x, search=False).sign_()
        swept = [confidence(attacks.step(x, direction, eps, False)) for eps in budgets[1:]]
        return {"fgsm": np.stack([clean[batch.part], *swept]), "pgd": climbed(batch)}

    def climbed(batch: Batch) -> np.ndarray:
        rows, reached = [clean[batch.part]], None
        for eps in budgets[1:]:
            ball = attacks.Linf(batch.x, eps)
            reached = ball.start(batch.generator(seed)) if reached is None else reached
            row = rows[-1].copy()
            if len(open_ := np.flatnonzero(way * row <= way * worst)):
                chosen = torch.from_numpy(open_).to(reached.device)
                start = reached[chosen].contiguous(memory_format=torch.channels_last)
                part = ball.take(chosen)
                reached[chosen] = attacks.ascend(uphill, part, attacks.constant(part, steps), start=start)
                row[open_] = confidence(reached[chosen])
            rows.append(row)
        return np.stack(rows)

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
    """`attack` on the ID images `inside`, pushed down, and on the OOD ones `outside`, pushed up: [detector][attack].

    What depends on ranks between the sides, such as AUROC, is exact: images that rank last already are left alone.
    """
    needed = detectors.views_of(tuple(fitted))
    known, unknown = (
        {name: values.numpy() for name, values in detectors.score(fitted, seen).items()}
        for seen in (detectors.see(model, part, sight, names=needed) for part in (inside, outside))
    )
    down = attack(model, fitted, inside, DOWN, budgets, sight=sight, steps=steps, seed=seed, rivals=unknown)
    up = attack(model, fitted, outside, UP, budgets, sight=sight, steps=steps, seed=seed, rivals=known)
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
