"""Detectors: a score, and the view of the model that it looks at. How a set is seen and scored.

Images are float32 (N, C, H, W) in [0, 1] on the model's device. Confidences are float64 (N,), larger = more ID.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common import attacks, device, distributed, images
from stages.common.detection import scores
from stages.common.detection.scores import FitData, Options, Score
from stages.common.images import Batch, ImageSet
from stages.common.models import Classifier, frozen
from stages.common.params import Params

LARGE = 2**30  # bytes of fitted logits and features that each process keeps: five times CIFAR's, a small part of a GPU


class Output(NamedTuple):
    """What one view gives: logits (N, K) and features (N, D)."""

    logits: Tensor
    features: Tensor


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How the views look: whether a mirror image shows the same thing; ODIN's temperature > 0 and budget in [0, 1]."""

    mirror: bool
    odin_temperature: float
    odin_eps: float

    @classmethod
    def from_params(cls, params: Params) -> "Sight":
        """A mirror image means the same where training mirrors."""
        return cls(
            mirror=params.data.training.flip,
            odin_temperature=params.ood_eval.odin_temperature,
            odin_eps=params.ood_eval.odin_eps,
        )


class Detector(NamedTuple):
    """A way to fit a score, and the view that gives its logits and features."""

    fit: Callable[[FitData, Options], Score]
    view: str


DETECTORS: dict[str, Detector] = {
    **{name: Detector(fit, "plain") for name, fit in scores.SCORES.items()},
    "odin": Detector(lambda train, options: scores.max_softmax(train, replace(options, temperature=1)), "odin"),
    "deep_entropy": Detector(scores.entropy, "deep"),
    "deep_knn": Detector(scores.knn, "deep"),
    "deep_knn_entropy": Detector(scores.knn_entropy, "deep"),
}
NEAREST = {"knn": "neighbours", "deep_knn": "neighbours", "deep_knn_entropy": "neighbours", "nnguide": "guides"}
SPANNING = ("mahalanobis", "relative_mahalanobis", "vim", "fdbd")  # fit something in every direction of the features


@torch.no_grad()
def not_applicable(model: Classifier, options: Options, train: ImageSet) -> dict[str, str]:
    """The detectors that have nothing to look at in `model`, or too little in the training images, and why."""
    count, found = len(train), {}
    of_a_class = count // len(train.labels.unique())
    blank = torch.zeros(1, *train.images.shape[1:], device=device.of(model))
    with frozen(model):
        width = model.features(blank).shape[1]
    for name, detector in DETECTORS.items():
        k = getattr(options, NEAREST[name]) if name in NEAREST else 0
        if detector.view == "deep" and not (model.has_features and model.has_stages):
            found[name] = "the model has no stages that could be looked at"
        elif detector.view == "plain" and name not in scores.OF_LOGITS and not model.has_features:
            found[name] = "the model has no last linear layer whose input could be looked at"
        elif k > of_a_class:
            found[name] = f"it looks at {k} fitted images, and a class has about {of_a_class}"
        elif name in SPANNING and count <= width:
            found[name] = f"{count} fitted images say too little of {width} features"
    return found


def of_both(both: Mapping[str, Classifier], options: Options, train: ImageSet) -> list[str]:
    """The detectors that apply to every one of the models, in the order of DETECTORS. Says which do not, and why."""
    missing = {name: why for model in both.values() for name, why in not_applicable(model, options, train).items()}
    for name, why in missing.items():
        print(f"{name}: n/a: {why}", flush=True)
    return [name for name in DETECTORS if name not in missing]


def views_of(names: Sequence[str]) -> list[str]:
    """The views that these detectors look at."""
    return list(dict.fromkeys(DETECTORS[name].view for name in names))


class _Pass(NamedTuple):
    """One forward pass of a batch, which all views share; the gradient is there for those that ask for it."""

    batch: Tensor
    layers: list[Tensor]  # as Classifier.layers
    logits: Tensor
    gradient: Tensor | None  # of the loss that ODIN lowers


def _plain(model: Classifier, seen: _Pass, sight: Sight) -> Output:
    """The classifier as it is: logits and penultimate features."""
    return Output(seen.logits, seen.layers[-1])


def _deep(model: Classifier, seen: _Pass, sight: Sight) -> Output:
    """Every group of layers, each scaled to length 1, side by side; the mean over the image and its mirror image.

    A nearest neighbour in it is alike in colour and texture as well as in what the classifier concludes.
    """
    logits, layers = [seen.logits], [seen.layers]
    if sight.mirror:
        layers.append(model.layers(seen.batch.flip(3).contiguous(memory_format=torch.channels_last)))
        logits.append(model.head(layers[-1][-1]))
    features = [torch.cat([F.normalize(layer, dim=1) for layer in side], 1) for side in layers]
    return Output(torch.stack(logits).mean(0), torch.stack(features).mean(0))


def _odin(model: Classifier, seen: _Pass, sight: Sight) -> Output:
    """ODIN (Liang 2018): one signed step makes each image more like what it is taken for, FGSM with its sign turned.

    Logits are given over the temperature. Costs a backward and a forward pass more than `plain`, shared with nothing.
    """
    assert seen.gradient is not None  # `views` makes one where this view is asked for
    features = model.features((seen.batch - sight.odin_eps * seen.gradient.sign()).clamp_(0, 1))
    return Output(model.head(features) / sight.odin_temperature, features)


