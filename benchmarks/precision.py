"""What bfloat16 would change where figures are made: each kind of pass over the robust model in it and in float32.

    python -m benchmarks.precision          # five minutes on a quiet machine

What an attack has found in either is judged in float32. A kind of pass may look for its way in bfloat16 if it finds as
much there as in float32. The audit's margins do so as they do there, by `attacks.searching`: each step's gradient in
bfloat16, whether an image is broken in float32. Everything else is in bfloat16 whole. Prints a table and writes it into
docs/performance.md, between its markers.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import common
from stages.common import artifacts, attacks, autoattack, device, evaluation, images, models, params
from stages.common.audit.margins import MARGIN_CLASSES, multi_targeted
from stages.common.audit.square import square_attack
from stages.common.errors import run
from stages.common.images import ImageSet

DOCUMENT = Path("docs/performance.md")
START, END = "<!-- table: python -m benchmarks.precision -->", "<!-- /table of precisions -->"
Attack = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
Right = Callable[[nn.Module], Tensor]  # a net -> which images it, or an attack on it, leaves right, bool (N,)


class InBfloat16(nn.Module):
    """A model whose every pass is in bfloat16, whatever those who call it say; its answers are float32."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.to(x.dtype)


def compared(quick: bool) -> list[dict[str, float | str]]:
    """A row for each kind of pass: on how many images, the accuracy that it leaves in float32 and in bfloat16, of how
    many images the two say different things, and how many times faster bfloat16 is.
    """
    device.keep_freed_memory()
    knobs = params.load()
    eps, steps = attacks.EIGHT, knobs.audit.pgd_steps
    model: nn.Module
    if quick:
        model, test = common.small_net(), common.digits(40)
        near, few, queries, longest = test, test, 5, steps
    else:
        test = images.read("test")
        model = models.load_checkpoint(artifacts.CHECKPOINTS / "robust.pt")
        near, few = nearest(model, common.take(test, 1000), eps, 40), common.take(test, 100)
        queries, longest = 2 * knobs.audit.square_queries, autoattack.STEPS

    def margins(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return multi_targeted(model, x, y, eps, classes=MARGIN_CLASSES, steps=steps, generator=generator)

    def apgd(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return autoattack.apgd_targeted(model, x, y, eps, classes=MARGIN_CLASSES, steps=longest, generator=generator)

    def square(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return square_attack(model, x, y, eps, queries=queries, generator=generator)

    def by(attack: Attack, image_set: ImageSet, seed: int) -> Right:
        x, y = images.to_float(image_set.images), image_set.labels
        return lambda net: attacks.withstood(model, attack(net, x, y, torch.Generator().manual_seed(seed)), y)

    def exact(right: Right) -> Tensor:
        return right(model)

    def whole(right: Right) -> Tensor:
        return right(InBfloat16(model).eval())

    def searching(right: Right) -> Tensor:
        with attacks.searching(bfloat16=True):
            return right(model)

    kinds: dict[str, tuple[ImageSet, Right, Callable[[Right], Tensor]]] = {
        "predictions, clean": (test, lambda net: evaluation.predictions(net, test.images) == test.labels, whole)
    }
    for seed in range(1 if quick else 2):
        kinds |= {
            f"the audit's margins, nearest to a boundary, seed {seed}": (near, by(margins, near, seed), searching),
            f"targeted APGD, the same images, seed {seed}": (near, by(apgd, near, seed), whole),
        }
    kinds[f"Square, {queries:,} queries"] = (few, by(square, few, 0), whole)

    rows: list[dict[str, float | str]] = []
    for kind, (image_set, right, in_bfloat16) in kinds.items():
        left, seconds = [], []
        for way in (exact, in_bfloat16):
            start = time.perf_counter()
            left.append(way(right))
            seconds.append(time.perf_counter() - start)
        fine, rough = left
        rows.append(
            {
                "kind": kind,
                "images": len(image_set),
                "float32": int(fine.sum()) / len(fine),
                "bfloat16": int(rough.sum()) / len(rough),
                "differ": int((fine != rough).sum()),
                "ratio": seconds[0] / seconds[1],
            }
        )
        print(rows[-1], flush=True)
    return rows


def nearest(model: nn.Module, image_set: ImageSet, eps: float, count: int) -> ImageSet:
    """Of the images that PGD on the margin leaves right, those that it brought nearest to a boundary: what is easy to
    break, or far from it, tells no two attacks apart.
    """
    x, y = images.to_float(image_set.images), image_set.labels
    generator = torch.Generator().manual_seed(0)
    moved = attacks.pgd_until_broken(model, x, y, eps, steps=20, climbed=attacks.margin_of, generator=generator)
    with torch.no_grad():
        logits = model(moved.contiguous(memory_format=torch.channels_last))
    margin = attacks.margin_of(y)(logits, torch.arange(len(y)))
    return image_set.take(margin.where(margin < 0, -torch.inf).topk(count).indices)


def table(rows: list[dict[str, float | str]]) -> str:
    lines = [
        "| pass | images | float32 leaves | bfloat16 leaves | images that differ | times faster |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['kind']} | {row['images']:,} | {row['float32']:.4g} | {row['bfloat16']:.4g} | {row['differ']} "
        f"| {row['ratio']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    quick = common.asked_quick(__doc__)
    found = table(compared(quick))
    print(found)
    if not quick:
        common.put_table(DOCUMENT, START, END, f"Measured on {common.machine()}.\n\n{found}")


if __name__ == "__main__":
    run(main)
