"""One self-contained page of everything that a run has found, in the order of the study: build/report.html opens from
disk, without a network.

python -m scripts.report              # the working tree
python -m scripts.report HEAD~1       # and what has changed since a commit, a branch or an experiment
"""

import argparse
import html
import json
import os
import platform
import string
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import vl_convert

from scripts import detection, findings, judgement, markup, picture, summary, verdicts
from stages.common import artifacts, errors
from stages.common.artifacts import MODELS

OUT = Path("build/report.html")
TEMPLATE = Path(__file__).with_name("report.html")


class Section(NamedTuple):
    """A part of the page: its title, the plots by DVC's names and the pictures, by file, that stand in it."""

    title: str
    plots: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()


# In the order of the study, by the name of what findings.py says of each
SECTIONS: Mapping[str, Section] = {
    "data": Section("Data"),
    "training": Section("Training", ("plots/training_standard.csv", "plots/training_robust.csv")),
    "attacks": Section(
        "Attacks: one step, and many",
        ("FGSM against PGD", "plots/fgsm_sweep.csv"),
        ("fgsm_standard", "fgsm_robust"),
    ),
    "targeted": Section(
        "Attacks towards one class",
        ("plots/targeted_sweep.csv", "Targeted accuracy"),
        (
            "targeted_clean_standard",
            "targeted_attacked_standard",
            "targeted_transferred_robust",
            "targeted_attacked_robust",
        ),
    ),
    "ood": Section(
        "Images of no class (OOD)",
        (
            "plots/roc_max_logit.csv",
            "plots/pr_max_logit.csv",
            "plots/roc_standard.csv",
            "plots/roc_robust.csv",
            "plots/pr_standard.csv",
            "plots/pr_robust.csv",
            "plots/ood_scores.csv",
            "plots/ood_classes.csv",
            "plots/ood_histogram_standard.csv",
            "plots/ood_histogram_robust.csv",
        ),
        ("ood_histograms", "ood_fooled"),
    ),
    "ood_attack": Section("Attacked detectors", ("plots/ood_attack.csv", "Attacks on max logit")),
    "audit": Section(
        "Audit: which figures may be believed",
        ("plots/audit_verdicts.csv", "plots/audit_standard.csv", "plots/audit_robust.csv", "plots/smallest_eps.csv"),
        ("loss_surface",),
    ),
    "autoattack": Section("AutoAttack: a stronger attack", ("plots/autoattack.csv",)),
    "breakdown": Section(
        "Class by class, and confidence",
        ("plots/classes.csv", "plots/reliability.csv", "plots/confusion.csv", "Confusion of clean images"),
    ),
    "corruptions": Section("Corruptions: damage without an enemy", ("plots/corruptions.csv",)),
    "certified": Section("Certified: a bound from below", ("plots/certified.csv",)),
}
MORE = "More"  # a stage of somebody's own


def headline(now: Mapping[str, summary.Figures], before: Mapping[str, summary.Figures] | None) -> str:
    """The rows of `summary.rows` as an HTML table; a figure that differs from `before` carries the difference."""
    head = f"<tr><th></th>{''.join(f'<th>{model}</th>' for model in MODELS)}<th>from</th></tr>"
    rows = []
    for title, name, key in summary.rows(now):
        cells = "".join(f"<td>{_cell(now[name][m], before and before[name].get(m), key)}</td>" for m in MODELS)
        source = f"<code>metrics/{name}.json</code>"
        rows.append(f"<tr><th>{html.escape(title)}</th>{cells}<td>{source}</td></tr>")
    return f"<table>{head}{''.join(rows)}</table>"


def _cell(figures: summary.Figures, before: summary.Figures | None, key: str) -> str:
    shown = html.escape(summary.cell(figures, key))
    if before is None or key == "verdict":
        return shown
    was, found = summary.figure(before, key), summary.figure(figures, key)
    if was is None or found is None or abs(found - was) < 0.0005:
        return shown
    difference = found - was
    return f'{shown} <span class="delta">{difference:+.3f}</span>'


