"""A training epoch, augmentation included: ours against the loop that a PyTorch user would write with the same net.

The peer is a DataLoader with torchvision's transforms on each image, batches in PyTorch's own memory format, no word
to the allocator. Each side runs in a process of its own, since that word stays said, and reports its peak memory.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from stages.common import device, images, params, training
from stages.common.errors import run
from stages.common.images import ImageSet

COUNT = 8192  # images of an epoch: long enough for the start-up not to count
REPEATS = 3


def data(quick: bool) -> tuple[ImageSet, ImageSet]:
    """Training images, and as few validation images as a training takes."""
    if quick:
        pixels = torch.randint(256, (256, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        whole = ImageSet(pixels, torch.arange(256) % 10, list("0123456789"))
        return whole, common.take(whole, 10)
    return common.take(images.read("train"), COUNT), common.take(images.read("val"), 10)


def recipe(quick: bool) -> training.Recipe:
    """The study's own, for one epoch at full image size, so that both sides see the same images."""
    knobs = params.load()
    whole = replace(training.Recipe.from_params(knobs, "standard", torch.device("cpu")), epochs=1)
    return replace(whole, early_size=None, batch_size=64 if quick else whole.batch_size)


def ours(quick: bool) -> float:
    """Seconds of an epoch of `training.train`."""
    device.keep_freed_memory()
    train, val = data(quick)
    model = training.new_model(params.load(), "standard", train)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        training.train(model, train, val, recipe(quick), resume_in=Path(folder), name="ours")
        return time.perf_counter() - start


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images one by one as PIL pictures through `transform`, as torchvision.datasets.CIFAR10 gives them."""

    def __init__(self, image_set: ImageSet, transform: Callable[[Image.Image], torch.Tensor]):
        self.pictures = image_set.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels, self.transform = image_set.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = self.pictures[index]
        picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        return self.transform(picture), int(self.labels[index])


def augmenting(size: int, translate: int) -> Callable[[Image.Image], torch.Tensor]:
    """The transforms of tutorials: a random shift over a reflected border, a random mirror image."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomCrop(size, padding=translate, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )


def peer(quick: bool) -> float:
    """Seconds of an epoch of the loop that tutorials teach."""
    train, _ = data(quick)
    plan = recipe(quick)
    model = training.new_model(params.load(), "standard", train)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's annotation lacks this one
    pictures = Pictures(train, augmenting(train.images.shape[-1], plan.translate))
    loader = DataLoader(pictures, batch_size=plan.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad),
        lr=plan.learning_rate / 10,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        nesterov=True,
    )
    start = time.perf_counter()
    model.train()
    for x, y in loader:
        loss = F.cross_entropy(model(x), y, label_smoothing=plan.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def step_flop(quick: bool) -> float:
    """Floating-point operations of the training of one image: forward, and backward to the weights."""
    train, _ = data(quick)
    model = training.new_model(params.load(), "standard", train)
    x, y = images.to_float(train.images[:16]), train.labels[:16]
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    return counter.get_total_flops() / 16


def precision(quick: bool) -> torch.dtype:
    """That of the training step: bfloat16 where the processor multiplies in it, if params.yaml does not say."""
    return torch.bfloat16 if recipe(quick).bfloat16 else torch.float32


def matrix_product_flops(size: int, kind: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product of `size` squared in this precision, the best of six."""
    a = torch.rand(size, size).to(kind)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def measure(quick: bool) -> dict[str, float]:
    """images/s and peak memory (GB) of both sides, median of turns; our share of the speed of a matrix product in the
    `precision` of our step.
    """
    sides: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    speeds = []
    for _ in range(1 if quick else REPEATS):
        speeds.append(matrix_product_flops(256 if quick else 2048, precision(quick)))
        for side, turns in sides.items():
            command = [sys.executable, "-m", "benchmarks.training", "--side", side, *(["--quick"] if quick else [])]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            turns.append(json.loads(ran.stdout.splitlines()[-1]))
    count = len(data(quick)[0]) // recipe(quick).batch_size * recipe(quick).batch_size
    speed = {side: count / statistics.median(turn["seconds"] for turn in turns) for side, turns in sides.items()}
    memory = {side: max(turn["gigabytes"] for turn in turns) for side, turns in sides.items()}
    return {
        "ours_images_s": speed["ours"],
        "peer_images_s": speed["peer"],
        "ratio": speed["ours"] / speed["peer"],
        "ours_gb": memory["ours"],
        "peer_gb": memory["peer"],
        "share_of_matrix_product": speed["ours"] * step_flop(quick) / statistics.median(speeds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few noise images instead of CIFAR-10")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        seconds = {"ours": ours, "peer": peer}[arguments.side](arguments.quick)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"seconds": seconds, "gigabytes": peak / 2**30}))
        return
    found = measure(arguments.quick)
    print(common.machine())
    print(
        f"training epoch: {found['ours_images_s']:.0f} images/s against {found['peer_images_s']:.0f}, "
        f"{found['ratio']:.2f} times; peak memory {found['ours_gb']:.2f} GB against {found['peer_gb']:.2f}; "
        f"{found['share_of_matrix_product']:.2f} of the matrix product's speed"
    )


if __name__ == "__main__":
    run(main)
