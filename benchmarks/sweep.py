"""FGSM over several budgets: ours, from one gradient, against the loops of torchattacks and foolbox."""

import torch

from benchmarks import common
from stages.common import attacks, evaluation, images, params, sampling
from stages.common.errors import run
from stages.fgsm_sweep import EIGHT


def measure(quick: bool) -> dict[str, dict[str, float]]:
    """For each peer: our seconds, its seconds, their ratio, the share of equal predictions, how many budgets."""
    import foolbox
    import torchattacks

    images.device("cpu")  # all sides with the allocator as the stages set it
    knobs = params.load()
    epsilons = sorted({0.0, EIGHT, knobs.eps, *knobs.fgsm_sweep.epsilons})  # the stage's own
    if quick:
        model, x, y = common.digits(64)
    else:
        test = images.read("test")
        model = evaluation.load_both(test)["robust"]
        chosen = test.take(sampling.representative(test.labels, images.BATCH_SIZE))
        x, y = images.to_float(chosen.images), chosen.labels

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")

    def predict(attacked: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(attacked).argmax(1)

    sides = {
        "ours": lambda: attacks.fgsm_sweep(model, x, y, epsilons),
        "torchattacks": lambda: torch.stack([predict(torchattacks.FGSM(model, eps=e)(x, y)) for e in epsilons]),
        "foolbox": lambda: torch.stack(
            [predict(foolbox.attacks.LinfFastGradientAttack()(wrapped, x, y, epsilons=e)[1]) for e in epsilons]
        ),
    }
    predicted = {name: call() for name, call in sides.items()}  # also warms every side up
    seconds = common.alternate(sides, 3 if quick else 5)
    return {
        peer: {
            "ours_s": seconds["ours"],
            "peer_s": seconds[peer],
            "ratio": seconds[peer] / seconds["ours"],
            "equal": float((predicted[peer] == predicted["ours"]).double().mean()),
            "budgets": len(epsilons),
        }
        for peer in ("torchattacks", "foolbox")
    }


def main() -> None:
    quick = common.asked_quick(__doc__)
    print(common.machine())
    for peer, row in measure(quick).items():
        print(
            f"FGSM sweep of {row['budgets']} budgets against {peer}: {row['ratio']:.2f} times, "
            f"{row['equal']:.4f} equal predictions"
        )


if __name__ == "__main__":
    run(main)
