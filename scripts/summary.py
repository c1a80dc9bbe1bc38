"""The headline figures of a commit, an experiment or the working tree, as a markdown table.

    python -m scripts.summary            # the working tree
    python -m scripts.summary demo       # an experiment, a branch, a commit

README's table is this command's output; tests/test_readme.py holds that.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException, FileMissingError, PathMissingError

Figures = Mapping[str, Any]  # what a metrics file says, of everything or of one model

ROWS = {
    "accuracy on clean test images": ("fgsm", "clean"),
    "under FGSM at eps": ("fgsm", "fgsm"),
    "under PGD at eps": ("fgsm", "pgd"),
    "under the audit's strongest attack at eps": ("audit", "strongest"),
    "under FGSM at 8/255": ("fgsm", "at_8_255.fgsm"),
    "under PGD at 8/255": ("fgsm", "at_8_255.pgd"),
    "under the audit's strongest attack at 8/255": ("audit", "at_8_255.strongest"),
    "under AutoAttack at eps": ("autoattack", "eps.all"),
    "under AutoAttack at 8/255": ("autoattack", "at_8_255.all"),
    "under APGD in L2 at eps_l2": ("autoattack", "l2.all"),
    "on corrupted images": ("corruptions", "mean"),
    "taken for the target class, clean": ("targeted", "clean_target_rate"),
    "taken for it under targeted FGSM at eps": ("targeted", "target_rate"),
    "OOD AUROC, max logit": ("ood", "max_logit.auroc"),
    "OOD AUROC, nearest neighbours": ("ood", "knn.auroc"),
    "OOD AUROC, deep neighbours and entropy": ("ood", "deep_knn_entropy.auroc"),
    "OOD images accepted at 95 % ID, max logit": ("ood", "max_logit.fpr95"),
    "audit: checks passed / failed": ("audit", "verdict"),
}

LATER = ("autoattack", "corruptions")  # metrics that a commit of before these stages lacks


def table(metrics: Mapping[str, Figures]) -> str:
    """Markdown of `metrics`: the content of each metrics/*.json, by its name without the ending."""
    names = models(metrics)
    lines = [f"| | {' | '.join(names)} | from |", "|---|" + "---:|" * len(names) + "---|"]
    for title, name, key in rows(metrics):
        cells = " | ".join(cell(metrics[name][model], key) for model in names)
        lines.append(f"| {title} | {cells} | metrics/{name}.json |")
    return "\n".join(lines)


def models(metrics: Mapping[str, Figures]) -> list[str]:
    """The models' names: what every metrics file has figures of."""
    first, *others = metrics.values()
    return [name for name in first if all(name in other for other in others)]


def rows(metrics: Mapping[str, Figures]) -> Iterator[tuple[str, str, str]]:
    """Title, file and key of each of ROWS that was measured, of one model at least."""
    for title, (name, key) in ROWS.items():
        if any(cell(metrics[name][model], key) for model in models(metrics)):
            yield title, name, key


def cell(figures: Figures, key: str) -> str:
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


def figure(figures: Figures, key: str) -> float | None:
    """The figure behind a dotted key, such as at_8_255.pgd; None if it was not measured."""
    found: Any = figures
    for part in key.split("."):
        found = found.get(part, {})
    return None if found == {} else float(found)


def read(revision: str | None) -> dict[str, Figures]:
    """The metrics files that `table` needs, of a revision or (None) of the working tree."""
    paths = {name: f"metrics/{name}.json" for name, _ in ROWS.values()}
    try:
        if revision is None:
            return {name: json.loads(Path(path).read_text()) for name, path in paths.items()}
        found = {name: _read_at(revision, name, path) for name, path in paths.items()}
    except (OSError, DvcException) as error:
        sys.exit(f"error: no metrics at {revision or 'the working tree'} ({error}); run `dvc repro` or `dvc exp list`")
    return {name: figures or {key: {} for key in found["fgsm"]} for name, figures in found.items()}


def _read_at(revision: str, name: str, path: str) -> Figures:
    """The content of a metrics file; none where it is one of LATER that this revision lacks."""
    try:
        found: Figures = json.loads(dvc.api.read(path, rev=revision))
    except (FileMissingError, PathMissingError):
        if name not in LATER:
            raise
        return {}
    return found


def main() -> None:
    print(table(read(sys.argv[1] if len(sys.argv) > 1 else None)))


if __name__ == "__main__":
    main()
