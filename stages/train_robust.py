"""Train the robust classifier: clean images and FGSM examples made on the fly by the current model.

In:  data/prepared/{train,val,test}.npz
Out: data/checkpoints/robust.pt, metrics/train_robust.json, plots/training_robust.csv
"""

from typing import Any

from stages.common import artifacts, device, errors, evaluation, images, models, params, training, workspace
from stages.common.adversary import Adversary, Settings


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
    where = device.choose(knobs.device)
    sets = {name: images.read(name) for name in ("train", "val", "test")}

    epochs, smoothing = knobs.data.train_robust.epochs, knobs.train_robust.label_smoothing
    recipe = training.Recipe.from_params(knobs, where, epochs=epochs, label_smoothing=smoothing)
    model = training.new_model(knobs, sets["train"]).to(where)
    opponent = Adversary(model, sets["val"], Settings.from_params(knobs))
    table = artifacts.PLOTS / "training_robust.csv"  # grows by a row an epoch: dvc plots show draws it at any time
    result = training.train(
        model,
        sets["train"],
        sets["val"],
        recipe,
        opponent,
        resume_in=workspace.resume_folder(),
        log=lambda rows: artifacts.write_table(table, rows),
        name="robust",
    )

    found = {name: evaluation.accuracies(model, image_set) for name, image_set in sets.items()}
    accuracy, balanced = ({name: pair[kind] for name, pair in found.items()} for kind in (0, 1))
    kept = result.rows[result.epoch - 1]
    metrics = {
        "accuracy": accuracy,
        "balanced_accuracy": balanced,
        "epoch": result.epoch,
        "trained_eps": kept["eps"],  # below eps if that is above largest_budget, or if it broke the model
        "val_fgsm": kept["val_fgsm"],
        "val_pgd": kept["val_pgd"],
        "overfitted_epochs": sum(row["overfitted"] for row in result.rows),
        "collapsed_epochs": sum(row["collapsed"] for row in result.rows),
    }
    artifacts.write_metrics(artifacts.METRICS / "train_robust.json", metrics)
    artifacts.write_checkpoint(artifacts.CHECKPOINTS / "robust.pt", models.checkpoint(model))
    chance = evaluation.chance(opponent.held_out.labels)
    print(f"robust: test accuracy {accuracy['test']:.4f}; {worth(metrics, knobs.eps, chance)}")


if __name__ == "__main__":
    errors.run_stage(main)
