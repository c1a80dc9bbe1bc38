"""How long an image of 224 pixels takes: the pipeline's ResNet-18, and torchvision's own, evaluated, attacked, trained.

python -m benchmarks.large     # a minute; writes the table into docs/performance.md
Images are made up, on disk as prepare writes them; --quick uses a few small ones and a narrow net and writes nothing.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import common
from stages.common import artifacts, attacks, device, evaluation, images, models, robustness, vision
from stages.common.errors import run
from stages.common.images import ImageSet

DOCUMENT = Path("docs/performance.md")
START, END = "<!-- table: python -m benchmarks.large -->", "<!-- /table of large images -->"
CLASSES = [f"class {number}" for number in range(10)]
EPS = 8 / 255
BATCH_SIZE = 24  # of training


def made_up(folder: Path, count: int, side: int) -> ImageSet:
    """A prepared set of `count` images of noise."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (count, 3, side, side), np.uint8), np.arange(count) % len(CLASSES)
    path = folder / "large.npz"
    artifacts.write_arrays(path, images=pixels, labels=labels, classes=np.array(CLASSES))
    return images.read(path)


def nets(quick: bool) -> dict[str, nn.Module]:
    """Untrained: what they say does not change how long they take."""
    ours = models.build("resnet18", channels=3, classes=CLASSES, width=16 if quick else 64)
    peer = vision.torchvision().models.resnet18(num_classes=len(CLASSES)).to(memory_format=torch.channels_last)
    return {"the pipeline's": ours.eval(), "torchvision's": peer.eval()}


def training_epoch(model: nn.Module, image_set: ImageSet) -> None:
    """Steps of adversarial training: one gradient for an FGSM example, one for the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for part in torch.arange(len(image_set)).split(BATCH_SIZE):
        batch = image_set.take(part)
        x = attacks.fgsm(model, images.to_float(batch.images), batch.labels, EPS)
        loss = F.cross_entropy(model.train()(x), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval()


def measure(quick: bool) -> dict[str, dict[str, float]]:
    """Net -> what is done -> milliseconds an image, the median of turns."""
    count, side, repeats = (8, 72, 1) if quick else (48, 224, 3)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        image_set = made_up(Path(folder), count, side)
        sides = nets(quick)
        found: dict[str, dict[str, float]] = {name: {} for name in sides}
        for what, call in work(image_set).items():
            seconds = common.alternate({name: partial(call, net) for name, net in sides.items()}, repeats)
            for name in sides:
                found[name][what] = 1000 * seconds[name] / count
    return found


def work(image_set: ImageSet) -> dict[str, Callable[[nn.Module], object]]:
    """What is measured, by its name in the table."""
    return {
        "evaluated": lambda net: evaluation.predictions(net, image_set.images),
        "under FGSM": lambda net: robustness.fgsm_predictions(net, image_set, [EPS]),
        "trained adversarially": lambda net: training_epoch(net, image_set),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    columns = next(iter(found.values()))
    lines = [f"| ms an image of 224x224 | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {name} ResNet-18 | {' | '.join(f'{ms:.0f}' for ms in row.values())} |" for name, row in found.items()]
    return "\n".join(lines)


def main() -> None:
    quick = common.asked_quick(__doc__)
    device.keep_freed_memory()
    start = time.perf_counter()
    shown = table(measure(quick))
    print(shown)
    if not quick:
        common.put_table(DOCUMENT, START, END, f"Measured on {common.machine()}.\n\n{shown}")
        print(f"{(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    run(main)
