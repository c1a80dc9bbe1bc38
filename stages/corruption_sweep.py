"""Show both classifiers common corruptions of the test images (Hendrycks and Dietterich 2019), in five severities.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/corruptions.json, plots/corruptions.csv

Both are shown the same `images` test images. A kind's accuracy is the mean over its severities, `mean` is the mean over
the kinds; `robust_minus_standard` is what adversarial training is worth where nobody attacks.
"""

from stages.common import accuracy, artifacts, corruptions, device, evaluation, images, params, stage


def main() -> None:
    knobs = params.load_prepared()
    kinds = knobs.corruption_sweep.kinds
    test = images.read("test")
    shown = test.take(images.sample(test.labels, knobs.corruption_sweep.images))
    both = evaluation.load_both(test, device.choose(knobs.device))

    rows: list[dict[str, object]] = []
    metrics: dict[str, dict[str, float]] = {}
    for name, model in both.items():
        correct = corruptions.correct(model, shown, kinds, seed=knobs.seed)
        for kind, by_severity in zip(kinds, correct, strict=True):
            for severity, right in zip(corruptions.SEVERITIES, by_severity, strict=True):
                low, high = accuracy.interval(right, knobs.confidence)
                share = float(right.double().mean())
                row = {"model": name, "kind": kind, "severity": severity, "accuracy": share, "low": low, "high": high}
                rows.append(row)

        by_kind = correct.double().mean((1, 2))
        clean, mean = evaluation.accuracy(model, shown), float(by_kind.mean())
        metrics[name] = {"uncorrupted": clean, "mean": mean, **dict(zip(kinds, by_kind.tolist(), strict=True))}
        print(
            f"{name}: clean {clean:.4f}, corrupted {mean:.4f}: "
            + "  ".join(f"{kind} {metrics[name][kind]:.4f}" for kind in kinds),
            flush=True,
        )

    gain = {key: metrics["robust"][key] - metrics["standard"][key] for key in metrics["standard"]}
    artifacts.write_table(artifacts.PLOTS / "corruptions.csv", rows)
    artifacts.write_metrics(artifacts.METRICS / "corruptions.json", {**metrics, "robust_minus_standard": gain})


if __name__ == "__main__":
    stage.run(main)