def audit(found: pd.DataFrame) -> str:
    """Each check's verdict on both models, with what it saw; `found` is plots/audit_verdicts.csv."""
    rows = []
    for check, both in found.groupby("check", sort=False):
        by_model = {row["model"]: row for row in both.to_dict("records")}
        cells = "".join(markup.verdict(by_model[model]["verdict"], by_model[model]["seen"]) for model in MODELS)
        unsound = [row for row in by_model.values() if row["verdict"] in verdicts.UNSOUND]
        said = "<br>".join(html.escape(f"{row['model']}: {row['seen']}: {row['meaning']}") for row in unsound)
        name = html.escape(str(check).replace("_", " "))
        rows.append(f'<tr><th>{name}</th>{cells}<td class="said">{said}</td></tr>')
    head = "".join(f"<th>{model}</th>" for model in MODELS)
    return f"<table><tr><th></th>{head}<th></th></tr>{''.join(rows)}</table>"


def data(found: Mapping[str, Any]) -> str:
    """Images per split and class, and what became of the files; `found` is metrics/data.json."""
    by_split: Mapping[str, Mapping[str, int]] = found["images_per_class"]
    rows = []
    for name in dict.fromkeys(name for counts in by_split.values() for name in counts):
        cells = "".join(f"<td>{counts[name]:,}</td>" if name in counts else "<td></td>" for counts in by_split.values())
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{split}</th>" for split in by_split)
    whole = "".join(f"<td>{found['sizes'][split]:,}</td>" for split in by_split)
    table = f"<table><tr><th>images</th>{head}</tr><tr><th>all</th>{whole}</tr>{''.join(rows)}</table>"
    return f'<div class="scrolled">{table}</div><ul>{"".join(_account(found))}</ul>'


def _account(found: Mapping[str, Any]) -> Iterator[str]:
    """Items of a list: copies, a warning if there are any; files left out and why; what was done to images."""
    for where, number in found["copies"].items():
        said = f"{number:,} {html.escape(where)}"
        yield f'<li class="fail">warning: the same image twice: {said}</li>' if number else f"<li>{said}</li>"
    files, sets = found["files"], ", ".join(found["extra_sets"])
    if sets:
        yield f"<li>{found['sizes']['extra']:,} images of more OOD sets: {html.escape(sets)}</li>"
    yield f"<li>left out: {_counts(files['left_out']) or 'no file'}</li>"
    if files["resized_from"]:
        shape = "x".join(str(side) for side in reversed(found["image_shape"][1:]))
        yield f"<li>resized to {shape}: {_counts(files['resized_from'], of='of ')}</li>"
    if files["laid_on_white"]:
        yield f"<li>laid on white, since transparent in places: {files['laid_on_white']:,}</li>"


def _counts(counts: Mapping[str, int], of: str = "") -> str:
    return html.escape(", ".join(f"{number:,} {of}{what}" for what, number in counts.items()))


def training(metrics: Mapping[str, Any]) -> str:
    """Both models' accuracy on the three splits; `metrics` are by name."""
    splits = ("train", "val", "test")
    rows = "".join(
        f"<tr><th>{model}</th>{''.join(f'<td>{accuracy[split]:.3f}</td>' for split in splits)}</tr>"
        for model in MODELS
        for accuracy in [metrics[f"train_{model}"]["accuracy"]]
    )
    return f"<table><tr><th>accuracy</th>{''.join(f'<th>{split}</th>' for split in splits)}</tr>{rows}</table>"


def tables(found: findings.Results) -> dict[str, str]:
    """The tables of each section that has some, as HTML: the same that docs/ shows."""
    judged = {name: markup.table(text) for name, text in judgement.tables().items()}
    detected = {name: markup.table(text) for name, text in detection.tables().items()}
    if found.tables["certified"].empty:
        del judged["certified"]
    return judged | {
        "data": data(found.metrics["data"]),
        "training": training(found.metrics),
        "ood": markup.folded("every score, with intervals", detected["scores"])
        + markup.folded("at a threshold set on validation images", detected["thresholds"]),
        "ood_attack": markup.folded("every budget", detected["attacked"]),
        "audit": audit(found.tables["audit_verdicts"]),
    }


