"""Train the robust classifier: clean images and FGSM examples made on the fly by the current model.

In:  data/prepared/{train,val,test}.npz
Out: data/checkpoints/robust.pt, metrics/train_robust.json, plots/training_robust.csv
"""

from typing import Any

from stages.common import artifacts, errors, evaluation, images, models, params, training, workspace


def worth(metrics: dict[str, Any], eps: float, chance: float) -> str:
    """A plain statement of what the model is worth at `eps`, judged by PGD on the validation images."""
    kept = f"PGD at eps {eps:.4g} leaves {metrics['val_pgd']:.1%} of the validation images correct"
    if metrics["trained_eps"] < eps:
        kept += f" (it was trained at up to {metrics['trained_eps']:.4g}: larger budgets teach a near-constant answer)"
    if metrics["val_pgd"] <= chance:
        return f"{kept}, no more than guessing ({chance:.0%}): it is no defence at this budget"
    return f"{kept}, where guessing gives {chance:.0%}"


def main() -> None:
    knobs = params.load()
    device = images.device(knobs.device)
    sets = {name: images.read(name) for name in ("train", "val", "test")}

    robust = knobs.train_robust
    adversary = training.Adversary(
        eps=knobs.eps,
        largest_budget=knobs.data.training.largest_budget,
        attack=robust.attack,
        fraction=robust.adversarial_fraction,
        noise=robust.noise,
        ramp=robust.ramp,
        overfitting_gap=robust.overfitting_gap,
        undo_overfitting=robust.undo_overfitting,
        pgd_steps=robust.pgd_steps,
        validation_images=robust.validation_images,
    )
    recipe = training.recipe(
        knobs, epochs=knobs.data.training.epochs_robust, label_smoothing=robust.label_smoothing, device=device
    )
    model, options = training.new_model(knobs, sets["train"])
    table = artifacts.PLOTS / "training_robust.csv"  # grows by a row an epoch: dvc plots show draws it at any time
    result = training.train(
        model,
        sets["train"],
        sets["val"],
        recipe,
        adversary=adversary,
        device=device,
        resume_in=workspace.resume_folder(),
        log=lambda rows: artifacts.write_table(table, rows),
        name="robust",
    )

    accuracy = {name: evaluation.accuracy(model, image_set, device=device) for name, image_set in sets.items()}
    kept = result.rows[result.epoch - 1]
    metrics = {
        "accuracy": accuracy,
        "epoch": result.epoch,
        "trained_eps": kept["eps"],  # below eps if that is above largest_budget, or if it broke the model
        "val_fgsm": kept["val_fgsm"],
        "val_pgd": kept["val_pgd"],
        "overfitted_epochs": sum(row["overfitted"] for row in result.rows),
        "collapsed_epochs": sum(row["collapsed"] for row in result.rows),
    }
    checkpoint = models.checkpoint(model, name=knobs.model.name, options=options)
    artifacts.write_metrics(artifacts.METRICS / "train_robust.json", metrics)
    artifacts.write_checkpoint(artifacts.CHECKPOINTS / "robust.pt", checkpoint)
    print(f"robust: test accuracy {accuracy['test']:.4f}; {worth(metrics, knobs.eps, 1 / len(model.classes))}")


if __name__ == "__main__":
    errors.run(main)
