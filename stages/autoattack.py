"""Attack both classifiers with AutoAttack (Croce and Hein 2020) at eps and at 8/255, and with its APGD in L2.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/autoattack.json, the accuracy that each part and all before it leave, and what all leave with its interval;
     plots/autoattack.csv, the same as a table

A part attacks what the ones before it left. A run that was cut off goes on, started again, after its last whole part.
"""

from torch import Tensor

from stages.common import (
    accuracy,
    artifacts,
    attacks,
    autoattack,
    device,
    evaluation,
    images,
    params,
    stage,
    work,
    workspace,
)
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.work import WorkFile


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
    files: list[WorkFile] = []
    for name, model in both.items():
        clean = evaluation.predictions(model, attacked.images) == attacked.labels
        for budget, (norm, eps) in budgets.items():
            told = (eps, norm.__name__, knobs.autoattack.queries, knobs.precision, knobs.seed)
            run = work.fingerprint(told, [attacked], model.state_dict().values())
            files.append(WorkFile(workspace.resume_folder(), f"autoattack-{name}-{budget}", run))
            with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
                left = {"clean": clean, **survivors(model, attacked, eps, norm, knobs, files[-1])}
            shares = {part: float(alive.double().mean()) for part, alive in left.items()}
            of_all = accuracy.figures({"all": list(left.values())[-1]}, knobs.confidence)
            metrics[name][budget] = {**shares, **of_all}
            rows += [
                {"model": name, "budget": budget, "eps": eps, "part": part, "accuracy": share}
                for part, share in shares.items()
            ]
            said = ", ".join(f"{part} {share:.4f}" for part, share in shares.items())
            interval = f"[{of_all['all_low']:.3f}, {of_all['all_high']:.3f}]"
            print(f"{name}: {norm.__name__} {eps:.4g}: {said} {interval}", flush=True)

    artifacts.write_table(artifacts.PLOTS / "autoattack.csv", rows)
    artifacts.write_metrics(artifacts.METRICS / "autoattack.json", metrics)
    for file in files:
        file.delete()


def survivors(
    model: Classifier, attacked: ImageSet, eps: float, norm: type[attacks.Ball], knobs: params.Params, file: WorkFile
) -> dict[str, Tensor]:
    """Which images are right after each part: bool (N,). `file` holds what an interrupted run has reached, and is
    written after each part.
    """
    done: dict[str, Tensor] = (file.read() or {}).get("done", {})
    queries, seed = knobs.autoattack.queries, knobs.seed
    for part, alive in autoattack.run(model, attacked, eps, norm=norm, queries=queries, seed=seed, done=done):
        done[part] = alive
        file.write({"done": done})
    return done


if __name__ == "__main__":
    stage.run(main)
