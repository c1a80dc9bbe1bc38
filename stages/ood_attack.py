"""Evade the detectors: push ID images down and OOD images up, by noise, FGSM and PGD on each detector's own confidence.

In:  data/prepared/{train,test,ood}.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/ood_attack.json, AUROC at eps and what adversarial training is worth there; plots/ood_attack.csv, AUROC
     with intervals for every model, detector, attack, attacked side and budget

An attacker who may change a pixel by eps may also change it by less: at each budget every image keeps the most
misleading confidence found so far, the clean one included, so that the curves can only fall.
"""

import numpy as np

from stages.common import artifacts, attacks, detection, device, errors, evaluation, images, params, stage
from stages.common.detection import detectors, evasion
from stages.common.detection.scores import Options


def main() -> None:
    knobs = params.load_prepared()
    chosen = knobs.ood_attack
    train, *sides = (images.read(name) for name in ("train", "test", "ood"))
    inside, outside = (side.take(images.sample(side.labels, chosen.images)) for side in sides)
    both = evaluation.load_both(train, where := device.choose(knobs.device))
    sight, options = detectors.Sight.from_params(knobs), Options.from_params(knobs)
    budgets = sorted({0.0, knobs.eps, *chosen.epsilons})
    at = budgets.index(knobs.eps)
    applicable = detectors.of_both(both, options, train)
    names = [name for name in chosen.detectors if name in applicable]
    if not names:
        raise errors.UserError(
            f"params.yaml: ood_attack.detectors: allowed are {', '.join(applicable)} of these models"
        )

    found: dict[str, dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]] = {}  # as evasion.Found
    for model_name, model in both.items():
        fitted = detectors.fit_on(model, train, sight, options, names=names, description=f"{model_name}: train")
        with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
            found[model_name] = evasion.both_sides(
                model, fitted, inside, outside, budgets, sight=sight, steps=chosen.pgd_steps, seed=knobs.seed
            )
        for name, pairs in found[model_name].items():
            area = evasion.aurocs(pairs, at)
            print(
                f"{model_name}: {name:22} AUROC {area['clean']:.3f}, under PGD at {knobs.eps:.4g} {area['pgd']:.3f}",
                flush=True,
            )

    level = knobs.confidence
    artifacts.write_table(artifacts.PLOTS / "ood_attack.csv", list(evasion.rows(found, budgets, level)))
    metrics = {
        model: {name: evasion.aurocs(pairs, at) for name, pairs in by_name.items()} for model, by_name in found.items()
    }
    gain = {
        name: detection.delong_test(
            *(side[at] for side in found["robust"][name]["pgd"]),
            *(side[at] for side in found["standard"][name]["pgd"]),
            confidence=level,
        )
        for name in names
    }
    sizes = {"id": len(inside), "ood": len(outside)}
    artifacts.write_metrics(
        artifacts.METRICS / "ood_attack.json", {**metrics, "robust_minus_standard": gain, "sizes": sizes}
    )


if __name__ == "__main__":
    stage.run(main)
