"""Somebody else's module behind the face of `Classifier`, looked at before it is trusted.

Whatever maps images (N, C, H, W) to one score a class will do. What it does otherwise than a plain classifier is either
put right and named in `remarks`, or refused.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages.common.errors import UserError
from stages.common.models.architectures import Classifier
from stages.common.models.hold import frozen
from stages.common.models.insides import Opened, opened
from stages.common.models.origins import said
from stages.common.normalization import NORMALIZATIONS, Moments
from stages.common.origin_names import CUSTOM

PROBES = 2  # made-up images that a module is looked at with
SIZES = (32, 224, 64, 96, 28, 128, 256, 299, 384)  # tried where a module refuses the size of the images
TINY = 1e-30  # a probability of 0 has no logarithm


class Foreign(Classifier):
    """A module of `origin`, for images of `channels` and `size` x `size` pixels in [0, 1], and its class names.

    `features` are the input of its last linear layer, where that layer applied to them gives the logits; `layers` are
    the outputs of its top-level stages, averaged over positions. Where a module has no such layer or stages, its logits
    stand for both, and `has_features` or `has_stages` says so. Raises UserError for a module that is no classifier.
    """

    size: int
    remarks: list[str]

    def __init__(
        self,
        module: nn.Module,
        *,
        origin: str,
        channels: int,
        size: int,
        classes: Sequence[str],
        moments: Moments | None = NORMALIZATIONS["none"],
    ):
        """`moments` of None are taken from the training images, by `adapt`."""
        super().__init__(channels, classes)
        self.origin, self.size, self.remarks = origin, size, []
        self.module = module
        self._adapts = moments is None
        if moments is not None:
            self.normalize.set(moments)
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in module.parameters()):
            self.remarks.append("its weights are of half precision: computed in float32")
        self.float()
        self._look()
        self.recipe = {"name": CUSTOM, "origin": origin, "channels": channels, "size": size, "classes": self.classes}

    def adapt(self, images: Tensor, noise: float = 0.0) -> None:
        if self._adapts:
            super().adapt(images, noise)

    def forward(self, images: Tensor) -> Tensor:
        return self._logits(self._whole(self._input(images)))

    def features(self, images: Tensor) -> Tensor:
        return self.layers(images)[-1]

    def layers(self, images: Tensor) -> list[Tensor]:
        if self._opened is None:
            return [self(images)]
        found = self._opened.parts(self._input(images))
        logits = self._logits(self._take(found.output))
        last = found.features if self.has_features and found.features is not None else logits
        return [*map(_pooled, found.stages), last]

    def head(self, features: Tensor) -> Tensor:
        if self._opened is None or not self.has_features:
            return features
        scores = self._opened.head(features).float()
        return self._scale * (scores.log_softmax(1) if self._probabilities else scores)

    def _input(self, images: Tensor) -> Tensor:
        return self.normalize(images).contiguous(memory_format=self._format)

    def _whole(self, x: Tensor) -> Tensor:
        return self._take(self.module(x))

    def _logits(self, scores: Tensor) -> Tensor:
        scores = scores.float()
        return scores.clamp_min(TINY).log() if self._probabilities else scores

    def _look(self) -> None:
        """Find out what kind of module this is; refuse what cannot be judged."""
        self._format, self._probabilities = torch.contiguous_format, False
        self.has_features, self.has_stages, self._scale = False, False, 1.0
        self._opened: Opened | None = None
        generator = torch.Generator().manual_seed(0)
        probe = torch.rand(PROBES, len(self.normalize.mean), self.size, self.size, generator=generator)
        with frozen(self):
            output = self._try(probe)
            self._take, remark = _taker(output, len(self.classes), self.origin)
            self.remarks += [remark] if remark else []
            scores = self._take(output)
            self._refuse(scores)
            self._refuse_changes(probe)
            self._recognise_probabilities(scores)
            self._refuse_no_gradient(probe)
            self._choose_format(probe)
            self._open(probe)

    @torch.no_grad()
    def _try(self, probe: Tensor) -> Any:
        try:
            return self.module(self._input(probe))
        except Exception as error:  # whatever somebody else's forward raises
            raise UserError(self._why(error, probe)) from None

    def _why(self, error: Exception, probe: Tensor) -> str:
        """What a module that cannot be run on the probe would take."""
        channels, size = probe.shape[1], probe.shape[2]
        wanted = input_channels(self.module)
        if wanted not in (None, channels):
            return f"{self.origin} takes images of {wanted} channels, and these have {channels}"
        for other in SIZES:
            try:
                self.module(self._input(probe.new_zeros(PROBES, channels, other, other)))
            except Exception:
                continue
            return f"{self.origin} does not take images of {size}x{size} pixels, but of {other}x{other}: --size {other}"
        try:
            self.module(self._input(probe[:1]))
        except Exception:
            return f"{self.origin} fails on images of ({channels}, {size}, {size}) ({said(error)})"
        return f"{self.origin} takes one image at a time, or another fixed number ({said(error)}); export it for any"

    def _refuse(self, scores: Tensor) -> None:
        wanted, found = len(self.classes), scores.shape[1]
        if found == 1:
            raise UserError(f"{self.origin} gives one number an image: give one a class, two for two classes")
        if found != wanted:
            raise UserError(
                f"{self.origin} gives {found} scores an image, and there are {wanted} classes: name the {found} in the "
                "model's order, one a line, with --classes FILE"
            )
        if not scores.isfinite().all():
            raise UserError(f"{self.origin} gives scores that are not finite (NaN or infinity) on made-up images")

    def _refuse_changes(self, probe: Tensor) -> None:
        """A model that is random is named; one that carries something from call to call cannot be judged."""
        before = {key: value.clone() for key, value in self.module.state_dict().items()}
        same = [self._seeded(probe, seed) for seed in (1, 1, 2)]
        after = self.module.state_dict()
        moved = [key for key, value in before.items() if not torch.equal(value, after[key])]
        if moved or not torch.equal(same[0], same[1]):
            what = f"its {moved[0]} changes" if moved else "the same images give other scores, whatever the seed"
            raise UserError(
                f"{self.origin} changes from call to call ({what}), so no figure of it holds: in eval mode a model "
                "must keep nothing of what it has seen"
            )
        if not torch.equal(same[0], same[2]):
            on = [
                name
                for name, m in self.module.named_modules()
                if isinstance(m, nn.modules.dropout._DropoutNd) and m.training
            ]
            cause = f"dropout is left on in {on[0]}" if on else "a random defence, or dropout that ignores eval mode"
            self.remarks.append(f"it is random ({cause}): every figure is of one draw, and attacks would average it")

    @torch.no_grad()
    def _seeded(self, probe: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._whole(self._input(probe)).clone()

    def _recognise_probabilities(self, scores: Tensor) -> None:
        if bool((scores >= 0).all()) and torch.allclose(scores.sum(1), torch.ones(len(scores)), atol=1e-3):
            self._probabilities = True
            self.remarks.append(
                "its outputs are probabilities (a softmax inside): their logarithm is attacked, which is a logit"
            )

    def _refuse_no_gradient(self, probe: Tensor) -> None:
        with torch.enable_grad():
            moved = probe.clone().requires_grad_(True)
            try:
                (slope,) = torch.autograd.grad(self(moved).logsumexp(1).sum(), moved, allow_unused=True)
            except RuntimeError as error:
                raise UserError(
                    f"{self.origin} gives no gradient to its images ({said(error)}): attacks that follow one say "
                    "nothing of it; take no_grad, detach, rounding or quantisation out of its forward"
                ) from None
        if slope is None:
            raise UserError(f"{self.origin} does not look at its images: no gradient reaches them")

    def _choose_format(self, probe: Tensor) -> None:
        """channels_last where the module takes it and answers alike: up to twice as fast on a CPU."""
        plain = self._seeded(probe, 1)
        self._format = torch.channels_last
        try:
            if torch.allclose(self._seeded(probe, 1), plain, rtol=1e-3, atol=1e-4):
                self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                return
        except RuntimeError:
            pass  # a `view` of maps, which asks for the plain order
        self._format = torch.contiguous_format

    @torch.no_grad()
    def _open(self, probe: Tensor) -> None:
        """Find the last linear layer and the top-level stages, and see that they are what they seem."""
        self._opened = opened(self.module, self._input(probe), len(self.classes))
        if self._opened is None:
            return
        found = self._opened.parts(self._input(probe))
        self.has_stages = len(found.stages) > 0
        if found.features is None or found.features.ndim != 2:
            return
        linear, scores = self._opened.head(found.features).float(), self._take(found.output).float()
        if self._probabilities:
            linear, scores = linear.log_softmax(1), self._logits(scores)
        if linear.shape == scores.shape:
            if not torch.allclose(linear, scores, rtol=1e-3, atol=1e-4):  # a net may scale its last outputs
                self._scale = float((linear * scores).sum() / linear.square().sum())
            self.has_features = torch.allclose(self._scale * linear, scores, rtol=1e-3, atol=1e-4)


def input_channels(module: nn.Module) -> int | None:
    """How many channels the first convolution takes; None for a module that has none."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            return parameter.shape[1]
    return None


