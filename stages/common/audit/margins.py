"""PGD on the margin to each likely wrong class: the strongest attack of the audit.

Cross-entropy pushes an image away from its class, not towards the one whose boundary is near, and its gradient fades
where the model is confident. A model looks several points more robust to it than it is, which is why AutoAttack goes
for every wrong class in turn (Croce and Hein 2020). This does the same at the price of a PGD for each class.
"""

import torch
from torch import Tensor, nn

from stages.common import attacks
from stages.common.models import frozen

MARGIN_CLASSES = 9  # the likeliest wrong ones, as many as AutoAttack goes for (Croce 2020): all of CIFAR-10's


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
    if min(classes, steps) < 1:
        raise ValueError(f"classes and steps must be at least 1, got {classes} and {steps}")
    found = images.clone()
    with frozen(model):
        with torch.no_grad():
            logits = model(images)
        wrong = logits.scatter(1, labels.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
        alive = logits.argmax(1) == labels
        for rank in range(min(classes, logits.shape[1] - 1)):
            chosen = alive.nonzero().squeeze(1)
            if len(chosen) == 0:
                break
            x, y = images[chosen], labels[chosen]
            attacked = _climb(model, x, y, wrong[chosen, rank], eps, steps, generator)
            with torch.no_grad():
                broken = model(attacked).argmax(1) != y
            found[chosen[broken]] = attacked[broken]
            alive[chosen[broken]] = False
    return found


def _climb(
    model: nn.Module, x: Tensor, y: Tensor, goal: Tensor, eps: float, steps: int, generator: torch.Generator
) -> Tensor:
    def margin(logits: Tensor, chosen: Tensor) -> Tensor:
        wrong, right = goal[chosen].unsqueeze(1), y[chosen].unsqueeze(1)
        return (logits.gather(1, wrong) - logits.gather(1, right)).squeeze(1)

    sizes = [2 * eps * (1 - step / steps) ** 2 for step in range(steps)]
    ball = attacks.Linf(x, eps)
    return attacks.hunt(model, y, margin, ball, sizes, ball.start(generator))
