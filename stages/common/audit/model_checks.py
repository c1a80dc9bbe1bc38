"""Checks of the model by itself: whether it has learnt anything, always answers alike, and has gradients to follow."""

import torch

from stages.common import attacks, evaluation
from stages.common.audit import guessing, probes
from stages.common.audit.finding import Finding, asked_if, needs_correct, needs_eps, needs_learnt
from stages.common.audit.subject import Subject
from stages.common.models import frozen


@asked_if(lambda subject: guessing.can_be_told(subject.image_set.labels), "too few images, or all of one class")
def beats_the_commonest_class(subject: Subject) -> Finding:
    """The answers have to do with the images: see `Subject.learnt`. Where they have, the model is right more often than
    the answer that is always the commonest class (McNemar 1947, exact, at 5 %): else its accuracy is worth a warning.

    Where classes differ in size, a model that has learnt the larger one alone has a fine accuracy, also under attack:
    nothing moves it, as if gradients were masked. So where this fails, what asks of gradients and attacks is n/a.
    """
    labels = subject.image_set.labels
    clean, balanced = float(subject.correct.double().mean()), evaluation.balanced(labels, subject.correct)
    seen = (
        f"clean {clean:.3f}, the commonest class alone {evaluation.chance(labels):.3f}; "
        f"balanced {balanced:.3f}, guessing {1 / len(labels.unique()):.3f}"
    )
    if not subject.learnt:
        otherwise = "it answers the commonest class, or guesses: its figures under attack say nothing"
        return Finding(False, seen, otherwise)
    beats = guessing.beats_one_answer(labels, subject.correct)
    return Finding(beats, seen, "one answer for all images is as accurate: read balanced accuracy", warning=True)


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


@needs_learnt
def softmax_not_saturated(subject: Subject) -> Finding:
    """At most 1 % of images have a softmax of exactly 1 in float32, whose loss of 0 has lost its gradient."""
    saturated = 0
    with torch.no_grad():
        for x, _ in subject.batches():
            saturated += int((subject.model(x).float().softmax(1).amax(1) == 1).sum())
    share = saturated / len(subject.image_set)
    return Finding(share <= 0.01, f"{share:.1%} of images have a softmax of 1", "attack the logits' margin instead")


@needs_learnt
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
