"""What the audit asks of a model and of the attacks on it: one small function a check, each naming what it saw.

Sources: Carlini 2019 (On Evaluating Adversarial Robustness), Athalye 2018 (Obfuscated Gradients), Croce 2020
(AutoAttack and its warnings). To add a check, write a function `Subject -> Finding` and name it in CHECKS.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common import attacks, evaluation, robustness
from stages.common.audit import probes
from stages.common.audit.finding import (
    Check,
    Finding,
    asked_if,
    breakable,
    breakable_at_eps,
    needs_budgets,
    needs_correct,
    needs_eps,
)
from stages.common.audit.margins import multi_targeted
from stages.common.audit.square import square_attack
from stages.common.audit.subject import Subject
from stages.common.models import frozen

SMALL_EPS = 0.5 / 255  # so small that the loss is near enough to linear: the direction alone decides
TOLERANCE = 0.01  # of accuracies compared on a few hundred images; below it they count as equal
UNTOUCHED = 50  # images that every attack is tried on, to see whether it leaves the model as it was


def eps_zero_is_clean(subject: Subject) -> Finding:
    """FGSM and targeted FGSM change no prediction at eps 0; the reproduced study lost half its accuracy there."""
    untargeted = robustness.fgsm_predictions(subject.model, subject.image_set, [0.0])[0]
    targeted = robustness.fgsm_predictions(subject.model, subject.image_set, [0.0], target=subject.target)[0]
    clean = evaluation.predictions(subject.model, subject.image_set.images)
    changed = int(((untargeted != clean) | (targeted != clean)).sum())
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


def forward_repeats(subject: Subject) -> Finding:
    """Two forward passes of a batch agree to the bit: a random defence would need attacks that average over it."""
    with torch.no_grad():
        x, _ = next(subject.batches())
        difference = float((subject.model(x) - subject.model(x)).abs().max())
    return Finding(difference == 0, f"two forward passes differ by {difference:.1g}", "the model is random: average it")


@needs_correct
def gradients_not_zero(subject: Subject) -> Finding:
    """Every correctly classified image has a gradient to follow: saturated logits leave none (Carlini 2017)."""
    zero = 0
    for x, y in subject.batches(subject.correct):
        with frozen(subject.model):
            slope = attacks.input_gradient(subject.model, x, y)
        zero += int((slope.flatten(1).abs().amax(1) == 0).sum())
    of = int(subject.correct.sum())
    return Finding(zero == 0, f"{zero} of {of} correct images have no gradient", "masking by saturation")


def fgsm_raises_loss(subject: Subject) -> Finding:
    """At 0.5/255 the loss of the true class rises on more than 95 % of images."""
    share = _share_moved(subject, targeted=False)
    return Finding(share > 0.95, f"true-class loss rises on {share:.1%} at 0.5/255", "wrong sign, or a masked gradient")


def targeted_lowers_loss(subject: Subject) -> Finding:
    """At 0.5/255 the loss of the target falls on more than 95 % of images; the study's step had the wrong sign."""
    share = _share_moved(subject, targeted=True)
    return Finding(
        share > 0.95, f"target's loss falls on {share:.1%} at 0.5/255", "the step walks away from its target"
    )


@breakable_at_eps
def fgsm_below_clean(subject: Subject) -> Finding:
    """FGSM accuracy at eps is at most 1 point above clean: else label leaking (Kurakin 2017) or overfitting."""
    clean, fgsm = _share(subject.correct), subject.fgsm[subject.eps]
    seen = f"FGSM {fgsm:.3f}, clean {clean:.3f} at eps {subject.eps:.3g}"
    return Finding(fgsm <= clean + TOLERANCE, seen, "the model reads the label out of the attack")


@breakable_at_eps
def noise_weaker_than_fgsm(subject: Subject) -> Finding:
    """Random signs of the same size leave at least FGSM's accuracy less 1 point: else the gradient is masked."""
    noise, fgsm = subject.noise[subject.eps], subject.fgsm[subject.eps]
    seen = f"noise leaves {noise:.3f}, FGSM {fgsm:.3f} at eps {subject.eps:.3g}"
    return Finding(noise >= fgsm - TOLERANCE, seen, "the gradient says no more than chance")


@breakable
def pgd_at_most_fgsm(subject: Subject) -> Finding:
    """At every budget PGD leaves at most 1 point more than FGSM does, on the same images."""
    worst = max(subject.budgets, key=lambda eps: subject.pgd[eps] - subject.fgsm[eps])
    seen = f"PGD {subject.pgd[worst]:.3f}, FGSM {subject.fgsm[worst]:.3f} at eps {worst:.3g}, where PGD does worst"
    return Finding(subject.pgd[worst] <= subject.fgsm[worst] + TOLERANCE, seen, "PGD has lost its way: too few steps?")


