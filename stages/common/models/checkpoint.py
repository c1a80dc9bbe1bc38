"""The checkpoints that rebuild a model."""

import math
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.models.architectures import Classifier, build

FORMAT = 1  # of the checkpoint files


def checkpoint(model: Classifier) -> dict[str, Any]:
    """What `load_checkpoint` rebuilds `model` from, all of it readable with weights_only=True."""
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    return {"format": FORMAT, "model": dict(model.recipe), "state": state}


def load_checkpoint(path: str | Path) -> Classifier:
    """The model of a checkpoint file, on the CPU, in eval mode and float32.

    Raises UserError when the file is missing, damaged, of another project, or holds weights of another architecture.
    """
    content = artifacts.read_checkpoint(path)
    remedy = "delete it and run `dvc repro`"
    if content.get("format") != FORMAT or not {"model", "state"} <= content.keys():
        raise UserError(f"{path} is not a checkpoint of this project's format {FORMAT}; {remedy}")
    try:
        model = build(**content["model"])
        model.load_state_dict(content["state"])
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 200 else f"{reason[:200]}..."
        raise UserError(f"{path} holds weights of another architecture ({reason}); {remedy}") from None
    if not all(math.isfinite(float(value.double().sum())) for value in content["state"].values()):
        raise UserError(f"{path} holds weights that are not finite; {remedy}")
    return model.float().eval()
