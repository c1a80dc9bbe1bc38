"""An audit of the robust model by itself, as scripts.examine makes one: ours against the same attacks of torchattacks.

Clean images, FGSM and PGD at each budget of the sweep, at eps PGD from more starts and then towards each wrong class
(our margins, its targeted APGD), and Square, on the same images. A user of the library attacks whole batches; the audit
leaves alone what is broken already, and looks for its way in bfloat16 where the processor has it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import common
from stages.common import attacks, device, evaluation, images, params
from stages.common.audit.subject import Subject
from stages.common.errors import run

IMAGES = 200
Left = Mapping[str, Tensor]  # which images are right under each attack, bool (n,)


def new_subject(quick: bool) -> Subject:
    """The robust model with a fair sample of the test images."""
    knobs = params.load()
    if quick:
        subject = Subject.from_params(
            knobs, model=common.small_net(), other=None, defended=True, image_set=common.digits(20)
        )
        return replace(subject, pgd_steps=2, square_queries=5)
    test = images.read("test")
    model = evaluation.load_both(test, torch.device("cpu"))["robust"]
    return Subject.from_params(knobs, model=model, other=None, defended=True, image_set=common.take(test, IMAGES))


def measure(quick: bool) -> dict[str, float]:
    """Seconds of both sides, their ratio, the accuracy that each one's strongest attack leaves at eps, and the share of
    the images on which these two agree.
    """
    device.keep_freed_memory()
    knobs, subject = params.load(), new_subject(quick)
    left: dict[str, Left] = {}

    def ours() -> None:
        with attacks.searching(bfloat16=device.bfloat16(knobs.precision, torch.device("cpu"))):
            left["ours"] = by_the_audit(replace(subject))  # a new one: what a subject has found, it keeps

    def peer() -> None:
        left["peer"] = by_torchattacks(subject)

    seconds = common.alternate({"ours": ours, "peer": peer}, 1)
    accuracies = {f"{side}_left": float(of["strongest"].double().mean()) for side, of in left.items()}
    return accuracies | {
        "equal": float((left["ours"]["strongest"] == left["peer"]["strongest"]).double().mean()),
        "ours_s": seconds["ours"],
        "peer_s": seconds["peer"],
        "ratio": seconds["peer"] / seconds["ours"],
        "images": len(subject.image_set),
    }


def by_the_audit(subject: Subject) -> Left:
    return {
        "clean": subject.correct,
        **{f"fgsm {eps}": right for eps, right in zip(subject.budgets, subject.fgsm_survivors, strict=True)},
        **{f"pgd {eps}": right for eps, right in subject.pgd_once.items()},
        "restarted": subject.pgd_restarted,
        "strongest": subject.strongest,
        "square": subject.square,
    }


def by_torchattacks(subject: Subject) -> Left:
    """The same attacks, with the parameters of the subject."""
    from torchattacks import APGDT, FGSM, PGD, Square

    x, y = images.to_float(subject.image_set.images), subject.image_set.labels
    model, steps, eps = subject.model, subject.pgd_steps, subject.eps

    def right(attack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return attacks.withstood(model, attack(x, y), y)

    def pgd(budget: float) -> Tensor:
        return right(PGD(model, eps=budget, alpha=2.5 * budget / steps, steps=steps))

    left = {"clean": attacks.withstood(model, x, y)}
    for budget in subject.budgets:
        left[f"fgsm {budget}"] = right(FGSM(model, eps=budget))
        left[f"pgd {budget}"] = pgd(budget)
    starts = [left[f"pgd {eps}"], *(pgd(eps) for _ in range(subject.restarts - 1))]
    left["restarted"] = torch.stack(starts).all(0)
    targeted = right(APGDT(model, eps=eps, steps=steps, n_classes=len(subject.image_set.classes)))
    left["strongest"] = left["restarted"] & targeted
    some = subject.square_sample
    square = Square(model, eps=eps, n_queries=subject.square_queries)(x[some], y[some])
    left["square"] = attacks.withstood(model, square, y[some])
    return left


def main() -> None:
    quick = common.asked_quick(__doc__)
    print(common.machine())
    found = measure(quick)
    print(
        f"{found['images']} images: {found['ours_s']:.1f} s against torchattacks' {found['peer_s']:.1f}, "
        f"{found['ratio']:.2f} times; the strongest attacks leave {found['ours_left']:.3f} and "
        f"{found['peer_left']:.3f}, the same of {found['equal']:.1%}"
    )


if __name__ == "__main__":
    run(main)