@breakable_at_eps
def fgsm_close_to_pgd(subject: Subject) -> Finding:
    """FGSM and PGD differ by at most 15 points at eps; if not, the FGSM figure is no measure of robustness."""
    fgsm, pgd = subject.fgsm[subject.eps], subject.pgd[subject.eps]
    seen = f"FGSM {fgsm:.3f}, PGD {pgd:.3f} at eps {subject.eps:.3g}"
    return Finding(fgsm - pgd <= 0.15, seen, "do not believe this model's FGSM figure: believe PGD's")


@breakable
def pgd_falls_with_eps(subject: Subject) -> Finding:
    """From a budget to the next PGD accuracy rises by at most 1 point."""
    rise = _largest_rise(subject, subject.pgd)
    return Finding(rise <= TOLERANCE, f"largest rise between budgets {rise:.3f}", "PGD fails at large budgets")


@breakable_at_eps
def pgd_converged(subject: Subject) -> Finding:
    """Twice the steps take off less than 2 points at eps."""
    once, twice = subject.pgd[subject.eps], subject.pgd_at(subject.eps, 2 * subject.pgd_steps)
    seen = f"{subject.pgd_steps} steps leave {once:.3f}, {2 * subject.pgd_steps} leave {twice:.3f}"
    return Finding(once - twice < 0.02, seen, "raise audit.pgd_steps and fgsm_sweep.pgd_steps")


@needs_correct
def pgd_unbounded_reaches_zero(subject: Subject) -> Finding:
    """With a budget of 1, which allows any image, PGD leaves at most 1 %: anything more is a masked gradient."""
    left = subject.pgd_at(1.0, 2 * subject.pgd_steps)
    return Finding(left <= 0.01, f"PGD without a bound leaves {left:.3f}", "gradients are masked: no figure here holds")


@breakable_at_eps
@asked_if(lambda subject: subject.restarts > 1, "audit.restarts is 1: nothing to compare")
def pgd_restarts_agree(subject: Subject) -> Finding:
    """More random starts, an image counting as broken if one breaks it, take off less than 2 points at eps."""
    once, worst = subject.pgd[subject.eps], _share(subject.pgd_restarted)
    seen = f"one start leaves {once:.3f}, the worst of {subject.restarts} leaves {worst:.3f}"
    return Finding(
        once - worst < 0.02, seen, "the loss has many hollows: raise audit.restarts, believe the lower figure"
    )


@breakable_at_eps
def pgd_close_to_margins(subject: Subject) -> Finding:
    """Attacking the margin to every likely wrong class breaks at most 5 points more at eps than PGD with restarts.

    Models trained on adversarial images lose a few points to AutoAttack's targeted losses, defences whose cross-entropy
    misleads many (Croce and Hein 2020): up to 10 points are a warning.
    """
    pgd, strongest = _share(subject.pgd_restarted), _share(subject.strongest)
    seen = f"PGD with restarts leaves {pgd:.3f}, attacks on the margins {strongest:.3f} at eps {subject.eps:.3g}"
    gap = pgd - strongest
    otherwise = "PGD on the cross-entropy flatters this model: believe the margins' figure"
    return Finding(gap <= 0.05, seen, otherwise, warning=gap <= 0.10)


@asked_if(lambda subject: not subject.defended, "not asked of a model trained to withstand attacks")
@needs_correct
def undefended_is_broken(subject: Subject) -> Finding:
    """PGD at 8/255 leaves a plainly trained model at most 1 % (Madry 2018): if not, the attack is too weak to audit."""
    left = subject.pgd_at(attacks.EIGHT, subject.pgd_steps)
    return Finding(left <= 0.01, f"PGD at 8/255 leaves {left:.3f}", "the attack is too weak: raise audit.pgd_steps")


@breakable_at_eps
def transfer_weaker_than_pgd(subject: Subject) -> Finding:
    """Examples made on the other model leave at least PGD's accuracy on this one less 1 point (Athalye 2018): else
    gradients are masked.
    """
    transfer, pgd = subject.transfer[subject.eps], subject.pgd[subject.eps]
    seen = f"examples of the other model leave {transfer:.3f}, PGD {pgd:.3f} at eps {subject.eps:.3g}"
    return Finding(transfer >= pgd - TOLERANCE, seen, "an attack that never saw this model beats one that did")


