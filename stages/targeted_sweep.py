"""Attack both classifiers with FGSM towards one class, over a range of budgets.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/targeted.json, plots/targeted_sweep.csv,
     plots/images/targeted_{clean_standard,attacked_standard,transferred_robust,attacked_robust}.png

accuracy is over all test images. target_rate is the share of the images *not* of the target class that are taken for
it: the attack's success. At eps 0 it is what the model gets wrong by itself, clean_target_rate.
"""

from stages.common import accuracy, artifacts, device, evaluation, figures, images, params, robustness, stage


def main() -> None:
    knobs = params.load_prepared()
    test = images.read("test")
    name = knobs.targeted_sweep.target or knobs.data.target or test.classes[0]
    target = test.classes.index(name)
    both = evaluation.load_both(test, device.choose(knobs.device))
    swept = sorted({0.0, knobs.eps, *knobs.targeted_sweep.epsilons})
    listed = [swept.index(eps) for eps in knobs.targeted_sweep.epsilons]

    table: dict[str, object] = {"eps": knobs.targeted_sweep.epsilons}
    metrics: dict[str, dict[str, float]] = {}
    for label, model in both.items():
        predicted = robustness.fgsm_predictions(model, test, swept, target=target)
        right, hit = predicted == test.labels, robustness.hits(predicted, test.labels, target)
        table[f"{label}_accuracy"] = right[listed].double().mean(1).numpy()
        table[f"{label}_target_rate"] = hit[listed].double().mean(1).numpy()
        row = swept.index(knobs.eps)
        of_each = {"accuracy": right[row], "target_rate": hit[row], "clean_target_rate": hit[0]}
        metrics[label] = accuracy.figures(of_each, knobs.confidence)
        print(
            f"{label}: towards {name} at eps {knobs.eps:.4g}: accuracy {metrics[label]['accuracy']:.4f}, taken for "
            f"{name} {metrics[label]['target_rate']:.4f} (clean {metrics[label]['clean_target_rate']:.4f})",
            flush=True,
        )

    grids = figures.targeted_grids(both["standard"], both["robust"], test, target, knobs.eps)
    for grid, figure in grids.items():
        artifacts.write_figure(artifacts.IMAGES / f"targeted_{grid}.png", figure)
    artifacts.write_table(artifacts.PLOTS / "targeted_sweep.csv", table)
    artifacts.write_metrics(artifacts.METRICS / "targeted.json", metrics)


if __name__ == "__main__":
    stage.run(main)
