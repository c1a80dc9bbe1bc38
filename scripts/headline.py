"""The reproduced study's own training recipe beside ours: both robust models attacked, and what the audit says.

    dvc exp run -n study-recipe \\
        -S 'train_robust={attack: fgsm, adversarial_fraction: 0.5, ramp: 0, undo_overfitting: false}'
    python -m scripts.headline study-recipe     # keeps that experiment's figures in docs/headline.json, and draws
    python -m scripts.headline                  # draws docs/headline.png again, from what was kept

README's table is this command's output; tests/test_readme.py holds that.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException
from matplotlib.figure import Figure

from stages.common import artifacts, figures

Figures = dict[str, Any]  # a recipe's: `curves`, `at_eps` and `failed`

KEPT, PICTURE = Path("docs/headline.json"), Path("docs/headline.png")
STUDY = "the study's recipe: clean and plain FGSM images, half and half"
OURS = "ours: N-FGSM, ramped and watched"


def figures_of(revision: str | None) -> Figures:
    """The robust model's curves, figures at eps and failed checks, of a revision or (None) of the working tree."""

    def read(path: str) -> str:
        return Path(path).read_text(encoding="utf-8") if revision is None else dvc.api.read(path, rev=revision)

    curves = pd.read_csv(io.StringIO(read("plots/fgsm_sweep.csv")))
    at_eps = json.loads(read("metrics/fgsm.json"))["robust"]
    verdicts = pd.read_csv(io.StringIO(read("plots/audit_verdicts.csv")), keep_default_na=False)
    failed = verdicts[(verdicts.model == "robust") & (verdicts.verdict == "FAIL")]
    return {
        "curves": {"eps": curves.eps.tolist(), "fgsm": curves.robust.tolist(), "pgd": curves.robust_pgd.tolist()},
        "at_eps": {name: at_eps[name] for name in ("clean", "fgsm", "pgd")},
        "failed": failed.check.tolist(),
    }


def table(study: Figures, ours: Figures) -> str:
    """Markdown: both recipes, their accuracies at eps and what the audit says of them."""
    lines = ["| robust model trained by | clean | FGSM at eps | PGD at eps | the audit |", "|---|---:|---:|---:|---|"]
    for name, found in ((STUDY, study), (OURS, ours)):
        verdict = f"**FAIL**: {', '.join(found['failed'])}" if found["failed"] else "no check failed"
        at = found["at_eps"]
        lines.append(f"| {name} | {at['clean']:.3f} | {at['fgsm']:.3f} | {at['pgd']:.3f} | {verdict} |")
    return "\n".join(lines)


def draw(study: Figures, ours: Figures) -> Figure:
    figure = Figure(figsize=(8.4, 3.4), dpi=figures.DPI, layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, 2, sharey=True), ((STUDY, study), (OURS, ours)), strict=True):
        curves = found["curves"]
        axes.plot(curves["eps"], curves["fgsm"], marker="o", markersize=4, color="#56B4E9", label="FGSM")
        axes.plot(curves["eps"], curves["pgd"], marker="o", markersize=4, color="#D55E00", label="PGD, 20 steps")
        axes.fill_between(curves["eps"], curves["pgd"], curves["fgsm"], color="#999999", alpha=0.25)
        axes.set_title(name.replace(": ", ":\n"), fontsize=9)
        axes.set_xlabel("eps (pixels in [0, 1])", fontsize=8)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("test accuracy", fontsize=8)
    return figure


def main() -> None:
    try:
        if len(sys.argv) > 1:
            artifacts.write_bytes(KEPT, (json.dumps(figures_of(sys.argv[1]), indent=1) + "\n").encode())
        study, ours = json.loads(KEPT.read_text()), figures_of(None)
    except (OSError, DvcException) as error:
        sys.exit(f"error: no figures of {sys.argv[1:] or 'the working tree'} ({error}); run the commands in {__file__}")
    artifacts.write_figure(PICTURE, draw(study, ours))
    print(table(study, ours))


if __name__ == "__main__":
    main()
