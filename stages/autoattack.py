"""Attack both classifiers with AutoAttack (Croce and Hein 2020) at eps and at 8/255, and with its APGD in L2.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/autoattack.json, the accuracy that each part and all before it leave, and what all leave with its interval;
     plots/autoattack.csv, the same as a table

A part attacks what the ones before it left. A run that was cut off goes on, started again, after its last whole part.
"""

from pathlib import Path

import torch

from stages.common import (
    accuracy,
    artifacts,
    attacks,
    autoattack,
    device,
    errors,
    evaluation,
    fingerprints,
    images,
    params,
    workspace,
)
from stages.common.images import ImageSet
from stages.common.models import Classifier


def main() -> None:
    knobs = params.load_prepared()
    test = images.read("test")
    attacked = test.take(images.sample(test.labels, knobs.autoattack.images))
    both = evaluation.load_both(test, where := device.choose(knobs.device))
    budgets: dict[str, tuple[type[attacks.Ball], float]] = {
        "eps": (attacks.Linf, knobs.eps),
        "at_8_255": (attacks.Linf, attacks.EIGHT),
        "l2": (attacks.L2, knobs.eps_l2),
    }

    metrics: dict[str, dict[str, dict[str, float]]] = {name: {} for name in both}
    rows: list[dict[str, object]] = []
    work: list[Path] = []
    for name, model in both.items():
        for budget, (norm, eps) in budgets.items():
            told = (eps, norm.__name__, knobs.autoattack.queries, knobs.precision, knobs.seed)
            run = fingerprints.of(told, [attacked], model.state_dict().values())
            work.append(workspace.resume_folder() / f"autoattack-{run[:16]}.pt")
            with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
                left = survivors(model, attacked, eps, norm, knobs, work[-1])
            shares = {part: float(alive.double().mean()) for part, alive in left.items()}
            of_all = accuracy.figures("all", list(left.values())[-1].numpy(), knobs.confidence)
            metrics[name][budget] = {**shares, **of_all}
            rows += [
                {"model": name, "budget": budget, "eps": eps, "part": part, "accuracy": share}
                for part, share in shares.items()
            ]
            said = ", ".join(f"{part} {share:.4f}" for part, share in shares.items())
            print(
                f"{name}: {norm.__name__} {eps:.4g}: {said} [{of_all['all_low']:.3f}, {of_all['all_high']:.3f}]",
                flush=True,
            )

    artifacts.write_table(artifacts.PLOTS / "autoattack.csv", rows)
    artifacts.write_metrics(artifacts.METRICS / "autoattack.json", metrics)
    for file in work:
        file.unlink(missing_ok=True)


def survivors(
    model: Classifier, attacked: ImageSet, eps: float, norm: type[attacks.Ball], knobs: params.Params, file: Path
) -> dict[str, torch.Tensor]:
    """Which images are right clean, and after each part: bool (N,). `file` holds what an interrupted run has reached,
    and is written after each part.
    """
    try:
        done = artifacts.read_checkpoint(file) if file.is_file() else {}
    except errors.UserError:  # damaged: begun again
        done = {}
    clean = evaluation.predictions(model, attacked.images) == attacked.labels
    queries, seed = knobs.autoattack.queries, knobs.seed
    for part, alive in autoattack.run(model, attacked, eps, norm=norm, queries=queries, seed=seed, done=done):
        done[part] = alive
        artifacts.write_checkpoint(file, done)
    return {"clean": clean, **done}


if __name__ == "__main__":
    errors.run_stage(main)
