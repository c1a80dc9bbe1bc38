"""What stronger attacks, corruptions and a certificate say, as markdown tables: python -m scripts.judgement

docs/audit.md carries this command's output for the committed figures; tests/test_readme.py holds that.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import pandas as pd

from stages.common import artifacts
from stages.common.artifacts import MODELS

PARTS = {"clean": "clean", "apgd_ce": "APGD", "apgd_t": "targeted APGD", "fab_t": "FAB", "square": "Square"}
BUDGETS = {"eps": "eps", "at_8_255": "8/255", "l2": "eps_l2, in L2"}
BAR = r"\|"  # in a class's name; a plain one ends a cell
ATTACKS = {"clean": "clean", "pgd": "PGD", "strongest": "strongest"}

# From the highest to the lowest: the file and the key of each figure, below the model and (at 8/255) at_8_255
BOUNDS = {
    "FGSM": ("fgsm", "fgsm"),
    "FGSM, worst case over budgets": ("fgsm", "fgsm_worst"),
    "PGD": ("fgsm", "pgd"),
    "the audit's strongest": ("audit", "strongest"),
    "that, and PGD in L2": ("audit", "worst_of_norms"),
    "AutoAttack": ("autoattack", "all"),
}


def bounds(metrics: Mapping[str, Any]) -> str:
    """Of metrics/{fgsm,audit,autoattack}.json: a row an attack, what it leaves of both models, with its interval."""
    heads = [f"{model}, {name}" for model in MODELS for name in ("eps", "8/255")]
    lines = [f"| attack | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for attack, (file, key) in BOUNDS.items():
        cells = []
        for model in MODELS:
            of = metrics[file][model]
            cells += [_share(of.get("eps", of), key), _share(of["at_8_255"], key)]
        lines.append(f"| {attack} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(figures: Mapping[str, float], key: str) -> str:
    """A figure with its interval; empty where it was not measured."""
    if key not in figures:
        return ""
    return f"{figures[key]:.3f} [{figures[f'{key}_low']:.3f}, {figures[f'{key}_high']:.3f}]"


def autoattack(metrics: Mapping[str, Any]) -> str:
    """Of metrics/autoattack.json: a row a model and budget, what each part and all before it leave."""
    heads = [*PARTS.values(), "all, with its interval"]
    lines = [f"| model | budget | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    for model in MODELS:
        for budget, name in BUDGETS.items():
            of = metrics[model][budget]
            cells = [f"{of[part]:.3f}" if part in of else "" for part in PARTS]
            cells.append(f"**{of['all']:.3f}** [{of['all_low']:.3f}, {of['all_high']:.3f}]")
            lines.append(f"| {model} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def breakdown(metrics: Mapping[str, Any], classes: pd.DataFrame) -> str:
    """Of metrics/breakdown.json and plots/classes.csv: accuracy, the worst and the best class, calibration error."""
    lines = [
        "| model | images | accuracy | worst class | best class | calibration error |",
        "|---|---|---:|---|---|---:|",
    ]
    for model in MODELS:
        for attack, name in ATTACKS.items():
            of = metrics[model][attack]
            rows = classes[(classes["model"] == model) & (classes["attack"] == attack)]
            worst, best = (rows.nsmallest(1, "accuracy"), rows.nlargest(1, "accuracy"))
            ends = " | ".join(
                f"{str(row['class']).replace('|', BAR)} {row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
                for row in (*worst.to_dict("records"), *best.to_dict("records"))
            )
            error = f"{of['ece']:.3f}" if "ece" in of else ""
            lines.append(f"| {model} | {name} | {_share(of, 'accuracy')} | {ends} | {error} |")
    return "\n".join(lines)


def corruptions(metrics: Mapping[str, Any]) -> str:
    """Of metrics/corruptions.json: a row a kind, the mean over five severities."""
    lines = ["| | standard | robust | robust less standard |", "|---|---:|---:|---:|"]
    for kind in metrics["standard"]:
        cells = [f"{metrics[model][kind]:.3f}" for model in MODELS]
        lines.append(
            f"| {kind.replace('_', ' ')} | {' | '.join(cells)} | {metrics['robust_minus_standard'][kind]:+.3f} |"
        )
    return "\n".join(lines)


def certified(table: pd.DataFrame) -> str:
    """Of plots/certified.csv: a row a radius, the two bounds with their intervals."""
    lines = ["| L2 radius | certified | left by the attack |", "|---:|---:|---:|"]
    for radius, rows in table.groupby("radius"):
        by = rows.set_index("curve")
        cells = [
            f"{by.accuracy[curve]:.2f} [{by.low[curve]:.2f}, {by.high[curve]:.2f}]"
            for curve in ("certified", "attacked")
        ]
        lines.append(f"| {radius:.4g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """The tables of docs/audit.md by name."""
    try:
        metrics = {
            name: json.loads((artifacts.METRICS / f"{name}.json").read_text())
            for name in ("fgsm", "audit", "autoattack", "breakdown", "corruptions")
        }
        classes, both_sides = (pd.read_csv(artifacts.PLOTS / f"{name}.csv") for name in ("classes", "certified"))
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} is missing: run `dvc repro`")
    return {
        "bounds": bounds(metrics),
        "autoattack": autoattack(metrics["autoattack"]),
        "breakdown": breakdown(metrics["breakdown"], classes),
        "corruptions": corruptions(metrics["corruptions"]),
        "certified": certified(both_sides),
    }


def main() -> None:
    for name, text in tables().items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
