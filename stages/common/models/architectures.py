"""The architectures, by name in ARCHITECTURES.

Every model takes pixels in [0, 1] and normalises them itself, so that an attack's budget always means pixels. Every
model has `forward(images) -> logits (N, K)`, `features(images) -> penultimate features (N, D)` and `classes`, K names.
It is made of `maps`, `pool` and `head`: logits are head(pool(last of maps)), and what lies between is there for whoever
looks inside. Any input of 8x8 to 512x512 pixels and any number of channels will do.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.errors import UserError
from stages.common.normalization import Moments

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu}  # of whitened_cnn
STEM_SIDE = 64  # pixels of the maps that the first layer passes on, at most; those of larger images are pooled


class Normalize(nn.Module):
    """(images - mean) / std per channel, with the training images' moments kept in the checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    @torch.no_grad()
    def set(self, moments: Moments) -> None:
        """Take given moments. Raises UserError for another number of channels."""
        channels = len(self.mean)
        if len(moments.mean) not in (1, channels):
            raise UserError(
                f"the normalisation {moments} is for {len(moments.mean)} channels, and the images have {channels}"
            )
        self.mean.copy_(torch.tensor(moments.mean).expand(channels).view(-1, 1, 1))
        self.std.copy_(torch.tensor(moments.std).expand(channels).view(-1, 1, 1))

    @torch.no_grad()
    def adapt(self, images: Tensor) -> None:
        """Take the moments of `images`, float (N, C, H, W)."""
        self.mean.copy_(images.mean((0, 2, 3)).view(-1, 1, 1))
        self.std.copy_(images.std((0, 2, 3)).clamp_min(1e-3).view(-1, 1, 1))


