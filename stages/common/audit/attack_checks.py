"""Checks of the attacks: that they keep within their bounds, leave the model alone, and step the way they say."""

import torch
import torch.nn.functional as F

from stages.common import attacks, device, images, robustness
from stages.common.audit import planted, probes
from stages.common.audit.finding import Finding, asked_if, needs_budgets, needs_eps, needs_learnt
from stages.common.audit.margins import multi_targeted
from stages.common.audit.square import square_attack
from stages.common.audit.subject import Subject
from stages.common.models import frozen

SMALL_EPS = 0.5 / 255  # so small that the loss is near enough to linear: the direction alone decides
PLANTED, PLANTED_FEWEST = 60, 20  # images that an example is planted for, and those without which a share says nothing
UNTOUCHED = 50  # images that every attack is tried on, to see whether it leaves the model as it was


def eps_zero_is_clean(subject: Subject) -> Finding:
    """FGSM and targeted FGSM change no prediction at eps 0; the reproduced study lost half its accuracy there."""
    changed = 0
    for x, y in subject.batches():
        goal = torch.full_like(y, subject.target)
        unmoved = [attacks.fgsm(subject.model, x, y, 0.0), attacks.fgsm(subject.model, x, goal, 0.0, targeted=True)]
        with frozen(subject.model), torch.no_grad():
            clean, *found = (subject.model(images).argmax(1) for images in (x, *unmoved))
        changed += int(((found[0] != clean) | (found[1] != clean)).sum())
    return Finding(changed == 0, f"{changed} predictions change at eps 0", "the attack alters images by more than eps")


@needs_budgets
def budget_and_range_kept(subject: Subject) -> Finding:
    """|attacked - image| <= eps and pixels in [0, 1], finite, for FGSM, targeted FGSM and a step of PGD at every budget
    (every step of PGD ends in the same projection).
    """
    excess, outside = 0.0, 0.0
    for x, y in subject.batches():
        goal = torch.full_like(y, subject.target)
        for eps in subject.budgets:
            attacked = torch.cat(
                [
                    attacks.fgsm(subject.model, x, y, eps),
                    attacks.fgsm(subject.model, x, goal, eps, targeted=True),
                    attacks.pgd(subject.model, x, y, eps, steps=1, generator=subject.generator()),
                ]
            )
            excess = max(excess, float((attacked - x.repeat(3, 1, 1, 1)).abs().max()) - eps)
            outside = max(outside, float((attacked - 0.5).abs().max()) - 0.5)
            if not torch.isfinite(attacked).all():
                outside = float("inf")
    kept = excess <= 1e-6 and outside <= 0
    seen = (
        f"largest change exceeds eps by {max(0.0, excess):.1g}, largest pixel leaves [0, 1] by {max(0.0, outside):.1g}"
    )
    return Finding(kept, seen, "the attack cheats: its accuracy is not comparable with others at this eps")


def model_untouched(subject: Subject) -> Finding:
    """Every attack of the audit leaves weights, BatchNorm's buffers, gradients and the train and requires_grad flags as
    they were.
    """
    x, y = (batch[:UNTOUCHED] for batch in next(subject.batches()))
    model, eps, generator = subject.model, subject.eps, subject.generator()
    before = probes.state(model)
    attacks.fgsm(model, x, y, eps)
    attacks.fgsm(model, x, torch.full_like(y, subject.target), eps, targeted=True)
    attacks.pgd(model, x, y, eps, steps=2, generator=generator)
    multi_targeted(model, x, y, eps, classes=1, steps=2, generator=generator)
    square_attack(model, x, y, eps, queries=2, generator=generator)
    changed = probes.changes(before, probes.state(model))
    seen = f"{len(changed)} tensors and flags changed by attacking" + (f", {changed[0]} first" if changed else "")
    return Finding(not changed, seen, "later figures are of another model")


@needs_learnt
@needs_eps
@asked_if(lambda s: planted.has_features(s.model), "the model has no features that a planted example could be told by")
def planted_examples_found(subject: Subject) -> Finding:
    """PGD and the attack on the margins each find at least 95 % of adversarial examples that are known to exist within
    eps, behind the model's own features (Zimmermann 2022); as many random corners as they have steps find at most 5 %.
    """
    chosen = subject.image_set.take(images.sample(subject.image_set.labels, PLANTED))
    x = images.to_float(chosen.images, device.of(subject.model))
    questions = planted.plant(subject.model, x, subject.eps, generator=subject.generator())
    if len(questions) < PLANTED_FEWEST:
        return Finding(None, f"an example can be planted for {len(questions)} of {len(chosen)} images")
    found = {
        name: planted.found(questions, attack, generator=subject.generator())
        for name, attack in planted.audits_own(subject.pgd_steps).items()
    }
    seen = ", ".join(f"{name} {share:.2f}" for name, share in found.items())
    seen = f"found of {len(questions)} planted: {seen}"
    if found["chance"] > planted.LUCK:
        return Finding(None, f"{seen}: too easy to tell an attack from luck")
    sound = min(found["PGD"], found["margins"]) >= planted.SOUND
    return Finding(
        sound, seen, "an attack misses what is known to be there: what it leaves is no measure of robustness"
    )


@needs_learnt
def fgsm_raises_loss(subject: Subject) -> Finding:
    """At 0.5/255 the loss of the true class rises on more than 95 % of images."""
    share = _share_moved(subject, targeted=False)
    return Finding(share > 0.95, f"true-class loss rises on {share:.1%} at 0.5/255", "wrong sign, or a masked gradient")


@needs_learnt
def targeted_lowers_loss(subject: Subject) -> Finding:
    """At 0.5/255 the loss of the target falls on more than 95 % of images; the study's step had the wrong sign."""
    share = _share_moved(subject, targeted=True)
    return Finding(
        share > 0.95, f"target's loss falls on {share:.1%} at 0.5/255", "the step walks away from its target"
    )


@needs_learnt
@needs_budgets
@asked_if(lambda s: bool((s.image_set.labels != s.target).any()), "every image is of the target class")
def target_is_hit(subject: Subject) -> Finding:
    """At some budget targeted FGSM sends more images of other classes to the target than are taken for it anyway."""
    budgets, target = [0.0, *subject.budgets], subject.target
    predicted = robustness.fgsm_predictions(subject.model, subject.image_set, budgets, target=target)
    clean, *hits = robustness.target_rate(predicted, subject.image_set.labels, target).tolist()
    best = max(hits)
    seen = f"taken for the target: {clean:.3f} clean, {best:.3f} at the best budget"
    return Finding(best > clean, seen, "the targeted step misses: look at its sign")


@torch.no_grad()
def _share_moved(subject: Subject, *, targeted: bool) -> float:
    """The share of images whose loss a tiny step moves the right way; images with a loss of exactly 0 cannot move."""
    moved = 0
    for x, y in subject.batches():
        labels = torch.full_like(y, subject.target) if targeted else y
        attacked = attacks.fgsm(subject.model, x, labels, SMALL_EPS, targeted=targeted)
        before, after = (
            F.cross_entropy(subject.model(batch).double(), labels, reduction="none") for batch in (x, attacked)
        )
        moved += int(((after < before) if targeted else (after > before)).sum())
    return moved / len(subject.image_set)
