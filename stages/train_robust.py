"""Train the robust classifier on FGSM examples made on the fly by the current model, or adopt one.

In:  data/prepared/{train,val,test}.npz
Out: data/checkpoints/robust.pt, metrics/train_robust.json, plots/training_robust.csv

Accuracies have their intervals. Those under attack are of the validation images that chose the epoch: they are a little
higher than other images' would be.
"""

from typing import Any

from stages.common import artifacts, attacks, device, evaluation, images, params, stage, training, wilson
from stages.common.adversary import Adversary, Settings


def worth(metrics: dict[str, Any], eps: float, chance: float) -> str:
    """A plain statement of what the model is worth at `eps`, judged by PGD on the validation images."""
    kept = f"PGD at eps {eps:.4g} leaves {metrics['val_pgd']:.1%} of the validation images correct"
    if metrics.get("trained_eps", eps) < eps:
        kept += f" (it was trained at up to {metrics['trained_eps']:.4g}: larger budgets teach a near-constant answer)"
    if metrics["val_pgd"] <= chance:
        return f"{kept}, no more than guessing ({chance:.0%}): it is no defence at this budget"
    return f"{kept}, where guessing gives {chance:.0%}"


def main() -> None:
    knobs = params.load_prepared()
    settings = Settings.from_params(knobs)
    with attacks.searching(bfloat16=device.bfloat16(knobs.precision, device.choose(knobs.device))):
        learnt = training.learn(knobs, "robust", lambda model, val_set: Adversary(model, val_set, settings))
    kept, val = learnt.kept, images.read("val")
    attacked = {name: kept[name] for name in ("val_fgsm", "val_pgd", "val_margin")}
    held_out = min(len(val), knobs.train_robust.validation_images)
    metrics = learnt.metrics | {
        "trained_eps": kept["eps"],  # below eps if that is above largest_budget, or if it broke the model
        **wilson.figures_of_shares(attacked, held_out, training.LEVEL),
        "overfitted_epochs": sum(row["overfitted"] for row in learnt.rows),
        "collapsed_epochs": sum(row["collapsed"] for row in learnt.rows),
    }
    if knobs.train_robust.weights is not None:
        del metrics["trained_eps"]  # not known
    artifacts.write_metrics(artifacts.METRICS / "train_robust.json", metrics)
    chance = evaluation.chance(val.labels)
    print(f"robust: test accuracy {metrics['accuracy']['test']:.4f}; {worth(metrics, knobs.eps, chance)}")


if __name__ == "__main__":
    stage.run(main)