def _pooled(output: Tensor) -> Tensor:
    """The mean over the positions of a stage's output: maps (N, C, H, W) or (N, H, W, C), tokens (N, T, D)."""
    if output.ndim == 4:
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.mean((1, 2) if channels_last else (2, 3))
    return output.mean(1) if output.ndim == 3 else output


def _taker(output: Any, classes: int, origin: str) -> tuple[Callable[[Any], Tensor], str]:
    """How to take the scores (N, K) out of what a module gives, and a remark where that is more than they."""
    if isinstance(output, Tensor):
        if output.ndim == 4 and output.shape[2:] == (1, 1):
            return lambda out: out.flatten(1), ""
        if output.ndim in (1, 2):
            return lambda out: out.reshape(len(out), -1), ""
        raise UserError(
            f"{origin} gives {tuple(output.shape)} for {PROBES} images: a classifier gives one score a class"
        )
    if isinstance(getattr(output, "logits", None), Tensor):  # as the outputs of Hugging Face's models
        return lambda out: out.logits, "it gives several outputs: its `logits` are judged"
    if isinstance(output, Mapping | tuple | list):
        parts = dict(output) if isinstance(output, Mapping) else dict(enumerate(output))
        shaped = [key for key, part in parts.items() if isinstance(part, Tensor) and part.shape == (PROBES, classes)]
        if shaped:
            key = shaped[0]
            remark = f"it gives {len(parts)} outputs: {key!r}, the first with a score a class, is judged"
            return lambda out: out[key], remark
    raise UserError(f"{origin} gives {type(output).__name__}, and no tensor of {classes} scores an image in it")
