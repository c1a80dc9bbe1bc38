"""The headline figures of a commit, an experiment or the working tree, as a markdown table.

    python -m scripts.summary            # the working tree
    python -m scripts.summary demo       # an experiment, a branch, a commit

README's table is this command's output; tests/test_readme.py holds that.
"""

import json
import sys
from pathlib import Path

import dvc.api
from dvc.exceptions import DvcException

ROWS = {
    "accuracy on clean test images": ("fgsm", "clean"),
    "under FGSM at eps": ("fgsm", "fgsm"),
    "under PGD at eps": ("fgsm", "pgd"),
    "under the audit's strongest attack at eps": ("audit", "strongest"),
    "under FGSM at 8/255": ("fgsm", "at_8_255.fgsm"),
    "under PGD at 8/255": ("fgsm", "at_8_255.pgd"),
    "taken for the target class, clean": ("targeted", "clean_target_rate"),
    "taken for it under targeted FGSM at eps": ("targeted", "target_rate"),
    "OOD AUROC, max logit": ("ood", "max_logit.auroc"),
    "OOD AUROC, nearest neighbours": ("ood", "knn.auroc"),
    "OOD AUROC, deep neighbours and entropy": ("ood", "deep_knn_entropy.auroc"),
    "OOD images accepted at 95 % ID, max logit": ("ood", "max_logit.fpr95"),
    "audit: checks passed / failed": ("audit", "verdict"),
}


def table(metrics: dict[str, dict]) -> str:
    """Markdown of `metrics`: the content of each metrics/*.json, by its name without the ending."""
    lines = ["| | standard | robust | from |", "|---|---:|---:|---|"]
    for title, (name, key) in ROWS.items():
        cells = [cell(metrics[name][model], key) for model in ("standard", "robust")]
        lines.append(f"| {title} | {cells[0]} | {cells[1]} | metrics/{name}.json |")
    return "\n".join(lines)


def cell(figures: dict, key: str) -> str:
    """One cell of the table: a figure with three places, with its interval if it has one, or the audit's counts.

    Empty for a figure that was not measured: an older commit may lack it.
    """
    if key == "verdict":
        return f"{figures['passed']} / {figures['failed']}"
    found = figure(figures, key)
    if found is None:
        return ""
    low, high = (figure(figures, f"{key}_{end}") for end in ("low", "high"))
    return f"{found:.3f}" if low is None else f"{found:.3f} [{low:.3f}, {high:.3f}]"


def figure(figures: dict, key: str) -> float | None:
    """The figure behind a dotted key, such as at_8_255.pgd; None if it was not measured."""
    found = figures
    for part in key.split("."):
        found = found.get(part, {})
    return None if found == {} else found


def read(revision: str | None) -> dict[str, dict]:
    """The metrics files that `table` needs, of a revision or (None) of the working tree."""
    paths = {name: f"metrics/{name}.json" for name, _ in ROWS.values()}
    try:
        if revision is None:
            return {name: json.loads(Path(path).read_text()) for name, path in paths.items()}
        return {name: json.loads(dvc.api.read(path, rev=revision)) for name, path in paths.items()}
    except (OSError, DvcException) as error:
        sys.exit(f"error: no metrics at {revision or 'the working tree'} ({error}); run `dvc repro` or `dvc exp list`")


def main() -> None:
    print(table(read(sys.argv[1] if len(sys.argv) > 1 else None)))


if __name__ == "__main__":
    main()
