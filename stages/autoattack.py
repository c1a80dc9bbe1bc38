"""Attack both classifiers with AutoAttack (Croce and Hein 2020) at eps and at 8/255, and with its APGD in L2.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/autoattack.json, the accuracy that each part and all before it leave, and what all leave with its interval;
     plots/autoattack.csv, the same as a table; data/rows/autoattack.csv, which images survive

A part attacks what the ones before it left. The larger of two budgets by one norm is attacked first, and what survives
it counts as surviving the smaller one, whose images are all within its reach. A run that was cut off goes on, started
again, after its last whole part.
"""

from collections.abc import Iterable

import torch
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
    rows,
    stage,
    work,
    workspace,
)
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.work import WorkFile

Budget = tuple[type[attacks.Ball], float]  # a norm, and how much by it
TITLES = {attacks.Linf: "autoattack", attacks.L2: "apgd_l2"}  # in the rows


def main() -> None:
    knobs = params.load_prepared()
    test = images.read("test")
    chosen = images.sample(test.labels, knobs.autoattack.images)
    attacked = test.take(chosen)
    both = evaluation.load_both(test, where := device.choose(knobs.device))
    budgets: dict[str, Budget] = {
        "eps": (attacks.Linf, knobs.eps),
        "at_8_255": (attacks.Linf, attacks.EIGHT),
        "l2": (attacks.L2, knobs.eps_l2),
    }

    metrics: dict[str, dict[str, dict[str, float]]] = {name: {} for name in both}
    table: list[dict[str, object]] = []
    survived: dict[str, Tensor] = {}  # bool (N,), by column
    files: list[WorkFile] = []
    for name, model in both.items():
        with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
            found = left_at_each(name, model, attacked, budgets.values(), knobs, files)
        for budget, (norm, eps) in budgets.items():
            left = found[norm, eps]
            shares = {part: float(alive.double().mean()) for part, alive in left.items()}
            last = list(left.values())[-1]
            of_all = accuracy.figures({"all": last}, knobs.confidence)
            metrics[name][budget] = {**shares, **of_all}
            survived[rows.column(name, TITLES[norm], eps)] = last
            table += [
                {"model": name, "budget": budget, "eps": eps, "part": part, "accuracy": share}
                for part, share in shares.items()
            ]

    rows.write(rows.FOLDER / "autoattack.csv", rows.part("test", chosen, survived))
    artifacts.write_table(artifacts.PLOTS / "autoattack.csv", table)
    artifacts.write_metrics(artifacts.METRICS / "autoattack.json", metrics)
    for file in files:
        file.delete()


def left_at_each(
    name: str,
    model: Classifier,
    attacked: ImageSet,
    budgets: Iterable[Budget],
    knobs: params.Params,
    files: list[WorkFile],
) -> dict[Budget, dict[str, Tensor]]:
    """Which images are right clean and after each part at each budget: bool (N,) [budget][part]. `files` is told of the
    work files, which are of use until all is written.

    What survives all parts at a budget is spared at the smaller ones by the same norm, which its own holds. So what is
    broken at a budget is broken at every larger one, as in the sweep's worst case, and what takes most of the time, an
    image that withstands everything, is attacked once.
    """
    clean = evaluation.predictions(model, attacked.images) == attacked.labels
    found: dict[Budget, dict[str, Tensor]] = {}
    spared: dict[type[attacks.Ball], Tensor] = {}
    for norm, eps in sorted(dict.fromkeys(budgets), key=lambda budget: -budget[1]):
        safe = spared.get(norm, torch.zeros_like(clean))
        told = (eps, norm.__name__, knobs.autoattack.queries, knobs.precision, knobs.seed, safe.tolist())
        run = work.fingerprint(told, [attacked], model.state_dict().values())
        files.append(WorkFile(workspace.resume_folder(), f"autoattack-{name}-{norm.__name__}-{eps:.4g}", run))
        others = (~safe).nonzero().squeeze(1)
        left = {"clean": clean}
        for part, alive in survivors(model, attacked.take(others), eps, norm, knobs, files[-1]).items():
            left[part] = safe.clone()
            left[part][others] = alive
        found[norm, eps], spared[norm] = left, left[part]
        said = ", ".join(f"{part} {float(alive.double().mean()):.4f}" for part, alive in left.items())
        low, high = accuracy.interval(left[part], knobs.confidence)
        print(f"{name}: {norm.__name__} {eps:.4g}: {said} [{low:.3f}, {high:.3f}]", flush=True)
    return found


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
