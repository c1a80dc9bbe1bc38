"""Attack both classifiers with untargeted FGSM over a range of budgets, and check it with PGD.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/fgsm.json, plots/fgsm_sweep.csv, plots/images/fgsm_{standard,robust}.png, data/rows/fgsm_sweep.csv, of
     each image which budgets it survives

FGSM runs on all test images, one gradient for all budgets. `_worst` counts an image as lost once any budget up to eps
has fooled the model, `_pgd` is the same under PGD on `pgd_images` images: images already lost are not attacked again.
Every accuracy in metrics/ has its interval, and the two models are compared on the same images (McNemar's test).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stages.common import (
    accuracy,
    artifacts,
    attacks,
    device,
    evaluation,
    figures,
    images,
    params,
    robustness,
    rows,
    stage,
)

COLUMNS = {"fgsm": "", "fgsm_worst": "_worst", "pgd": "_pgd"}  # in the table, behind the model's name


def main() -> None:
    knobs = params.load_prepared()
    test = images.read("test")
    chosen = images.sample(test.labels, knobs.fgsm_sweep.pgd_images)
    subset = test.take(chosen)
    both = evaluation.load_both(test, where := device.choose(knobs.device))
    swept = sorted({0.0, attacks.EIGHT, knobs.eps, *knobs.fgsm_sweep.epsilons})
    listed = [swept.index(eps) for eps in knobs.fgsm_sweep.epsilons]

    table: dict[str, object] = {"eps": knobs.fgsm_sweep.epsilons}
    metrics: dict[str, object] = {}
    correct: dict[str, dict[str, Tensor]] = {}  # bool (budgets, N) [model][attack]
    for name, model in both.items():
        fgsm = robustness.fgsm_predictions(model, test, swept) == test.labels
        with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
            pgd = robustness.pgd_survivors(model, subset, swept, steps=knobs.fgsm_sweep.pgd_steps, seed=knobs.seed)
        correct[name] = {"fgsm": fgsm, "fgsm_worst": attacks.worst_case(fgsm), "pgd": pgd}
        table |= {
            name + COLUMNS[attack]: found[listed].double().mean(1).numpy() for attack, found in correct[name].items()
        }

        def at(eps: float, name: str = name) -> dict[str, float]:
            at_eps = {attack: found[swept.index(eps)] for attack, found in correct[name].items()}
            return accuracy.figures(at_eps, knobs.confidence)

        clean = accuracy.figures({"clean": fgsm[0]}, knobs.confidence)
        metrics[name] = {**clean, **at(knobs.eps), "at_8_255": at(attacks.EIGHT)}
        said = "  ".join(f"{attack} {at(knobs.eps)[attack]:.4f}" for attack in COLUMNS)
        print(f"{name}: clean {clean['clean']:.4f}  at eps {knobs.eps:.4g}: {said}", flush=True)
        figure = figures.attack_grid(model, test, knobs.fgsm_sweep.picture_epsilons, name=name)
        artifacts.write_figure(artifacts.IMAGES / f"fgsm_{name}.png", figure)

    pairs = {"clean": ("fgsm", 0.0), **{attack: (attack, knobs.eps) for attack in COLUMNS}}
    metrics["robust_minus_standard"] = {
        key: accuracy.mcnemar(
            correct["robust"][attack][swept.index(eps)],
            correct["standard"][attack][swept.index(eps)],
            knobs.confidence,
        )
        for key, (attack, eps) in pairs.items()
    }
    everywhere = {"fgsm": torch.arange(len(test)), "pgd": chosen}
    parts = [rows.part("test", index, survived(correct, attack, swept)) for attack, index in everywhere.items()]
    rows.write(rows.FOLDER / "fgsm_sweep.csv", rows.join(parts))
    artifacts.write_table(artifacts.PLOTS / "fgsm_sweep.csv", table)
    artifacts.write_metrics(artifacts.METRICS / "fgsm.json", metrics)


def survived(correct: Mapping[str, Mapping[str, Tensor]], attack: str, swept: Sequence[float]) -> dict[str, Tensor]:
    """Which images each model has right under `attack`, bool (N,), by column: one for each budget above 0."""
    return {
        rows.column(name, attack, eps): right
        for name, by_attack in correct.items()
        for eps, right in zip(swept, by_attack[attack], strict=True)
        if eps > 0
    }


if __name__ == "__main__":
    stage.run(main)
