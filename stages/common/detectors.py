"""Detectors: a score, and the view of the model that it looks at. How a set is seen, and how a detector is evaded.

Images are float32 (N, C, H, W) in [0, 1] on the model's device. Confidences are float64 (N,), larger = more ID.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common import attacks, images, scores
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.params import Params
from stages.common.scores import FitData, Options, Score


class Output(NamedTuple):
    """What one view gives: logits (N, K) and features (N, D)."""

    logits: Tensor
    features: Tensor


class Sight(NamedTuple):
    """How the views look: whether a mirror image shows the same thing; ODIN's temperature > 0 and budget in [0, 1]."""

    mirror: bool
    odin_temperature: float
    odin_eps: float


class Detector(NamedTuple):
    """A way to fit a score, and the view that gives its logits and features."""

    fit: Callable[[FitData, Options], Score]
    view: str


DETECTORS: dict[str, Detector] = {
    **{name: Detector(fit, "plain") for name, fit in scores.SCORES.items()},
    "odin": Detector(lambda train, options: scores.max_softmax(train, options._replace(temperature=1)), "odin"),
    "deep_entropy": Detector(scores.entropy, "deep"),
    "deep_knn": Detector(scores.knn, "deep"),
    "deep_knn_entropy": Detector(scores.knn_entropy, "deep"),
}


def plain(model: Classifier, batch: Tensor, sight: Sight) -> Output:
    """The classifier as it is: logits and penultimate features."""
    features = model.features(batch)
    return Output(model.head(features), features)


def deep(model: Classifier, batch: Tensor, sight: Sight) -> Output:
    """Every group of layers, each scaled to length 1, side by side; the mean over the image and its mirror image.

    A nearest neighbour in it is alike in colour and texture as well as in what the classifier concludes.
    """
    views = [batch, batch.flip(3).contiguous(memory_format=torch.channels_last)] if sight.mirror else [batch]
    layers = [model.layers(view) for view in views]
    logits = torch.stack([model.head(view[-1]) for view in layers]).mean(0)
    features = torch.stack([torch.cat([F.normalize(layer, dim=1) for layer in view], 1) for view in layers]).mean(0)
    return Output(logits, features)


def odin(model: Classifier, batch: Tensor, sight: Sight) -> Output:
    """ODIN (Liang 2018): one signed step makes each image more like what it is taken for, FGSM with its sign turned.

    Logits are given over the temperature. Costs a forward and a backward pass more than `plain`, shared with nothing.
    """
    with attacks.frozen(model), torch.enable_grad():
        moved = batch.detach().requires_grad_(True)
        logits = model(moved) / sight.odin_temperature
        gradient = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1), reduction="sum"), moved)[0]
    features = model.features((batch - sight.odin_eps * gradient.sign_()).clamp_(0, 1))
    return Output(model.head(features) / sight.odin_temperature, features)


VIEWS: dict[str, Callable[[Classifier, Tensor, Sight], Output]] = {"plain": plain, "deep": deep, "odin": odin}


@torch.no_grad()
def see(
    model: Classifier,
    image_set: ImageSet,
    sight: Sight,
    *,
    views: tuple[str, ...] = tuple(VIEWS),
    device: torch.device | str = "cpu",
    description: str = "see",
) -> dict[str, Output]:
    """Each of the views on a whole set, on the CPU: everything that any detector needs to score it."""
    found: dict[str, list[Output]] = {view: [] for view in views}
    for _, batch in images.batches(image_set.images, device=device, description=description):
        for view in views:
            found[view].append(VIEWS[view](model, batch, sight))
    return {
        view: Output(*(torch.cat(side).cpu() for side in zip(*parts, strict=True))) for view, parts in found.items()
    }


def settings(knobs: Params) -> tuple[Sight, Options]:
    """How params.yaml wants images to be seen and scored. A mirror image means the same where training mirrors."""
    chosen = knobs.ood_eval
    sight = Sight(knobs.data.training.flip, chosen.odin_temperature, chosen.odin_eps)
    return sight, Options(**{name: getattr(chosen, name) for name in Options._fields})


def fit_on(
    model: Classifier,
    train: ImageSet,
    sight: Sight,
    options: Options,
    *,
    names: Sequence[str] = tuple(DETECTORS),
    device: torch.device | str = "cpu",
    description: str = "fit",
) -> dict[str, Score]:
    """The detectors `names`, fitted on the training images (ODIN has nothing to learn, so these are not moved)."""
    needed = {name: "plain" if DETECTORS[name].view == "odin" else DETECTORS[name].view for name in names}
    views = tuple(dict.fromkeys(needed.values()))
    seen = see(model, train, sight, views=views, device=device, description=description)
    return {name: DETECTORS[name].fit(FitData(*seen[view], train.labels), options) for name, view in needed.items()}


def score(fitted: Mapping[str, Score], seen: Mapping[str, Output]) -> dict[str, Tensor]:
    """The confidences (N,) of a set by each of the fitted detectors."""
    return {name: apply(*seen[DETECTORS[name].view]) for name, apply in fitted.items()}


@torch.no_grad()
def confidence(model: Classifier, name: str, apply: Score, batch: Tensor, sight: Sight) -> Tensor:
    """The fitted detector's confidences (N,) of a batch, on the CPU."""
    return apply(*VIEWS[DETECTORS[name].view](model, batch.contiguous(memory_format=torch.channels_last), sight)).cpu()


def confidence_gradient(model: Classifier, name: str, apply: Score, batch: Tensor, sight: Sight) -> Tensor:
    """Gradient (N, C, H, W) of the detector's own confidence to the images, float32."""
    with torch.enable_grad(), torch.autocast(batch.device.type, enabled=False):
        batch = batch.detach().requires_grad_(True)
        confidence = apply(*VIEWS[DETECTORS[name].view](model, batch, sight)).sum()
        return torch.autograd.grad(confidence, batch)[0]
