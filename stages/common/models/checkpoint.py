"""A new model from its recipe, and the checkpoints that rebuild one."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stages.common import artifacts, workspace
from stages.common.errors import UserError
from stages.common.models import origins, weights
from stages.common.models.architectures import ARCHITECTURES, Classifier
from stages.common.models.foreign import Foreign
from stages.common.normalization import NORMALIZATIONS, Moments
from stages.common.origin_names import CUSTOM, is_origin, is_outside

FORMAT = 1  # of the checkpoint files


def build(
    name: str, *, channels: int, classes: Sequence[str], weights_file: Path | None = None, **options: Any
) -> Classifier:
    """A new model in channels_last memory format (1.5 to 2 times faster on a CPU) with weights from torch's generator,
    or those of a file.

    `options` are the architecture's own: widths and activation (whitened_cnn), width (resnet18); those of `custom` are
    `_custom`'s. Raises ValueError for another name, UserError for weights of another architecture, and for a custom
    model that cannot be built or is no classifier.
    """
    if name == CUSTOM:
        return _custom(channels, classes, weights_file, **options)
    if name not in ARCHITECTURES:
        raise ValueError(f"model {name!r} is not one of {', '.join([*ARCHITECTURES, CUSTOM])}")
    model = ARCHITECTURES[name](channels, classes, **options)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks this one
    model.recipe = {"name": name, "channels": channels, "classes": list(classes), **options}
    if weights_file is not None:
        weights.load(model, weights_file)
    return model


def _custom(
    channels: int,
    classes: Sequence[str],
    weights_file: Path | None,
    *,
    origin: str,
    size: int,
    pretrained: bool = False,
    moments: Moments | None = NORMALIZATIONS["none"],
) -> Classifier:
    """Somebody else's model, for square images of `size` pixels; `moments` of None are fitted by `adapt`. The path of a
    checkpoint of this project stands for the model in it.
    """
    if not is_origin(origin):
        return load_checkpoint(workspace.file(origin) or origin)
    found = origins.find(origin, classes=len(classes), channels=channels, pretrained=pretrained)
    if weights_file is not None:
        weights.load(found.module, weights_file)
    return Foreign(found.module, origin=origin, channels=channels, size=size, classes=classes, moments=moments)


def checkpoint(model: Classifier) -> dict[str, Any]:
    """What `load_checkpoint` rebuilds `model` from, all of it readable with weights_only=True."""
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    return {"format": FORMAT, "model": dict(model.recipe), "state": state}


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of this project, and not weights alone."""
    try:
        return _is_ours(artifacts.read_checkpoint(path))
    except UserError:
        return False


def _is_ours(content: dict[str, Any]) -> bool:
    form = content.get("format")
    return isinstance(form, int) and form == FORMAT and {"model", "state"} <= content.keys()


def load_checkpoint(path: str | Path) -> Classifier:
    """The model of a checkpoint file, on the CPU, in eval mode and float32.

    A model of somebody else is built by its own code, which the checkpoint names: a module on Python's path, or a file
    below the working folder and no other, since a checkpoint may come from anywhere. Raises UserError when the file is
    missing, damaged, of another project, or holds weights of another architecture, and when that code is not at hand.
    """
    content = artifacts.read_checkpoint(path)
    remedy = "delete it and run `dvc repro`"
    if not _is_ours(content):
        raise UserError(f"{path} is not a checkpoint of this project's format {FORMAT}; {remedy}")
    _refuse_code_from_elsewhere(path, content["model"])
    try:
        model = build(**content["model"])
        model.load_state_dict(content["state"])
    except UserError as error:
        raise UserError(
            f"{path} is a model of {content['model'].get('origin')}, which is needed here: {error}"
        ) from None
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 200 else f"{reason[:200]}..."
        raise UserError(f"{path} holds weights of another architecture ({reason}); {remedy}") from None
    if not all(math.isfinite(float(value.double().sum())) for value in content["state"].values()):
        raise UserError(f"{path} holds weights that are not finite; {remedy}")
    return model.float().eval()


def _refuse_code_from_elsewhere(path: str | Path, recipe: object) -> None:
    origin = str(recipe.get("origin", "")) if isinstance(recipe, dict) else ""
    if is_outside(origin):
        raise UserError(
            f"{path} is a model of {origin}, whose code lies outside of this folder and is not run for a checkpoint; "
            "put it here and name it by a relative path"
        )
