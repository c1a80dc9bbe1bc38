"""Certify the robust model by randomised smoothing, and attack the same smoothed classifier: accuracy from both sides.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/certify.json, of the robust model under noise: clean accuracy, how often it abstains, accuracy that is
     certified and that an attack leaves at each L2 radius, of how many images; for how many of them the two contradict
     each other, and for how many they may by chance, which the audit judges; plots/certified.csv, the two against the
     radius, with intervals

With certify.images at 0 there is nothing to look at (n/a): the table has no row, and the metrics no figure.
"""

from typing import Any

import torch

from stages.common import artifacts, attacks, device, evaluation, images, params, smoothing, stage
from stages.common.images import Batch
from stages.common.params import Params

AT_ONCE = 25  # images of a batch: each has a thousand copies, and ranks take whole batches
COLUMNS = ("radius", "curve", "accuracy", "low", "high")


def main() -> None:
    knobs = params.load_prepared()
    if knobs.certify.images > 0:
        rows, metrics = certified(knobs)
    else:
        rows, metrics = [], {}
        print("certify: n/a: certify.images is 0, nothing is certified")
    table = {column: [row[column] for row in rows] for column in COLUMNS}
    artifacts.write_table(artifacts.PLOTS / "certified.csv", table)
    artifacts.write_metrics(artifacts.METRICS / "certify.json", {"robust": metrics})


def certified(knobs: Params) -> tuple[list[dict[str, float | str]], dict[str, Any]]:
    """The rows of the table and the metrics of the robust model."""
    chosen, test = knobs.certify, images.read("test")
    model = evaluation.load_both(test, where := device.choose(knobs.device))["robust"]
    sampled = test.take(images.sample(test.labels, chosen.images))
    smoothed = smoothing.Smoothed(
        model=model,
        classes=len(test.classes),
        sigma=chosen.sigma,
        samples=chosen.samples,
        selection_samples=chosen.selection_samples,
        alpha=chosen.alpha,
    )

    def bounds(batch: Batch) -> smoothing.Bounds:
        return smoothing.bounds(smoothed, batch.x, batch.y, chosen.radii, batch.generator(knobs.seed))

    with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
        each = images.each_batch(
            bounds, sampled.images, sampled.labels, device=where, description="certify", size=AT_ONCE
        )
    found = smoothing.Bounds(*map(torch.cat, zip(*each, strict=True)))

    rows = list(smoothing.curves(found, chosen.radii, knobs.confidence))
    shares = {
        curve: {f"{row['radius']:.4g}": row["accuracy"] for row in rows if row["curve"] == curve}
        for curve in ("certified", "attacked")
    }
    metrics = {
        "smoothed": float((found.answers == sampled.labels).double().mean()),
        "abstained": float((found.answers == smoothing.ABSTAINED).double().mean()),
        **shares,
        "images": len(sampled),
        "contradicted": int(smoothing.contradicted(found).sum()),
        "by_chance": smoothing.by_chance(len(sampled), chosen.radii, chosen.alpha),
    }
    print(f"robust under noise of {chosen.sigma:.4g}: clean {metrics['smoothed']:.4f}, {len(sampled)} test images")
    for radius in chosen.radii:
        low, high = (by_radius[f"{radius:.4g}"] for by_radius in shares.values())
        print(f"  within {radius:.4g} in L2: certified {low:.4f}, attacked {high:.4f}")
    return rows, metrics


if __name__ == "__main__":
    stage.run(main)