@breakable_at_eps
def square_weaker_than_pgd(subject: Subject) -> Finding:
    """Square, which sees no gradient, leaves at least what PGD with restarts does of the same images, less 2 points
    (Croce 2020).
    """
    square, pgd = _share(subject.square), _share(subject.pgd_restarted[subject.square_sample])
    seen = f"Square leaves {square:.3f}, PGD {pgd:.3f} of {len(subject.square_sample)} images"
    return Finding(square >= pgd - 2 * TOLERANCE, seen, "gradients are masked: queries alone do better")


@breakable
def fgsm_falls_with_eps(subject: Subject) -> Finding:
    """FGSM accuracy does not rise by over 5 points from a budget to the next: the sign of catastrophic overfitting."""
    rise = _largest_rise(subject, subject.fgsm)
    return Finding(
        rise <= 0.05, f"largest rise between budgets {rise:.3f}", "the model has overfitted to the one step (Wong 2020)"
    )


@needs_correct
@asked_if(lambda subject: sum(eps <= subject.eps for eps in subject.budgets) > 1, "no smaller budget to compare with")
def fgsm_close_to_worst_case(subject: Subject) -> Finding:
    """Up to eps, a budget alone leaves at most 2 points more than with all smaller ones: else one step overshoots."""
    gap = max(subject.fgsm[eps] - subject.fgsm_worst[eps] for eps in subject.budgets if eps <= subject.eps)
    seen = f"the worst case over smaller budgets is up to {gap:.3f} lower"
    return Finding(gap <= 2 * TOLERANCE, seen, "the loss bends within the budget: read the worst case", warning=True)


@needs_eps
def gradients_agree_nearby(subject: Subject) -> Finding:
    """Gradients at an image and at uniform noise within eps of it point one way: mean cosine of at least 0.3.

    GradAlign (Andriushchenko and Flammarion 2020, figure 3): above that while one-step training is sound, near 0 once
    it has overfitted.
    """
    generator = subject.generator()
    cosines = [
        probes.gradient_alignment(subject.model, x, y, subject.eps, generator=generator) for x, y in subject.batches()
    ]
    mean = float(torch.cat(cosines).double().mean())
    seen = f"mean cosine {mean:.3f} within eps {subject.eps:.3g}"
    return Finding(mean >= 0.3, seen, "the loss is far from linear: one step says little", warning=True)


def softmax_not_saturated(subject: Subject) -> Finding:
    """At most 1 % of images have a softmax of exactly 1 in float32, whose loss of 0 has lost its gradient."""
    saturated = 0
    with torch.no_grad():
        for x, _ in subject.batches():
            saturated += int((subject.model(x).float().softmax(1).amax(1) == 1).sum())
    share = saturated / len(subject.image_set)
    return Finding(share <= 0.01, f"{share:.1%} of images have a softmax of 1", "attack the logits' margin instead")


@needs_budgets
@asked_if(lambda s: bool((s.image_set.labels != s.target).any()), "every image is of the target class")
def target_is_hit(subject: Subject) -> Finding:
    """At some budget targeted FGSM sends more images of other classes to the target than are taken for it anyway."""
    others = subject.image_set.labels != subject.target
    predicted = robustness.fgsm_predictions(
        subject.model, subject.image_set, [0.0, *subject.budgets], target=subject.target
    )
    clean, *hits = (predicted[:, others] == subject.target).double().mean(1).tolist()
    best = max(hits)
    seen = f"taken for the target: {clean:.3f} clean, {best:.3f} at the best budget"
    return Finding(best > clean, seen, "the targeted step misses: look at its sign")


def _largest_rise(subject: Subject, accuracies: dict[float, float]) -> float:
    """How much the accuracy rises from a budget to the next, from 0 on, at most; 0 where it never does."""
    curve = [_share(subject.correct), *(accuracies[eps] for eps in subject.budgets)]
    return max([0.0, *(after - before for before, after in pairwise(curve))])


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


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


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        eps_zero_is_clean,
        budget_and_range_kept,
        model_untouched,
        forward_repeats,
        gradients_not_zero,
        softmax_not_saturated,
        fgsm_raises_loss,
        targeted_lowers_loss,
        target_is_hit,
        fgsm_below_clean,
        fgsm_falls_with_eps,
        fgsm_close_to_worst_case,
        gradients_agree_nearby,
        noise_weaker_than_fgsm,
        pgd_at_most_fgsm,
        fgsm_close_to_pgd,
        pgd_falls_with_eps,
        pgd_converged,
        pgd_restarts_agree,
        pgd_close_to_margins,
        pgd_unbounded_reaches_zero,
        undefended_is_broken,
        transfer_weaker_than_pgd,
        square_weaker_than_pgd,
    )
}
