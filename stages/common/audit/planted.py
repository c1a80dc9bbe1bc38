"""The audit's test of its own attacks: adversarial examples that are known to exist, and how many of them are found.

The binarisation test of Zimmermann, Brendel, Tramer and Carlini (2022, Increasing Confidence in Adversarial Robustness
Evaluations). A classifier keeps its features and is given, for one image, another head: one that calls the image and
its neighbours within eps class 0, and one corner of the eps ball class 1. Whatever the classifier is, there is an
adversarial example then, and an attack that misses many of them is no measure of robustness. To find many is necessary
for a sound attack, not sufficient; and what a classifier's own head hides is not seen here.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from stages.common import attacks
from stages.common.audit.margins import multi_targeted
from stages.common.images import batch_size
from stages.common.models import Classifier, frozen

SOUND = 0.95  # of the planted examples, which a sound attack finds at least: all but what a few bad starts miss
LUCK = 0.05  # of them, which chance may find at most: above it the questions are too easy to tell an attack from luck
INNER, CORNERS = 64, 64  # neighbours that an image's head is made of; the paper's 999 and 1 cost eight times as much
WITHIN = 0.95  # of eps: inner neighbours keep off the surface (the code of Zimmermann 2022)
CLOSE = 0.999  # of the way from the next neighbour to the planted corner, where the boundary lies (the paper's code)
CLEAR = 0.1  # of the planted corner's score, by which it is above every other neighbour's, or it is not planted
# Times the mean variance of the features, over the values of an image. A head without a ridge looks along directions in
# which features hardly move: its corner is many standard deviations out, and a straight step reaches no more of them
# than the root of the values. Measured, of what 20-step PGD finds: on 8x8 digits and 16 features 75 % at a ridge of 1
# and 95 % at 10; on 32x32 photos all at any from 0.05 to 1000, but there chance finds 15 % at 1000.
RIDGE = 640
ROUNDING = 1e-6  # by which a pixel may exceed the budget

Attack = Callable[[nn.Module, Tensor, Tensor, float, torch.Generator], Tensor]  # model, images, labels, eps -> attacked


class Planted(nn.Module):
    """One image's question: images -> logits (N, 2), that of class 1 above that of class 0 at `example`.

    `image`, of class 0, and `example` are (1, C, H, W) and at most `eps` apart. The difference of the logits is near -1
    at the image's neighbours and 0 at the boundary, so that the cross-entropy is neither flat nor saturated.
    """

    def __init__(self, model: Classifier, image: Tensor, example: Tensor, eps: float, head: "Head"):
        super().__init__()
        self.model, self.image, self.example, self.eps, self.head = model, image, example, eps, head

    def forward(self, images: Tensor) -> Tensor:
        # In float32 even within a search in bfloat16, and the origin taken off first: neighbours' features differ by
        # little of what they are. (A matrix product would be bfloat16's.)
        away = self.model.features(images).float() - self.head.origin
        half = ((away * self.head.weight).sum(1) + self.head.bias) / 2
        return torch.stack([-half, half], dim=1)


class Head(NamedTuple):
    """A linear readout of features (N, D): (features - origin) @ weight + bias is above 0 for class 1."""

    origin: Tensor
    weight: Tensor
    bias: float


def has_features(model: nn.Module) -> TypeGuard[Classifier]:
    """Whether examples can be planted in `model`: it gives features that its head reads."""
    return isinstance(model, Classifier) and model.has_features


def plant(model: nn.Module, images: Tensor, eps: float, *, generator: torch.Generator) -> list[Planted]:
    """A question for each of the images, without those in which no corner stands out among the neighbours.

    Each answers 0 at its image and 1 at its example, which is verified. An image costs 1 + INNER + CORNERS + 2 forward
    passes. `generator` lives on the images' device. Raises ValueError for a model without features, and as
    `attacks.check` does.
    """
    if not has_features(model):
        raise ValueError(f"{type(model).__name__} has no features that a planted example could be told by")
    attacks.check(images, torch.zeros(len(images), dtype=torch.int64), eps)
    with frozen(model), torch.no_grad():
        # One image at a time: its neighbours are a batch already.
        questions = [_question(model, image, eps, generator) for image in images.split(1)]
    return [question for question in questions if question is not None]


def found(planted: Sequence[Planted], attack: Attack, *, generator: torch.Generator) -> float:
    """The share of the planted examples' questions, in (0, 1], in which `attack` finds an adversarial example, be it
    the planted one or another. What lies outside the budget or [0, 1] is none. Raises ValueError if none is planted.
    """
    if not planted:
        raise ValueError("no example is planted, so none can be found")
    # One image at a time, as the paper's code has it: every image has a head of its own, and an attack may drop images
    # from a batch or repeat them, so that a model could not tell which head a row of its batch is for.
    return sum(_finds(attack, question, generator) for question in planted) / len(planted)


def audits_own(steps: int) -> dict[str, Attack]:
    """The audit's attacks by name, as they are asked for `found`, of `steps` steps each.

    FGSM has one step and is known to be weaker. Chance is no attack: as many random corners as the others have steps,
    the paper's measure of how hard the questions are.
    """
    return {
        "PGD": lambda model, x, y, eps, generator: attacks.pgd_until_broken(
            model, x, y, eps, steps=steps, generator=generator
        ),
        "margins": lambda model, x, y, eps, generator: multi_targeted(
            model, x, y, eps, classes=1, steps=steps, generator=generator
        ),
        "FGSM": lambda model, x, y, eps, generator: attacks.fgsm(model, x, y, eps),
        "chance": lambda model, x, y, eps, generator: _random_corner(model, x, y, eps, generator, queries=steps),
    }


def _question(model: Classifier, image: Tensor, eps: float, generator: torch.Generator) -> Planted | None:
    """The question of one image (1, C, H, W); None where no corner stands out, or float32 does not show that it does.

    `model` is one that `frozen` holds.
    """
    inner = attacks.Linf(image.expand(INNER, -1, -1, -1), WITHIN * eps).start(generator)
    corners = attacks.sign_noise(image.expand(CORNERS, -1, -1, -1), eps, generator=generator)
    fitted = _head(_features(model, torch.cat([image, inner, corners])), RIDGE / image.numel())
    if fitted is None:
        return None
    corner, head = fitted
    question = Planted(model, image, corners[corner].unsqueeze(0), eps, head)
    answers = question(torch.cat([image, question.example])).argmax(1)
    return question if answers.tolist() == [0, 1] else None


def _features(model: Classifier, images: Tensor) -> Tensor:
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.cat([model.features(part) for part in images.split(batch_size(images))])


def _head(features: Tensor, relative_ridge: float) -> tuple[int, Head] | None:
    """Which corner to plant, and the head that tells it from all other neighbours, of the features (1 + INNER +
    CORNERS, D) of an image, its inner neighbours and its corners. None where no corner is CLEAR of the others.

    Deviation: the paper fits a logistic regression to 999 inner neighbours and one corner. This is its closed form for
    normal features, Fisher's discriminant (1936) with a ridge, for every corner in turn, and the one that is furthest
    above all others is planted. The other corners, to which no weight is fitted, stand for what chance would try.
    """
    on, features = features, features.double().cpu()  # not every device has float64
    inner, corners = features[:-CORNERS], features[-CORNERS:]
    away, around = corners - corners.mean(0), inner - inner.mean(0)
    ridge = relative_ridge * float(features.var(0).mean())
    if not ridge > 0:  # features that do not move, or are not finite
        return None
    # away @ (covariance of inner + ridge)^-1, up to a factor, by Woodbury's identity: the features may be many, the
    # neighbours are few.
    gram = around @ around.T + ridge * len(around) * torch.eye(len(around), dtype=features.dtype)
    weights = away - away @ around.T @ torch.linalg.solve(gram, around)
    scores = (features - corners.mean(0)) @ weights.T  # (1 + INNER + CORNERS, CORNERS): a column for each head
    own = scores[-CORNERS:].diagonal().clone()
    scores[-CORNERS:].fill_diagonal_(-torch.inf)
    next_best = scores.amax(0) / own
    best = int(next_best.argmin())
    if not next_best[best] <= 1 - CLEAR:
        return None
    weight = (weights[best] / own[best]).to(on)  # corners score 0 on average, and the planted one 1
    return best, Head(on[best - CORNERS], weight, (1 - CLOSE) * (1 - float(next_best[best])))


def _finds(attack: Attack, question: Planted, generator: torch.Generator) -> bool:
    image, eps = question.image, question.eps
    right = torch.zeros(1, dtype=torch.int64, device=image.device)
    attacked = attack(question, image, right, eps, generator)
    kept = (attacked - image).abs().amax() <= eps + ROUNDING and attacked.amin() >= 0 and attacked.amax() <= 1
    return bool(kept) and not bool(attacks.withstood(question, attacked, right))


def _random_corner(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator, *, queries: int
) -> Tensor:
    """For each image the first of `queries` random corners that is misclassified, or just the first."""
    tried = attacks.sign_noise(images.repeat_interleave(queries, 0), eps, generator=generator)
    stood = attacks.withstood(model, tried, labels.repeat_interleave(queries)).view(len(images), queries)
    first = stood.int().argmin(1)
    return tried[torch.arange(len(images)) * queries + first]
