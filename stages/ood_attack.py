"""Evade the detectors: push ID images down and OOD images up, by noise, FGSM and PGD on each detector's own confidence.

In:  data/prepared/{train,test,ood}.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/ood_attack.json, AUROC at eps and what adversarial training is worth there; plots/ood_attack.csv, AUROC
     with intervals for every model, detector, attack, attacked side and budget

An attacker who may change a pixel by eps may also change it by less: at each budget every image keeps the most
misleading confidence found so far, the clean one included, so that the curves can only fall.
"""

import numpy as np
import torch

from stages.common import artifacts, attacks, detection, detectors, errors, evaluation, images, params, sampling

MODELS = ("standard", "robust")
DOWN, UP = -1, 1  # the way in which ID and OOD confidences are pushed
ATTACKS = ("noise", "fgsm", "pgd")


def main() -> None:
    knobs = params.load()
    chosen = knobs.ood_attack
    train, *sides = (images.read(name) for name in ("train", "test", "ood"))
    inside, outside = (side.take(sampling.representative(side.labels, chosen.images)) for side in sides)
    device = images.device(knobs.device)
    both = evaluation.load_both(train, device)
    sight, options = detectors.settings(knobs)
    budgets = sorted({0.0, knobs.eps, *chosen.epsilons})

    found = {}  # confidences (budgets, N) of both sides, [model][detector][attack]
    for model_name, model in both.items():
        fitted = detectors.fit_on(
            model, train, sight, options, names=chosen.detectors, device=device, description=f"{model_name}: train"
        )
        found[model_name] = {}
        for name, apply in fitted.items():
            attacked = [
                attack_all(model, name, apply, part, way, budgets, knobs, sight, device)
                for part, way in ((inside, DOWN), (outside, UP))
            ]
            found[model_name][name] = {a: tuple(side[a] for side in attacked) for a in ATTACKS}
            clean, under = (
                detection.auroc(*(side[row] for side in found[model_name][name]["pgd"]))
                for row in (0, budgets.index(knobs.eps))
            )
            print(f"{model_name}: {name:22} AUROC {clean:.3f}, under PGD at {knobs.eps:.4g} {under:.3f}", flush=True)

    level, at = knobs.ood_eval.confidence, budgets.index(knobs.eps)
    artifacts.write_table(artifacts.PLOTS / "ood_attack.csv", list(rows(found, budgets, level)))
    metrics = {
        model: {
            name: {"clean": detection.auroc(*(side[0] for side in pairs["pgd"]))}
            | {attack: detection.auroc(*(side[at] for side in pair)) for attack, pair in pairs.items()}
            for name, pairs in by_name.items()
        }
        for model, by_name in found.items()
    }
    gain = {
        name: detection.delong_test(
            *(side[at] for side in found["robust"][name]["pgd"]),
            *(side[at] for side in found["standard"][name]["pgd"]),
            confidence=level,
        )
        for name in chosen.detectors
    }
    sizes = {"id": len(inside), "ood": len(outside)}
    artifacts.write_metrics(
        artifacts.METRICS / "ood_attack.json", {**metrics, "robust_minus_standard": gain, "sizes": sizes}
    )


def attack_all(model, name, apply, part, way, budgets, knobs, sight, device) -> dict[str, np.ndarray]:
    """Confidences (budgets, N) of one side under each attack, each budget's the most misleading up to it."""
    generator = torch.Generator(device).manual_seed(knobs.seed)
    found = {attack: np.empty((len(budgets), len(part))) for attack in ATTACKS}

    def uphill(x):
        return detectors.confidence_gradient(model, name, apply, x, sight).mul_(way)

    with attacks.frozen(model):
        for where, x in images.batches(part.images, device=device, description=f"{name} attacked"):
            direction = uphill(x).sign_()
            for row, eps in enumerate(budgets):
                moved = {
                    "noise": attacks.sign_noise(x, eps, generator=generator),
                    "fgsm": (x + eps * direction).clamp_(0, 1),
                    "pgd": x,
                }
                if eps > 0:
                    moved["pgd"] = attacks.ascend(uphill, x, eps, steps=knobs.ood_attack.pgd_steps, generator=generator)
                for attack, batch in moved.items():
                    found[attack][row, where] = detectors.confidence(model, name, apply, batch, sight).numpy()
    keep = np.minimum if way == DOWN else np.maximum
    return {attack: keep.accumulate(values, axis=0) for attack, values in found.items()}


def rows(found, budgets, level):
    """One row per model, detector, attack, attacked side and budget."""
    for model in MODELS:
        for name, by_attack in found[model].items():
            for attack, (inside, outside) in by_attack.items():
                for row, eps in enumerate(budgets):
                    for side, pair in {
                        "ID down": (inside[row], outside[0]),
                        "OOD up": (inside[0], outside[row]),
                        "both": (inside[row], outside[row]),
                    }.items():
                        low, high = detection.auroc_interval(*pair, confidence=level)
                        area = {"auroc": detection.auroc(*pair), "auroc_low": low, "auroc_high": high}
                        yield {"model": model, "score": name, "attack": attack, "side": side, "eps": eps, **area}


if __name__ == "__main__":
    errors.run(main)