def sections(found: findings.Results, plots: Collection[str], pictures: Mapping[str, bytes]) -> tuple[str, str]:
    """Links to the sections, and the sections, as HTML. `plots` are DVC's names; `pictures` are PNGs by name.

    What belongs to none of SECTIONS, a stage of somebody's own, stands in one more at the end.
    """
    shown = tables(found)
    known = {plot for section in SECTIONS.values() for plot in section.plots}
    drawn = {picture for section in SECTIONS.values() for picture in section.pictures}
    rest = Section(MORE, tuple(set_apart(plots, known)), tuple(set_apart(pictures, drawn)))
    links, parts = [], []
    for name, section in {**SECTIONS, "more": rest}.items():
        told = findings.SECTIONS[name](found) if name in findings.SECTIONS else findings.Said("", "")
        content = [
            told.see and f"<p>{html.escape(told.see)}</p>",
            told.doubt and f'<p class="doubt">{html.escape(told.doubt)}</p>',
            shown.get(name, ""),
            markup.plots([plot for plot in section.plots if plot in plots]),
            *(
                markup.picture(picture.replace("_", " "), pictures[picture])
                for picture in section.pictures
                if picture in pictures
            ),
        ]
        if any(content):
            links.append(f'<a href="#{name}">{html.escape(section.title.partition(":")[0])}</a>')
            body = "\n".join(filter(None, content))
            parts.append(f'<section id="{name}">\n<h2>{html.escape(section.title)}</h2>\n{body}\n</section>')
    return "\n".join(links), "\n".join(parts)


def set_apart(names: Iterable[str], known: set[str]) -> list[str]:
    return sorted(set(names) - known)


def environment(images: str) -> str:
    """What the page was made from; `images` is their fingerprint."""
    facts = {
        "commit": _git("describe", "--always", "--dirty"),
        "images": images,
        "Python": platform.python_version(),
        **{package: version(package) for package in ("torch", "torchvision", "dvc")},
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    return "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return ran.stdout.strip() or "no git repository"


def page(revision: str | None) -> str:
    """The whole page, comparing the working tree with `revision` if there is one.

    Raises UserError for results that are missing and for wrong parameters, RuntimeError as `picture.specs` does.
    """
    now, before = summary.read(None), summary.read(revision) if revision else None
    found = findings.read()
    specs = picture.specs(revision)
    for spec in specs.values():
        spec.pop("$schema", None)  # names the Vega-Lite of DVC's own page; the one carried here is newer and says so
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its annotation lacks the default
    plots = json.dumps(specs).replace("<", "\\u003c")  # a class of this name could end the script that carries them
    pictures = {path.stem: path.read_bytes() for path in sorted(artifacts.IMAGES.glob("*.png"))}
    links, parts = sections(found, specs.keys(), pictures)
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        style=markup.style(),
        dataset=html.escape(found.knobs.dataset),
        eps=f"{found.knobs.eps:.4g}",
        compared=f", compared with <b>{html.escape(revision)}</b>" if revision else "",
        short=html.escape(findings.in_short(found)),
        headline=headline(now, before),
        links=links,
        sections=parts,
        params=html.escape(Path("params.yaml").read_text(encoding="utf-8")),
        environment=environment(found.metrics["data"]["fingerprint"]),
        vega=bundle.replace("</script", "<\\/script"),
        plots=plots,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", help="what to compare the working tree with")
    revision = parser.parse_args().revision
    try:
        content = page(revision)
    except RuntimeError as error:
        raise errors.UserError(str(error)) from None
    artifacts.write_bytes(OUT, content.encode())
    print(f"{OUT} ({len(content) / 2**20:.1f} MB) opens in any browser, without a network")


if __name__ == "__main__":
    errors.run(main)
