"""Attack both classifiers with AutoAttack (Croce and Hein 2020) at eps and at 8/255, and with its APGD in L2.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/autoattack.json, the accuracy that each part and all before it leave, and what all leave with its interval;
     plots/autoattack.csv, the same as a table; data/rows/autoattack.csv, which images survive

A part attacks what the ones before it left. The larger of two budgets by one norm is attacked first, and what survives
it counts as surviving the smaller one, whose images are all within its reach. A run that was cut off goes on, started
again, after its last whole part.
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
    rows,
    stage,
    workspace,
)
from stages.common.autoattack import Budget, Left
from stages.common.work import WorkFile

TITLES = {attacks.Linf: "autoattack", attacks.L2: "apgd_l2"}  # in the rows


def main() -> None:
    knobs = params.load_prepared()
    test = images.read("test")
    chosen = images.sample(test.labels, knobs.autoattack.images)
    attacked = test.take(chosen)
    both = evaluation.load_both(test, device.choose(knobs.device))
    budgets = {
        "eps": Budget(attacks.Linf, knobs.eps),
        "at_8_255": Budget(attacks.Linf, attacks.EIGHT),
        "l2": Budget(attacks.L2, knobs.eps_l2),
    }

    metrics: dict[str, dict[str, dict[str, float]]] = {name: {} for name in both}
    table: list[dict[str, object]] = []
    survived: dict[str, Tensor] = {}  # bool (N,), by column
    files: list[WorkFile] = []
    for name, model in both.items():
        found: dict[Budget, Left] = {}
        for left in autoattack.run_each(
            model,
            attacked,
            budgets.values(),
            queries=knobs.autoattack.queries,
            seed=knobs.seed,
            resume_in=workspace.resume_folder(),
            name=name,
        ):
            found[left.budget] = left
            files.append(left.file)
            print(f"{name}: {said(left, knobs.confidence)}", flush=True)
        for title, budget in budgets.items():
            left = found[budget]
            metrics[name][title] = {**left.shares, **accuracy.figures({"all": left.last}, knobs.confidence)}
            survived[rows.column(name, TITLES[budget.norm], budget.eps)] = left.last
            table += [
                {"model": name, "budget": title, "eps": budget.eps, "part": part, "accuracy": share}
                for part, share in left.shares.items()
            ]

    rows.write(rows.FOLDER / "autoattack.csv", rows.part("test", chosen, survived))
    artifacts.write_table(artifacts.PLOTS / "autoattack.csv", table)
    artifacts.write_metrics(artifacts.METRICS / "autoattack.json", metrics)
    for file in files:
        file.delete()


def said(left: Left, confidence: float) -> str:
    """A budget and the accuracy after each part, the last one's with its interval."""
    shares = ", ".join(f"{part} {share:.4f}" for part, share in left.shares.items())
    low, high = accuracy.interval(left.last, confidence)
    return f"{left.budget.norm.__name__} {left.budget.eps:.4g}: {shares} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    stage.run(main)
