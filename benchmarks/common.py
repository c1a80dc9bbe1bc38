"""What the benchmarks share: timing two sides in turn, the machine, embedded images for --quick."""

import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

# torchvision's compiled operators do not load beside every build of CPU torch, and nothing here calls them.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))


def alternate(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each side. The sides take turns, so that a slow spell of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> str:
    """CPU model, cores, threads and torch version, in one line."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line), cpu)
    return f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def digits(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small untrained net and `count` of scikit-learn's digits: enough to compare predictions in seconds."""
    data = load_digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
    images = torch.tensor(data.images[:count], dtype=torch.float32)[:, None] / 16
    return net, images, torch.tensor(data.target[:count], dtype=torch.int64)
