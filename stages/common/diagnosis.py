"""Why a classifier may know no more than chance on these images: what it would know of them otherwise."""

from collections.abc import Iterator

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stages.common import evaluation, images
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.normalization import NORMALIZATIONS, Moments

TRIED = 100  # images that another normalisation is tried on
BETTER = 0.2  # of the images that must be right beyond those that are, for another reading to be worth naming
CAUSES = "normalised twice, or not at all; classes in another order; no weights, or of another data set; train mode"


def lines(model: Classifier, image_set: ImageSet) -> list[str]:
    """What to say of a model that is near chance on a set: usual causes, and what would do better."""
    chance = evaluation.chance(image_set.labels)
    causes = f"near chance ({chance:.3f}), so its figures under attack say nothing; usual causes: {CAUSES}"
    found = list(_remedies(model, image_set))
    return [causes, *(found or ["no other normalisation and no other order of the classes would do better"])]


def _remedies(model: Classifier, image_set: ImageSet) -> Iterator[str]:
    """What would make the model right more often, a line each, tried on a fair sample of TRIED images."""
    some = image_set.take(images.sample(image_set.labels, TRIED))
    now = evaluation.accuracy(model, some)
    given = Moments(*(tuple(side.flatten().tolist()) for side in (model.normalize.mean, model.normalize.std)))
    found = {}
    for name, moments in NORMALIZATIONS.items():
        if len(moments.mean) in (1, len(model.normalize.mean)):
            model.normalize.set(moments)
            found[name] = evaluation.accuracy(model, some)
    model.normalize.set(given)
    best = max(found, key=lambda name: found[name])
    if found[best] >= now + BETTER:
        yield f"the normalisation {best} would give {found[best]:.2f} instead of {now:.2f} (of {len(some)} images)"
    answers = evaluation.predictions(model, image_set.images)
    order = class_order(answers, image_set)
    right = float((order[image_set.labels] == answers).double().mean())
    if right >= float((answers == image_set.labels).double().mean()) + BETTER:
        named = ", ".join(image_set.classes[i] for i in order.argsort().tolist()[:12])
        yield f"another order of the classes would give {right:.2f}: by its answers the outputs are {named}"


def class_order(answers: Tensor, image_set: ImageSet) -> Tensor:
    """The output that each class is answered with most, one for each, int64 (K,): the assignment with most images
    right (Kuhn 1955).
    """
    classes = len(image_set.classes)
    pairs = torch.zeros(classes, classes, dtype=torch.int64)
    pairs.index_put_((image_set.labels, answers), torch.ones_like(answers), accumulate=True)
    return torch.from_numpy(linear_sum_assignment(-pairs.numpy())[1]).long()
