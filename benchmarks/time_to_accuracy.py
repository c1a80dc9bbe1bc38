"""Minutes to 60 % test accuracy, the reproduced study's figure: its own recipe against ours, in one run.

Theirs: the LeNet-sized net, Adam at 0.001, batches of 32 from a DataLoader, images scaled to [-1, 1], measured after
each epoch. Ours: `training.train` with the recipe of params.yaml, cut to the fewest whole epochs that get there.
Evaluation is not counted on either side.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks import common
from stages.common import evaluation, images, models, params, training
from stages.common.errors import run
from stages.common.images import ImageSet

GOAL = 0.6
EPOCHS = 30  # after which the study's recipe is given up


class Pixels(Dataset):
    """Float images in [-1, 1], one by one, as the study's transforms give them."""

    def __init__(self, image_set: ImageSet):
        self.image_set = image_set

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.image_set.images[index].float() / 127.5 - 1, int(self.image_set.labels[index])


def study(train: ImageSet, test: ImageSet, goal: float) -> tuple[float, float]:
    """Seconds of training until `goal` is reached, and the accuracy then."""
    torch.manual_seed(0)
    model = models.build("simple_cnn", channels=train.images.shape[1], classes=train.classes)
    model.adapt(images.to_float(train.images[:1000]))
    model = model.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Pixels(train), batch_size=32, shuffle=True)
    seconds = 0.0
    for epoch in range(1, EPOCHS + 1):
        start = time.perf_counter()
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model((x + 1) / 2), y)  # the model normalises, as all here
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        accuracy = evaluation.accuracy(model.eval(), test)
        print(f"  the study's recipe, epoch {epoch}: {accuracy:.3f} after {seconds:.0f} s", flush=True)
        if accuracy >= goal:
            break
    return seconds, accuracy


def ours(train: ImageSet, test: ImageSet, goal: float) -> tuple[float, float]:
    """Seconds of the shortest training that reaches `goal`, and its accuracy."""
    knobs = params.load()
    for epochs in range(1, EPOCHS + 1):
        recipe = training.recipe(knobs, epochs=epochs, label_smoothing=knobs.training.label_smoothing)
        model, _ = training.new_model(knobs, train)
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            few = train.take(torch.arange(10))  # validation is no part of the race
            training.train(model, train, few, recipe, resume_in=Path(folder), name="ours")
            seconds = time.perf_counter() - start
        accuracy = evaluation.accuracy(model, test)
        print(f"  ours, {epochs} epochs: {accuracy:.3f} after {seconds:.0f} s", flush=True)
        if accuracy >= goal:
            break
    return seconds, accuracy


def measure(quick: bool) -> dict[str, float]:
    """Seconds and accuracy of both sides, and theirs over ours."""
    images.device("cpu")
    if quick:
        _, x, y = common.digits(1200)
        whole = ImageSet((x * 255).to(torch.uint8), y, list("0123456789"))
        train, test = whole.take(torch.arange(900)), whole.take(torch.arange(900, 1200))
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few embedded digits instead of CIFAR-10")
    row = measure(parser.parse_args().quick)
    print(common.machine())
    print(
        f"time to {GOAL:.0%}: ours {row['ours_s']:.0f} s ({row['ours_accuracy']:.3f}), the study's recipe "
        f"{row['study_s']:.0f} s ({row['study_accuracy']:.3f}): {row['ratio']:.1f} times"
    )


if __name__ == "__main__":
    run(main)
