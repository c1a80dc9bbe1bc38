"""The OOD figures of the working tree as markdown tables: python -m scripts.detection

docs/ood.md carries this command's output for the committed figures; tests/test_readme.py holds that.
"""

import sys

import pandas as pd

from stages.common import artifacts
from stages.common.artifacts import MODELS


def scores(table: pd.DataFrame) -> str:
    """AUROC of every score against every OOD set, a row a score; the main set with its interval and FPR95."""
    sets = list(dict.fromkeys(table.set))
    main, *others = sets
    heads = [f"{model}: {key}" for model in MODELS for key in (f"{main} [95 %], FPR95", *others)]
    lines = [f"| score | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for score in dict.fromkeys(table.score):
        cells = []
        for model in MODELS:
            rows = table[(table.model == model) & (table.score == score)].set_index("set")
            best = {key: table[(table.model == model) & (table.set == key)].auroc.max() for key in sets}
            for key in sets:
                row = rows.loc[key]
                cell = f"**{row.auroc:.3f}**" if row.auroc == best[key] else f"{row.auroc:.3f}"
                cells.append(
                    f"{cell} [{row.auroc_low:.3f}, {row.auroc_high:.3f}], {row.fpr95:.2f}" if key == main else cell
                )
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


def thresholds(table: pd.DataFrame) -> str:
    """What a threshold set on validation images gives on the main set, and how each score compares with max softmax."""
    main = table[table.set == table.set.iloc[0]]
    heads = [f"{model}: ID / OOD accepted, AUROC less max softmax's" for model in MODELS]
    lines = [f"| score | {' | '.join(heads)} |", "|---|---|---|"]
    for score in dict.fromkeys(main.score):
        cells = []
        for model in MODELS:
            (row,) = main[(main.model == model) & (main.score == score)].itertuples()
            cell = f"{row.id_accepted:.3f} / {row.ood_accepted:.3f}"
            if score != "max_softmax":
                low, high = row.minus_max_softmax_low, row.minus_max_softmax_high
                cell += f", {row.minus_max_softmax:+.3f} [{low:+.3f}, {high:+.3f}]"
            cells.append(cell)
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


def attacked(table: pd.DataFrame) -> str:
    """AUROC when PGD pushes ID images down and OOD images up, a row a detector and model, a column a budget."""
    chosen = table[(table.attack == "pgd") & (table.side == "both")]
    budgets = sorted(chosen.eps.unique())
    lines = [f"| score | model | {' | '.join(f'{eps:.4f}' for eps in budgets)} |", "|---|---|" + "---:|" * len(budgets)]
    for score in dict.fromkeys(chosen.score):
        for model in MODELS:
            rows = chosen[(chosen.score == score) & (chosen.model == model)].set_index("eps")
            cells = " | ".join(f"{rows.auroc[eps]:.3f}" for eps in budgets)
            lines.append(f"| {score} | {model} | {cells} |")
    return "\n".join(lines)


def read(name: str) -> pd.DataFrame:
    path = artifacts.PLOTS / name
    if not path.is_file():
        sys.exit(f"error: {path} is missing: run `dvc repro ood_eval ood_attack`")
    return pd.read_csv(path)


def tables() -> dict[str, str]:
    """The three tables of docs/ood.md by name."""
    found = read("ood_scores.csv")
    return {"scores": scores(found), "thresholds": thresholds(found), "attacked": attacked(read("ood_attack.csv"))}


def main() -> None:
    for name, text in tables().items():
        print(f"<!-- {name} -->\n{text}\n<!-- /{name} -->\n")


if __name__ == "__main__":
    main()
