"""Seconds to 60 % test accuracy, the reproduced study's figure: its own recipe against ours, in one run.

Theirs: LeNet-5 as PyTorch's tutorials write it, Adam at 0.001, batches of 32 from a DataLoader over pictures, scaled to
[-1, 1], measured after each epoch. Ours: `training.train` with the recipe of params.yaml, but small batches, over the
shortest of LENGTHS that gets there. Evaluation is not counted on either side.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks import common
from benchmarks.training import Pictures
from stages.common import device, evaluation, images, params, training
from stages.common.errors import run
from stages.common.images import ImageSet
from stages.common.models.architectures import SimpleCNN

GOAL = 0.6
EPOCHS = 30  # after which the study's recipe is given up
BATCH_SIZE = 64  # ours: in a race as short as this, steps count; the rate goes with its square root
SHARES = (1 / 12, 1 / 11, 1 / 10, 1 / 8, 1 / 6, 1 / 4, 1 / 2, 1)  # of the training images, for two epochs
LENGTHS = (*((2, share) for share in SHARES), (4, 1), (8, 1), (16, 1))  # epochs, share


class LeNet(SimpleCNN):
    """The pipeline's `simple_cnn` without its padding: 32x32 pixels only, as the study and the tutorials have it."""

    def __init__(self, channels: int, classes: Sequence[str]):
        super().__init__(channels, classes)
        self.normalize.mean.fill_(0.5)  # pixels to [-1, 1]
        self.normalize.std.fill_(0.5)
        self.conv1.padding = self.conv2.padding = (0, 0)


def study(train: ImageSet, test: ImageSet, goal: float) -> tuple[float, float]:
    """Seconds of training until `goal` is reached, and the accuracy then."""
    from torchvision import transforms

    torch.manual_seed(0)
    model = LeNet(train.images.shape[1], train.classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Pictures(train, transforms.ToTensor()), batch_size=32, shuffle=True)
    seconds = 0.0
    for epoch in range(1, EPOCHS + 1):
        start = time.perf_counter()
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        accuracy = evaluation.accuracy(model.eval(), test)
        print(f"  the study's recipe, epoch {epoch}: {accuracy:.3f} after {seconds:.1f} s", flush=True)
        if accuracy >= goal:
            break
    return seconds, accuracy


def ours(train: ImageSet, test: ImageSet, goal: float) -> tuple[float, float]:
    """Seconds of the shortest training that reaches `goal`, and its accuracy."""
    knobs = params.load()
    few = common.take(train, 10)  # validation is no part of the race
    for epochs, share in LENGTHS:
        plan = replace(training.Recipe.from_params(knobs, "standard", torch.device("cpu")), epochs=epochs)
        rate = plan.learning_rate * (BATCH_SIZE / plan.batch_size) ** 0.5
        plan = replace(plan, batch_size=BATCH_SIZE, learning_rate=rate)
        some = common.take(train, round(share * len(train)))
        model = training.new_model(knobs, "standard", some)
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            training.train(model, some, few, plan, resume_in=Path(folder), name="ours")
            seconds = time.perf_counter() - start
        accuracy = evaluation.accuracy(model, test)
        print(f"  ours, {epochs} x {len(some):,} images: {accuracy:.3f} after {seconds:.1f} s", flush=True)
        if accuracy >= goal:
            break
    return seconds, accuracy


def measure(quick: bool) -> dict[str, float]:
    """Seconds and accuracy of both sides, and theirs over ours."""
    device.keep_freed_memory()
    if quick:
        digits = common.digits(1200)
        enlarged = ImageSet(F.interpolate(digits.images, size=32), digits.labels, digits.classes)
        train, test = common.hold_out(enlarged, 300)
    else:
        train, test = images.read("train"), images.read("test")
    ours_s, ours_accuracy = ours(train, test, GOAL)
    study_s, study_accuracy = study(train, test, GOAL)
    return {
        "ours_s": ours_s,
        "ours_accuracy": ours_accuracy,
        "study_s": study_s,
        "study_accuracy": study_accuracy,
        "ratio": study_s / ours_s,
    }


def main() -> None:
    row = measure(common.asked_quick(__doc__))
    print(common.machine())
    print(
        f"time to {GOAL:.0%}: ours {row['ours_s']:.1f} s ({row['ours_accuracy']:.3f}), the study's recipe "
        f"{row['study_s']:.1f} s ({row['study_accuracy']:.3f}): {row['ratio']:.1f} times"
    )


if __name__ == "__main__":
    run(main)
