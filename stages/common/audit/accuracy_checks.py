"""Checks of accuracies under several attacks, on the same images: what contradicts what, and which to believe."""

from itertools import pairwise

from torch import Tensor

from stages.common import attacks
from stages.common.audit.finding import Finding, asked_if, breakable, breakable_at_eps, needs_correct
from stages.common.audit.subject import Subject

TOLERANCE = 0.01  # of accuracies compared on a few hundred images; below it they count as equal


@breakable_at_eps
def fgsm_below_clean(subject: Subject) -> Finding:
    """FGSM accuracy at eps is at most 1 point above clean: else label leaking (Kurakin 2017) or overfitting."""
    clean, fgsm = _share(subject.correct), subject.fgsm[subject.eps]
    seen = f"FGSM {fgsm:.3f}, clean {clean:.3f} at eps {subject.eps:.3g}"
    return Finding(fgsm <= clean + TOLERANCE, seen, "the model reads the label out of the attack")


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


@needs_correct
def pgd_unbounded_reaches_zero(subject: Subject) -> Finding:
    """With a budget of 1, which allows any image, PGD leaves at most 1 %: anything more is a masked gradient.

    What the largest budget has broken counts as broken: a start of noise may lie where the softmax has saturated.
    """
    within = subject.pgd_once[subject.budgets[-1]] if subject.budgets else subject.correct
    left = _share(subject.pgd_survivors(1.0, 2 * subject.pgd_steps, subject.seed, within))
    return Finding(left <= 0.01, f"PGD without a bound leaves {left:.3f}", "gradients are masked: no figure here holds")


@asked_if(lambda subject: not subject.defended, "not asked of a model trained to withstand attacks")
@needs_correct
def undefended_is_broken(subject: Subject) -> Finding:
    """PGD at 8/255 leaves a plainly trained model at most 1 % (Madry 2018): if not, the attack is too weak to audit."""
    left = subject.pgd_at(attacks.EIGHT, subject.pgd_steps)
    return Finding(left <= 0.01, f"PGD at 8/255 leaves {left:.3f}", "the attack is too weak: raise audit.pgd_steps")


@asked_if(lambda subject: subject.other is not None, "no second model to transfer from")
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


def _largest_rise(subject: Subject, accuracies: dict[float, float]) -> float:
    """How much the accuracy rises from a budget to the next, from 0 on, at most; 0 where it never does."""
    curve = [_share(subject.correct), *(accuracies[eps] for eps in subject.budgets)]
    return max([0.0, *(after - before for before, after in pairwise(curve))])


@asked_if(lambda subject: subject.certificate is not None, "nothing is certified of this model")
def certificate_not_contradicted(subject: Subject) -> Finding:
    """No attack on the smoothed classifier (Salman 2019) breaks an image within the radius that is certain of it (Cohen
    2019). Both rest on noise: as few as its luck explains are a warning, more show that one of the two is wrong.
    """
    certificate = subject.certificate
    assert certificate is not None  # `asked_if` sees to it
    broken, explained = certificate.contradicted, certificate.by_chance
    seen = f"{broken} of {certificate.images} images broken within their certified radius, {explained} may be by chance"
    otherwise = "the certificate or the attack on it is wrong: believe neither curve"
    return Finding(broken == 0, seen, otherwise, warning=broken <= explained)


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())
