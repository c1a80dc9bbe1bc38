"""What the benchmarks share: timing two sides in turn, the machine, tables, embedded images for --quick."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import nn

from stages.common import artifacts, device, images
from stages.common.errors import UserError
from stages.common.images import ImageSet


def alternate(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
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


def budget(text: str) -> float:
    """A budget of the command line in pixels of [0, 1], which may be a fraction. Raises ValueError for another text."""
    try:
        found = float(Fraction(text))
    except ZeroDivisionError:
        raise ValueError(text) from None
    if not 0 <= found <= 1:
        raise ValueError(text)
    return found


def processor() -> str:
    """The CPU's model, as the system names it: one name stands for many generations, of which some lack the
    instructions that half of the time depends on, and then that is said.
    """
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line), cpu)
    return cpu if device.bfloat16("auto", torch.device("cpu")) else f"{cpu} without bfloat16"


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


def put_row(path: Path, row: Mapping[str, object], key: Sequence[str], *, places: int) -> None:
    """Put `row` into a CSV file that is sorted by the columns `key`, in place of the row that has the same ones."""
    rows = pd.DataFrame([row])
    if path.is_file():
        rows = pd.concat([pd.read_csv(path), rows]).drop_duplicates([*key], keep="last")
    artifacts.write_table(path, rows.sort_values([*key]), places=places)


def take(image_set: ImageSet, count: int) -> ImageSet:
    """A fair sample of `count` images."""
    return image_set.take(images.sample(image_set.labels, count))


def hold_out(image_set: ImageSet, count: int) -> tuple[ImageSet, ImageSet]:
    """All but a fair sample of `count` images, and that sample."""
    held_out = images.sample(image_set.labels, count)
    rest = torch.ones(len(image_set), dtype=torch.bool).index_fill(0, held_out, False)
    return image_set.take(rest.nonzero().squeeze(1)), image_set.take(held_out)


def digits(count: int) -> ImageSet:
    """A fair sample of `count` of scikit-learn's digits, for --quick: grey images of 8x8 pixels in ten classes."""
    data = load_digits()
    pixels = torch.from_numpy((data.images * 255 / 16).round().astype("uint8")).unsqueeze(1)
    return take(ImageSet(pixels, torch.from_numpy(data.target).long(), list("0123456789")), count)


def small_net() -> nn.Module:
    """An untrained net for the digits: enough to compare predictions in seconds."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
