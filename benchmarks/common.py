"""What the benchmarks share: timing two sides in turn, the machine, tables, embedded images for --quick."""

import argparse
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from stages.common import artifacts
from stages.common.errors import UserError

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


def asked_quick(description: str | None) -> bool:
    """Whether the command line says --quick, the one argument of most benchmarks; its --help shows `description`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few embedded images instead of CIFAR-10")
    return parser.parse_args().quick


def processor() -> str:
    """The CPU's model, as the system names it."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line), cpu)
    return cpu


def machine() -> str:
    """CPU model, cores, threads and torch version, in one line."""
    return f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def put_table(document: Path, start: str, end: str, table: str) -> None:
    """Put `table` between the lines `start` and `end` of a markdown document. Raises UserError if these are absent."""
    before, found, rest = document.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{document} lacks the lines {start} and {end}, between which the table belongs")
    artifacts.write_bytes(document, f"{before}{start}\n{table}\n{end}{after}".encode())


def put_row(path: Path, row: dict[str, object], key: list[str], *, places: int) -> None:
    """Put `row` into a CSV file that is sorted by the columns `key`, in place of the row that has the same ones."""
    rows = pd.DataFrame([row])
    if path.is_file():
        rows = pd.concat([pd.read_csv(path), rows]).drop_duplicates(key, keep="last")
    artifacts.write_table(path, rows.sort_values(key), places=places)


def digits(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small untrained net and `count` of scikit-learn's digits: enough to compare predictions in seconds."""
    data = load_digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
    images = torch.tensor(data.images[:count], dtype=torch.float32)[:, None] / 16
    return net, images, torch.tensor(data.target[:count], dtype=torch.int64)