VIEWS: dict[str, Callable[[Classifier, _Pass, Sight], Output]] = {"plain": _plain, "deep": _deep, "odin": _odin}


def views(model: Classifier, batch: Tensor, sight: Sight, names: Sequence[str] = tuple(VIEWS)) -> dict[str, Output]:
    """The views `names` of a batch; differentiable where gradients are enabled, ODIN's excepted."""
    if "odin" not in names:
        layers = model.layers(batch)
        seen = _Pass(batch, layers, model.head(layers[-1]), None)
    else:
        with frozen(model), torch.enable_grad():
            moved = batch.detach().requires_grad_(True)
            layers = model.layers(moved)
            logits = model.head(layers[-1])
            scaled = logits / sight.odin_temperature
            gradient = torch.autograd.grad(F.cross_entropy(scaled, scaled.argmax(1), reduction="sum"), moved)[0]
        seen = _Pass(batch, [layer.detach() for layer in layers], logits.detach(), gradient)
    return {name: VIEWS[name](model, seen, sight) for name in names}


@torch.no_grad()
def see(
    model: Classifier,
    image_set: ImageSet,
    sight: Sight,
    *,
    names: Sequence[str] = tuple(VIEWS),
    description: str = "see",
) -> dict[str, Output]:
    """The views `names` of a whole set, on the CPU: everything that any detector needs to score it."""

    def seen(batch: Batch) -> dict[str, Output]:
        found = views(model, batch.x, sight, names)
        return {name: Output(output.logits.cpu(), output.features.cpu()) for name, output in found.items()}

    found = images.each_batch(seen, image_set.images, device=device.of(model), description=description)
    return {name: Output(*map(torch.cat, zip(*(each[name] for each in found), strict=True))) for name in names}


def fit_on(
    model: Classifier,
    train: ImageSet,
    sight: Sight,
    options: Options,
    *,
    names: Sequence[str] = tuple(DETECTORS),
    description: str = "fit",
) -> dict[str, Score]:
    """The detectors `names`, fitted on the training images (ODIN has nothing to learn, so these are not moved). They
    work on the model's device, and take what they judge to it. What is fitted on many images lies on disk, once for all
    ranks of a machine. Raises UserError where the disk has no room for it.
    """
    needed = {name: "plain" if DETECTORS[name].view == "odin" else DETECTORS[name].view for name in names}
    where = device.of(model)
    known = _known(model, train, sight, tuple(dict.fromkeys(needed.values())), description)

    def fitted(name: str, view: str) -> Score:
        apply = DETECTORS[name].fit(known[view], options)
        return lambda logits, features: apply(logits.to(where), features.to(where))

    return {name: fitted(name, view) for name, view in needed.items()}


def _known(
    model: Classifier, train: ImageSet, sight: Sight, names: Sequence[str], description: str
) -> dict[str, FitData]:
    """What the views `names` show of the training images: on the model's device or, above LARGE, on disk, once for all
    ranks of a machine, seen and exchanged a part at a time.
    """
    where = device.of(model)
    labels = train.labels.to(where)
    one = see(model, _rows(train, slice(1)), sight, names=names, description=description)
    size = sum(part.nbytes for output in one.values() for part in output)  # of an image
    if size * len(train) <= LARGE:
        seen = see(model, train, sight, names=names, description=description)
        return {
            view: FitData(output.logits.to(where), output.features.to(where), labels) for view, output in seen.items()
        }

    def room(part: Tensor) -> Tensor:
        return images.as_tensor(distributed.shared((len(train), part.shape[1]), np.float32))

    kept = {view: Output(*map(room, output)) for view, output in one.items()}
    batch = images.batch_size(train.images)  # whole ones, so that each is the same as in one go
    step = batch * max(distributed.count(), scores.PART // (size * batch))
    for start in range(0, len(train), step):
        part = slice(start, start + step)
        seen = see(model, _rows(train, part), sight, names=names, description=description)
        for view, output in seen.items() if distributed.fills() else ():
            for all_of_it, some in zip(kept[view], output, strict=True):
                all_of_it[part] = some
                images.give_back(all_of_it[part])
    distributed.gathered(None)  # none looks at what another has still to write
    return {view: FitData(output.logits, output.features, labels) for view, output in kept.items()}


def _rows(image_set: ImageSet, part: slice) -> ImageSet:
    return ImageSet(image_set.images[part], image_set.labels[part], image_set.classes)


def score(fitted: Mapping[str, Score], seen: Mapping[str, Output]) -> dict[str, Tensor]:
    """The confidences (N,) of a set by each of the fitted detectors, on the CPU."""
    return {name: apply(*seen[DETECTORS[name].view]).cpu() for name, apply in fitted.items()}


@torch.no_grad()
def confidence(model: Classifier, name: str, apply: Score, batch: Tensor, sight: Sight) -> Tensor:
    """The fitted detector's confidences (N,) of a batch, on the CPU."""
    view = DETECTORS[name].view
    return apply(*views(model, batch.contiguous(memory_format=torch.channels_last), sight, [view])[view]).cpu()


def confidence_gradient(
    model: Classifier, name: str, apply: Score, batch: Tensor, sight: Sight, *, search: bool = False
) -> Tensor:
    """Gradient (N, C, H, W) of the detector's own confidence to the images, float32; a `search` follows
    `attacks.searching`.
    """
    view = DETECTORS[name].view
    return attacks.gradient(lambda x: apply(*views(model, x, sight, [view])[view]), batch, search=search)
