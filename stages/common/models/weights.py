"""Somebody else's weights: read without running code, unwrapped, and loaded strictly."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.common import artifacts
from stages.common.errors import UserError

# Under which keys training scripts put the weights of a checkpoint, the likeliest first
WRAPPERS = ("state_dict", "model", "model_state_dict", "state", "net", "ema", "state_dict_ema", "model_ema")
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel's, torch.compile's, Lightning's, before every key
COUNTER = "num_batches_tracked"  # of BatchNorm: older files lack it, and nothing that is computed depends on it
NAMED = 5  # keys that a message names; more are counted


def load(module: nn.Module, path: Path) -> None:
    """Load the weights of `path` into `module`: every one of its tensors, and nothing that is too much.

    The file is .safetensors, or what `torch.save` wrote of a state dict, alone or in a dict of WRAPPERS. It is read
    without unpickling anything but tensors. Raises UserError that names what is missing, too much or of another shape.
    """
    wanted = module.state_dict()
    state = _without_prefixes(read(path), set(wanted))
    missing = [key for key in wanted if key not in state and not key.endswith(COUNTER)]
    extra = [key for key in state if key not in wanted]
    other = [
        f"{key} is {tuple(state[key].shape)} in the file, {tuple(wanted[key].shape)} in the model"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    faults = {"missing in the file": missing, "not in the model": extra, "of another shape": other}
    said = [f"{what}: {_some(keys)}" for what, keys in faults.items() if keys]
    if said:
        raise UserError(
            f"{path} holds the weights of another architecture, or of another number of classes:\n       "
            + "\n       ".join(said)
        )
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{path} holds weights that are not finite: {_some(broken)}; take an earlier checkpoint")
    module.load_state_dict(state, strict=False)  # complete but for COUNTER, as was just seen


def _without_prefixes(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The state with what stands before every one of its keys taken off, as long as they are not those wanted."""
    while not state.keys() <= wanted:
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name. Raises UserError for any other file; never runs code from it."""
    if not path.is_file():
        raise UserError(f"{path} is no file: name a .safetensors, .pt or .pth file of weights")
    return _unwrapped(path, _safetensors(path) if path.suffix == ".safetensors" else _pickled(path))


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file, or a damaged one ({error}); fetch it again") from None


def _pickled(path: Path) -> Any:
    if _is_torchscript(path):
        raise UserError(f"{path} is TorchScript, a model with its weights: pass ts:{path} as MODEL")
    if zipfile.is_zipfile(path) and artifacts.compressed(path):
        raise UserError(f"{path} is compressed, which torch never writes; save the weights again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        if isinstance(error, pickle.UnpicklingError) and (asked := re.search(r"(?:GLOBAL|class) (\S+)", str(error))):
            raise UserError(
                f"{path} holds more than tensors ({asked[1]}), and reading that could run code, so it is not read.\n"
                '       Where the file was made, keep the weights alone: torch.save(model.state_dict(), "weights.pt"), '
                "and pass the architecture as MODEL"
            ) from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is not a file of weights, or a damaged one ({reason}); fetch it again") from None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unwrapped(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict in `content`: itself, or what stands under one of WRAPPERS, however deep."""
    while isinstance(content, Mapping) and not _is_state(content):
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    if not _is_state(content):
        held = f"the keys {_some([str(key) for key in content])}" if isinstance(content, Mapping) else type(content)
        raise UserError(f"{path} holds {held}, not a state dict, nor one under {', '.join(WRAPPERS)}")
    return dict(content)


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more
