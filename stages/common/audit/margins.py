"""PGD on the margin to each likely wrong class: the strongest attack of the audit.

Cross-entropy pushes an image away from its class, not towards the one whose boundary is near, and its gradient fades
where the model is confident. A model looks several points more robust to it than it is, which is why AutoAttack goes
for every wrong class in turn (Croce and Hein 2020). This does the same at the price of a PGD for each class.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stages.common import attacks
from stages.common.models import frozen

MARGIN_CLASSES = 9  # the likeliest wrong ones, as many as AutoAttack goes for (Croce 2020): all of CIFAR-10's
Towards = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, their labels and goals (n,) -> attacked images


def multi_targeted(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    classes: int,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """MultiTargeted (Gowal 2019): images of the same shape within eps and [0, 1].

    Climbs z[c] - z[y] of the logits z for the `classes` likeliest wrong classes c of the clean image, one after
    another, each from a random start in the ball. An image is left alone once it is misclassified, and returned clean
    if it never is. Steps shrink from 2 eps as (1 - t / steps)^2: large ones first to find the region, then fine ones,
    in the spirit of APGD. `generator` lives on the images' device. Arguments as in `attacks.pgd`; raises ValueError as
    that does, and for classes < 1.
    """
    attacks.check(images, labels, eps)
    attacks.at_least_1(steps=steps, classes=classes)

    def attack(x: Tensor, y: Tensor, goals: Tensor) -> Tensor:
        ball = attacks.Linf(x, eps)
        return attacks.hunt(model, y, lead_of(y, goals), ball, sizes, ball.start(generator))

    sizes = [2 * eps * (1 - step / steps) ** 2 for step in range(steps)]
    with frozen(model):
        return towards_each(model, images, labels, classes, attack)


def towards_each(model: nn.Module, images: Tensor, labels: Tensor, classes: int, attack: Towards) -> Tensor:
    """Each image where `attack` first broke it on its way to its `classes` likeliest wrong classes, in turn; clean if
    it was broken before, or never. `model` is one that `frozen` holds.
    """
    found = images.clone()
    with torch.no_grad():
        logits = model(images)
    alive = (logits.argmax(1) == labels).nonzero().squeeze(1)
    wrong = logits.scatter(1, labels.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
    for rank in range(min(classes, logits.shape[1] - 1)):
        if len(alive) == 0:
            break
        attacked = attack(images[alive], labels[alive], wrong[alive, rank])
        left = attacks.withstood(model, attacked, labels[alive]).to(alive.device)
        found[alive[~left]] = attacked[~left]
        alive = alive[left]
    return found


def lead_of(labels: Tensor, goals: Tensor) -> attacks.Value:
    """How far an image's goal is above its label, in logits, of images with these `labels` and `goals` (N,)."""

    def lead(logits: Tensor, chosen: Tensor) -> Tensor:
        goal, right = (logits.gather(1, of[chosen].unsqueeze(1)).squeeze(1) for of in (goals, labels))
        return goal - right

    return lead
