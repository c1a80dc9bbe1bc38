"""FGSM over several budgets: ours, from one gradient, against the loops of torchattacks and foolbox."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import common
from stages.common import attacks, device, evaluation, images, params
from stages.common.errors import run


def measure(quick: bool) -> dict[str, dict[str, float]]:
    """For each peer: our seconds, its seconds, their ratio, the share of equal predictions, how many budgets."""
    import torchattacks
    from foolbox.attacks.fast_gradient_method import LinfFastGradientAttack
    from foolbox.models.pytorch import PyTorchModel

    device.keep_freed_memory()  # all sides with the allocator as the stages set it
    knobs = params.load()
    epsilons = sorted({0.0, attacks.EIGHT, knobs.eps, *knobs.fgsm_sweep.epsilons})  # the stage's own
    model: nn.Module
    if quick:
        model, chosen = common.small_net(), common.digits(64)
    else:
        test = images.read("test")
        model = evaluation.load_both(test, torch.device("cpu"))["robust"]
        chosen = common.take(test, images.BATCH_SIZE)
    x, y = images.to_float(chosen.images), chosen.labels
    wrapped = PyTorchModel(model, bounds=(0, 1), device="cpu")

    def predict(attacked: Tensor) -> Tensor:
        with torch.no_grad():
            return model(attacked).argmax(1)

    def foolbox_fgsm(eps: float) -> Tensor:
        return LinfFastGradientAttack()(wrapped, x, y, epsilons=eps)[1]

    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: attacks.fgsm_sweep(model, x, y, epsilons),
        "torchattacks": lambda: torch.stack([predict(torchattacks.FGSM(model, eps=e)(x, y)) for e in epsilons]),
        "foolbox": lambda: torch.stack([predict(foolbox_fgsm(e)) for e in epsilons]),
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
