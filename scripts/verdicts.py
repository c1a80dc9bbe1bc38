"""The audit's verdicts as a markdown table, with what each check saw: python -m scripts.verdicts

docs/audit.md carries this command's output for the committed figures; tests/test_readme.py holds that.
"""

import sys

import pandas as pd

from stages.common import artifacts
from stages.common.artifacts import MODELS

UNSOUND = ("warn", "FAIL")  # what a reader has to see; pass and n/a need no bold letters


def table(verdicts: pd.DataFrame) -> str:
    """Markdown of plots/audit_verdicts.csv: one row a check, one column a model, what it saw and what that means."""
    lines = [f"| check | {' | '.join(MODELS)} |", "|---" * (1 + len(MODELS)) + "|"]
    for check, rows in verdicts.groupby("check", sort=False):
        cells = {}
        for row in rows.to_dict("records"):
            verdict = f"**{row['verdict']}**" if row["verdict"] in UNSOUND else row["verdict"]
            cells[row["model"]] = f"{verdict}: {row['seen']}" + (f"; {row['meaning']}" if row["meaning"] else "")
        lines.append(f"| {check} | {' | '.join(cells[model] for model in MODELS)} |")
    return "\n".join(lines)


def read() -> pd.DataFrame:
    """plots/audit_verdicts.csv, in which n/a is a verdict and no missing value."""
    path = artifacts.PLOTS / "audit_verdicts.csv"
    if not path.is_file():
        sys.exit(f"error: {path} is missing: run `dvc repro audit`")
    return pd.read_csv(path, keep_default_na=False)


def main() -> None:
    print(table(read()))


if __name__ == "__main__":
    main()
