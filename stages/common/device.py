"""Which device the work is done on, and where a model is already."""

import contextlib
import ctypes
import os
import sys

import torch
from torch import nn

from stages.common import distributed
from stages.common.errors import UserError


def choose(name: str) -> torch.device:
    """The torch device of the parameter `device`: auto takes CUDA, then MPS, then the CPU. A rank has a GPU of its own.

    Raises UserError when the named device is not on this machine.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    keep_freed_memory()
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present[name]:
        there = ", ".join(kind for kind, is_there in present.items() if is_there)
        raise UserError(f"params.yaml: device = {name!r}: this machine has {there}; `auto` takes what is there")
    if name == "cuda":
        _repeatable()
        if (rank := distributed.local_rank()) is not None:
            return torch.device(name, rank)
    return torch.device(name)


def of(model: nn.Module) -> torch.device:
    """Where `model` is: the device of its first parameter or buffer, the CPU if it has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def bfloat16(precision: str, device: torch.device) -> bool:
    """Whether steps of training and of attacks run in bfloat16: as told, or with `auto` where the device has
    instructions for it.

    On a CPU that has them (AVX-512 BF16, AMX) a step takes 0.55 of the time; one without them emulates, far slower.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _repeatable() -> None:
    """Have CUDA give equal bytes in equal runs, and float32 where that is asked for: TF32 keeps ten bits of a number.

    Where torch has no repeatable kernel it says so, once, and goes on with another.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself with a fixed workspace alone
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False  # it chooses by the clock
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, and for nothing


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: otherwise each batch's large maps go back to the system and come back as page
    faults, a fifth of the time of a training step. Elsewhere (macOS, Windows, musl) nothing is done.
    """
    if sys.platform != "linux":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)
        libc.mallopt(mmap_max, 0)
