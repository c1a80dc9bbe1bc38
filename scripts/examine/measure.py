"""What is measured of one model: accuracies under attack, the audit, detectors and their evasion."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from stages.common import accuracy, detection, images, robustness
from stages.common.audit.subject import Subject
from stages.common.detection import detectors, evasion
from stages.common.detection.scores import Options, Score
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.params import Params

SHARES = (0.25, 0.5, 1, 2, 4)  # of eps: the budgets of the sweep
CONFIDENCE = 0.95  # as the page says


def subject(knobs: Params, model: Classifier, image_set: ImageSet, target: int) -> Subject:
    """The model under audit as params.yaml audits one, at budgets round knobs.eps, without another to transfer from."""
    asked = Subject.from_params(knobs, model=model, other=None, defended=True, image_set=image_set)
    return replace(asked, target=target, epsilons=tuple(min(1.0, share * knobs.eps) for share in SHARES))


def accuracies(subject: Subject) -> dict[str, Any]:
    """Clean and attacked accuracy at eps, with the interval of each, and at every budget of the sweep."""
    at = subject.budgets.index(subject.eps)
    right = {
        "clean": subject.correct,
        "fgsm": subject.fgsm_survivors[at],
        "fgsm_worst": subject.fgsm_worst_survivors[at],
        "pgd": subject.pgd_once[subject.eps],
        "strongest": subject.strongest,
    }
    found = accuracy.figures(right, CONFIDENCE)
    curves = {"fgsm": subject.fgsm, "fgsm_worst": subject.fgsm_worst, "pgd": subject.pgd}
    sweep = {name: [found["clean"], *(curve[eps] for eps in subject.budgets)] for name, curve in curves.items()}
    return {**found, "sweep": {"eps": [0.0, *subject.budgets], **sweep}}


def targeted(subject: Subject) -> dict[str, float]:
    """FGSM towards the target at eps: accuracy, and the share of other classes' images that are taken for it."""
    labels, target = subject.image_set.labels, subject.target
    predicted = robustness.fgsm_predictions(subject.model, subject.image_set, [0.0, subject.eps], target=target)
    found = {"accuracy": float((predicted[1] == labels).double().mean())}
    if (labels != target).any():
        clean, attacked = robustness.target_rate(predicted, labels, target).tolist()
        found |= {"target_rate": attacked, "clean_target_rate": clean}
    return found


class Detection(NamedTuple):
    """Each detector's figures, clean and attacked; why others are not applicable; confidences (ID, OOD) by detector."""

    figures: dict[str, Any]
    not_applicable: dict[str, str]
    confidences: dict[str, tuple[np.ndarray, np.ndarray]]


def detect(knobs: Params, model: Classifier, known: ImageSet, inside: ImageSet, outside: ImageSet) -> Detection:
    """Tell the images `inside` from those `outside` by every detector that applies, fitted on `known`; then evade
    those that params.yaml names at eps, on both sides.
    """
    options = Options.from_params(knobs)
    seen = detectors.Sight.from_params(knobs)
    sight = replace(seen, mirror=False)  # whether a mirror image means the same is not known
    missing = detectors.not_applicable(model, options, known)
    names = [name for name in detectors.DETECTORS if name not in missing]
    fitted = detectors.fit_on(model, known, sight, options, names=names)
    views = detectors.views_of(names)
    sides = [detectors.score(fitted, detectors.see(model, part, sight, names=views)) for part in (inside, outside)]
    pairs = {name: (sides[0][name].numpy(), sides[1][name].numpy()) for name in names}
    sizes = {"id": len(inside), "ood": len(outside), "fitted": len(known)}
    figures: dict[str, Any] = {name: detection.evaluate(*pair) for name, pair in pairs.items()}
    figures |= {"sizes": sizes, "base_rate": {key: sizes[key] / (sizes["id"] + sizes["ood"]) for key in ("id", "ood")}}
    named: list[str] = list(knobs.ood_attack.detectors)
    attacked = {name: apply for name, apply in fitted.items() if name in named}
    figures["attacked"] = evaded(knobs, model, attacked, sight, inside, outside)
    return Detection(figures, missing, pairs)


def evaded(
    knobs: Params,
    model: Classifier,
    fitted: Mapping[str, Score],
    sight: detectors.Sight,
    inside: ImageSet,
    outside: ImageSet,
) -> dict[str, dict[str, float]]:
    """AUROC of each fitted detector clean, and at eps under noise, FGSM and PGD on both sides' confidences."""
    count = knobs.ood_attack.images
    few_inside, few_outside = (part.take(images.sample(part.labels, count)) for part in (inside, outside))
    budgets, steps = [0.0, knobs.eps], knobs.ood_attack.pgd_steps
    found = evasion.both_sides(
        model, fitted, few_inside, few_outside, budgets, sight=sight, steps=steps, seed=knobs.seed
    )
    return {name: evasion.aurocs(pairs, 1) for name, pairs in found.items()}


def halves(image_set: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Two halves of a set, each a fair sample of it: one to fit on, one to judge."""
    first = images.sample(image_set.labels, len(image_set) // 2)
    rest = torch.ones(len(image_set), dtype=torch.bool).index_fill_(0, first, False)
    return image_set.take(first), image_set.take(rest.nonzero().squeeze(1))
