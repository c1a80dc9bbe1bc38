"""Attack both classifiers with untargeted FGSM over a range of budgets, and check it with PGD.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/fgsm.json, plots/fgsm_sweep.csv, plots/images/fgsm_{standard,robust}.png

FGSM runs on all test images, one gradient for all budgets. `_worst` counts an image as lost once any budget up to eps
has fooled the model, `_pgd` is the same under PGD on `pgd_images` images: images already lost are not attacked again.
"""

from torch import Tensor

from stages.common import artifacts, attacks, device, errors, evaluation, figures, images, params, robustness


def main() -> None:
    knobs = params.load_prepared()
    test = images.read("test")
    subset = test.take(images.sample(test.labels, knobs.fgsm_sweep.pgd_images))
    both = evaluation.load_both(test, where := device.choose(knobs.device))
    swept = sorted({0.0, attacks.EIGHT, knobs.eps, *knobs.fgsm_sweep.epsilons})
    listed = [swept.index(eps) for eps in knobs.fgsm_sweep.epsilons]

    table: dict[str, object] = {"eps": knobs.fgsm_sweep.epsilons}
    metrics: dict[str, object] = {}
    for name, model in both.items():
        fgsm = robustness.fgsm_predictions(model, test, swept) == test.labels
        with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
            pgd = robustness.pgd_survivors(model, subset, swept, steps=knobs.fgsm_sweep.pgd_steps, seed=knobs.seed)
        accuracies = {"": fgsm, "_worst": attacks.worst_case(fgsm), "_pgd": pgd}
        curves = {suffix: correct.double().mean(1) for suffix, correct in accuracies.items()}
        table |= {name + suffix: curve[listed].numpy() for suffix, curve in curves.items()}

        def at(eps: float, curves: dict[str, Tensor] = curves) -> dict[str, float]:
            row = swept.index(eps)
            return {
                "fgsm": float(curves[""][row]),
                "fgsm_worst": float(curves["_worst"][row]),
                "pgd": float(curves["_pgd"][row]),
            }

        metrics[name] = {"clean": float(curves[""][0]), **at(knobs.eps), "at_8_255": at(attacks.EIGHT)}
        print(
            f"{name}: clean {curves[''][0]:.4f}  at eps {knobs.eps:.4g}: "
            + "  ".join(f"{attack} {value:.4f}" for attack, value in at(knobs.eps).items()),
            flush=True,
        )
        figure = figures.attack_grid(model, test, knobs.fgsm_sweep.picture_epsilons, name=name)
        artifacts.write_figure(artifacts.IMAGES / f"fgsm_{name}.png", figure)

    artifacts.write_table(artifacts.PLOTS / "fgsm_sweep.csv", table)
    artifacts.write_metrics(artifacts.METRICS / "fgsm.json", metrics)


if __name__ == "__main__":
    errors.run_stage(main)