class Classifier(nn.Module):
    """What the models share: the normalisation, the class names, `forward`, and `recipe`, the arguments of `build`."""

    recipe: dict[str, Any]
    size: int | None = None  # pixels a side of the images it takes; None: any
    remarks: Sequence[str] = ()  # what there is to say of a model before it is judged
    has_features = True  # whether `features` and `head` are what their names say, and...
    has_stages = True  # ...whether `layers` has more than the features: somebody else's model may lack either

    def __init__(self, channels: int, classes: Sequence[str]):
        super().__init__()
        self.classes = list(classes)
        self.normalize = Normalize(channels)

    def adapt(self, images: Tensor, noise: float = 0.0) -> None:
        """Fit what is fixed before training starts to some training images, float (N, C, H, W) in [0, 1], which will be
        seen with perturbations of up to `noise` a pixel.
        """
        self.normalize.adapt(images)

    def maps(self, images: Tensor) -> list[Tensor]:
        """What each group of layers gives, (N, C, H, W), from the first to the last."""
        raise NotImplementedError

    def pool(self, maps: Tensor) -> Tensor:
        """Penultimate features (N, D) of the last maps."""
        raise NotImplementedError

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of penultimate features."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        return self.pool(self.maps(images)[-1])

    def layers(self, images: Tensor) -> list[Tensor]:
        """The mean over the pixels of each group's maps, (N, C) each, and the penultimate features last."""
        maps = self.maps(images)
        return [*(group.mean((2, 3)) for group in maps), self.pool(maps[-1])]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def _at_most(side: int, maps: Tensor) -> Tensor:
    """`maps` pooled to at most `side` x `side`; smaller ones as they are. What a stem gives of a large image costs more
    than all later layers together, and their view of it would be a narrow one.
    """
    pooled = [-(-length // side) for length in maps.shape[-2:]]
    return maps if max(pooled) == 1 else F.max_pool2d(maps, pooled)


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _batch_norm_without_scale(channels: int) -> nn.BatchNorm2d:
    """BatchNorm whose scale stays 1: the next convolution can scale as well, and one rate then suits all weights."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)  # few, large batches: a short memory follows the weights better
    norm.weight.requires_grad_(False)
    return norm


class WhitenedCNN(Classifier):
    """A small relative of airbench94 (Jordan 2024): a frozen whitening stem, then groups of two 3x3 convolutions.

    Maps of under 4 pixels are not pooled, so that 8x8 inputs pass. `activation` is one of ACTIVATIONS; a checkpoint
    that names none has ReLU. Raises ValueError for another.
    """

    def __init__(self, channels: int, classes: Sequence[str], widths: Sequence[int], activation: str = "relu"):
        super().__init__(channels, classes)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        patch = 4 * channels  # a 2x2 patch
        self.whiten = nn.Conv2d(channels, 2 * patch, 2)
        self.whiten.weight.requires_grad_(False)
        assert self.whiten.bias is not None  # a Conv2d has one unless told otherwise
        nn.init.zeros_(self.whiten.bias)
        self.first, self.second = nn.ModuleList(), nn.ModuleList()
        self.first_norm, self.second_norm = nn.ModuleList(), nn.ModuleList()
        inputs = 2 * patch
        for width in widths:
            self.first.append(_conv3x3(inputs, width))
            self.first_norm.append(_batch_norm_without_scale(width))
            self.second.append(_conv3x3(width, width))
            self.second_norm.append(_batch_norm_without_scale(width))
            inputs = width
        for conv in [*self.first, *self.second]:
            nn.init.dirac_(conv.weight[: conv.in_channels])  # start as near to the identity as the widths allow
        self.linear = nn.Linear(inputs, len(self.classes), bias=False)

    @torch.no_grad()
    def adapt(self, images: Tensor, noise: float = 0.0) -> None:
        """The stem whitens patches of images with independent perturbations of +-`noise`: by those of images alone it
        would lift the faint high frequencies, where an attack is louder than what it hides, thirtyfold.
        """
        super().adapt(images)
        patches = self.normalize(images).unfold(2, 2, 1).unfold(3, 2, 1)  # (N, C, H-1, W-1, 2, 2)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()
        perturbed = (noise / self.normalize.std.double()).square().flatten().repeat_interleave(4)  # variances
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches) + torch.diag(perturbed))
        weights = (vectors / (values + 5e-4).sqrt()).T.flip(0).view(-1, *self.whiten.weight.shape[1:])
        self.whiten.weight.copy_(torch.cat([weights, -weights]))

    def maps(self, images: Tensor) -> list[Tensor]:
        x, maps = _at_most(STEM_SIDE, self.activation(self.whiten(self.normalize(images)))), []
        for first, first_norm, second, second_norm in zip(
            self.first, self.first_norm, self.second, self.second_norm, strict=True
        ):
            x = first(x)
            if min(x.shape[-2:]) >= 4:
                x = F.max_pool2d(x, 2)
            x = self.activation(first_norm(x))
            x = self.activation(second_norm(second(x)))
            maps.append(x)
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        # amax's gradient goes where the map equals its largest value. A compiled graph computes the map once more for
        # that, in Triton without bfloat16's rounding in between: none is equal, and 0/0 is no number. Hence by index
        if torch.compiler.is_compiling():
            return F.adaptive_max_pool2d(maps, 1).flatten(1)
        return maps.amax((2, 3))

    def head(self, features: Tensor) -> Tensor:
        return self.linear(features) / 9  # airbench's scale: logits of order 1 at the start


class SimpleCNN(Classifier):
    """The reproduced study's LeNet-sized net (LeCun 1998): two 5x5 convolutions and three linear layers.

    Deviation: borders are padded and the last maps are pooled to 5x5, so that any input of 8 to 512 pixels will do.
    """

    def __init__(self, channels: int, classes: Sequence[str]):
        super().__init__(channels, classes)
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=2)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, len(self.classes))

    def maps(self, images: Tensor) -> list[Tensor]:
        first = _at_most(STEM_SIDE, F.max_pool2d(F.relu(self.conv1(self.normalize(images))), 2))
        return [first, F.max_pool2d(F.relu(self.conv2(first)), 2)]

    def pool(self, maps: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(maps, 5).flatten(1)
        return F.relu(self.fc2(F.relu(self.fc1(x))))

    def head(self, features: Tensor) -> Tensor:
        return self.fc3(features)


class _PreActBlock(nn.Module):
    """BN-ReLU-conv twice and a shortcut (He 2016, Identity Mappings in Deep Residual Networks)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv3x3(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _conv3x3(outputs, outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.conv1(y)
        return self.conv2(F.relu(self.norm2(y))) + shortcut


class ResNet18(Classifier):
    """PreAct ResNet-18, the net of most published CIFAR-10 robustness figures. `width` is 64 there."""

    def __init__(self, channels: int, classes: Sequence[str], width: int):
        super().__init__(channels, classes)
        self.stem = _conv3x3(channels, width)
        groups, inputs = [], width
        for group in range(4):
            outputs = width * 2**group
            first = _PreActBlock(inputs, outputs, 1 if group == 0 else 2)
            groups.append(nn.Sequential(first, _PreActBlock(outputs, outputs, 1)))
            inputs = outputs
        self.groups = nn.ModuleList(groups)
        self.norm = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, len(self.classes))

    def maps(self, images: Tensor) -> list[Tensor]:
        x, maps = _at_most(STEM_SIDE, self.stem(self.normalize(images))), []
        for group in self.groups:
            x = group(x)
            maps.append(x)
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        return F.relu(self.norm(maps)).mean((2, 3))

    def head(self, features: Tensor) -> Tensor:
        return self.linear(features)


ARCHITECTURES: dict[str, Callable[..., Classifier]] = {
    "whitened_cnn": WhitenedCNN,
    "simple_cnn": SimpleCNN,
    "resnet18": ResNet18,
}
