"""What was found, for a person: a table on the terminal, and one page that carries everything in itself."""

import html
import shlex
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from scripts import markup
from scripts.examine.measure import Detection
from stages.common import artifacts, figures
from stages.common.audit.verdicts import Row
from stages.common.images import ImageSet
from stages.common.models import Classifier

TEMPLATE = Path(__file__).with_name("page.html")
ATTACKS = {
    "clean": "clean images",
    "fgsm": "FGSM",
    "fgsm_worst": "FGSM, worst of all budgets up to eps",
    "pgd": "PGD",
    "strongest": "the strongest attack (PGD's starts, then every margin)",
}
CURVES = {  # title, colour and line: what lies below another curve still shows
    "fgsm": ("FGSM", "#56B4E9", "-"),
    "fgsm_worst": ("FGSM, worst case", "#0072B2", ":"),
    "pgd": ("PGD", "#D55E00", "-"),
}
COLUMNS = 8  # images of the picture


def table(found: Mapping[str, Any], detected: Detection | None) -> str:
    """The figures on the terminal: accuracies with their intervals, the sweep, the audit, the detectors."""
    lines = [f"\naccuracy at eps {found['eps']:.4g}, {found['images']} images, with 95 % intervals"]
    for name, title in ATTACKS.items():
        lines.append(f"  {title:<56}{found[name]:.3f} [{found[f'{name}_low']:.3f}, {found[f'{name}_high']:.3f}]")
    towards = found["targeted"]
    if "target_rate" in towards:
        rates = f"{towards['target_rate']:.3f} (clean {towards['clean_target_rate']:.3f})"
        lines.append(f"  {'taken for ' + repr(towards['target']) + ' under targeted FGSM':<56}{rates}")
    sweep = found["sweep"]
    lines += ["", "  eps         " + "".join(f"{eps:>8.4f}" for eps in sweep["eps"])]
    lines += [f"  {name:<12}" + "".join(f"{value:>8.3f}" for value in sweep[name]) for name in CURVES]
    if detected is not None:
        lines += ["", *_detectors(detected)]
    audit = found["audit"]
    counts = f"{audit['passed']} passed, {audit['warned']} warned, {audit['failed']} failed"
    return "\n".join(
        [*lines, "", f"audit: {counts}" + ("" if not audit["failed"] else ": read them before any figure")]
    )


def _detectors(detected: Detection) -> list[str]:
    fitted = detected.figures["sizes"]["fitted"]
    lines = [f"{_sizes(detected)}, fitted on {fitted}: AUROC [95 %], FPR95; AUROC under PGD"]
    for name, cells in _cells(detected):
        lines.append(f"  {name:<24}{'  '.join(cells)}".rstrip())
    return [*lines, *(f"  {name:<24}n/a: {why}" for name, why in detected.not_applicable.items())]


def _sizes(detected: Detection) -> str:
    sizes = detected.figures["sizes"]
    return f"{sizes['id']} ID and {sizes['ood']} OOD images"


def _cells(detected: Detection) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Each detector's AUROC with its interval, FPR95, and AUROC under PGD on both sides where it was attacked."""
    attacked = detected.figures["attacked"]
    for name in detected.confidences:
        row = detected.figures[name]
        area = f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
        yield name, (area, f"{row['fpr95']:.3f}", f"{attacked[name]['pgd']:.3f}" if name in attacked else "")


def page(
    found: Mapping[str, Any],
    rows: Sequence[Row],
    detected: Detection | None,
    remarks: Sequence[str],
    form: str,
    model: Classifier,
    image_set: ImageSet,
) -> str:
    """The whole page: figures, curves, pictures of clean and attacked images, the audit, the detectors."""
    attacked = figures.attack_grid(
        model, image_set, [found["eps"]], name="examined", columns=min(COLUMNS, len(image_set))
    )
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        style=markup.style(),
        model=html.escape(found["model"]),
        images=f"{found['images']} images of {found['classes']} classes, {html.escape(form)}",
        eps=f"{found['eps']:.4g}",
        remarks="".join(f"<p class='warn'>{html.escape(remark)}</p>" for remark in remarks),
        accuracies=_accuracies(found),
        curves=_picture(sweep(found), "accuracy against eps"),
        attacked=_picture(attacked, "clean and attacked images"),
        audit=_audit(rows),
        ood="" if detected is None else _ood(detected),
        command=html.escape(shlex.join(["python", "-m", "scripts.examine", *sys.argv[1:]])),
    )


def _accuracies(found: Mapping[str, Any]) -> str:
    lines = []
    for name, title in ATTACKS.items():
        ends = f"{found[f'{name}_low']:.3f} to {found[f'{name}_high']:.3f}"
        lines.append(f"<tr><th>{title}</th><td>{found[name]:.3f}</td><td>{ends}</td></tr>")
    towards = found["targeted"]
    if "target_rate" in towards:
        title = (
            f"taken for {html.escape(towards['target'])} under targeted FGSM (clean {towards['clean_target_rate']:.3f})"
        )
        lines.append(f"<tr><th>{title}</th><td>{towards['target_rate']:.3f}</td><td></td></tr>")
    return f"<table><tr><th></th><th>accuracy</th><th>95 %</th></tr>{''.join(lines)}</table>"


def _audit(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        said = html.escape(row["seen"] + (f": {row['meaning']}" if row["meaning"] else ""))
        name = row["check"].replace("_", " ")
        cell = markup.verdict(row["verdict"], row["seen"])
        lines.append(f'<tr><th>{name}</th>{cell}<td class="said">{said}</td></tr>')
    return f"<table>{''.join(lines)}</table>"


def _ood(detected: Detection) -> str:
    lines = []
    for name, cells in _cells(detected):
        lines.append(f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    lines += [
        f'<tr><th>{name}</th><td class="na">n/a</td><td colspan="2" class="said">{html.escape(why)}</td></tr>'
        for name, why in detected.not_applicable.items()
    ]
    aurocs = {name: detected.figures[name]["auroc"] for name in detected.confidences}
    histograms = figures.score_histograms({"examined": detected.confidences}, {"examined": aurocs})
    fitted = detected.figures["sizes"]["fitted"]
    return (
        f"<h2>Out of distribution</h2><p>{_sizes(detected)}, detectors fitted on {fitted}.</p>"
        "<table><tr><th></th><th>AUROC [95 %]</th><th>FPR95</th><th>AUROC under PGD on both sides</th></tr>"
        f"{''.join(lines)}</table>{_picture(histograms, 'confidences of ID and OOD images')}"
    )


def sweep(found: Mapping[str, Any]) -> Figure:
    """Accuracy against eps under each attack."""
    figure = Figure(figsize=(6, 3.4), dpi=figures.DPI, layout="constrained")
    axes = figure.subplots()
    for name, (title, colour, line) in CURVES.items():
        x, y = found["sweep"]["eps"], found["sweep"][name]
        axes.plot(x, y, marker="o", markersize=4, linestyle=line, color=colour, label=title)
    axes.axvline(found["eps"], color="#999999", linewidth=1)
    axes.set_xlabel("eps (pixels in [0, 1])", fontsize=8)
    axes.set_ylabel("accuracy", fontsize=8)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _picture(figure: Figure, title: str) -> str:
    return markup.picture(title, artifacts.png(figure))
