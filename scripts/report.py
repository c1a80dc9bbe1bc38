"""One self-contained page of everything that a run has found: build/report.html opens from disk, without a network.

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
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
from ruamel.yaml import YAML

from scripts import markup, picture, summary, verdicts
from stages.common import artifacts
from stages.common.artifacts import MODELS

OUT = Path("build/report.html")
TEMPLATE = Path(__file__).with_name("report.html")


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


def pictures(folder: Path) -> str:
    """Every PNG of `folder`, carried in the page."""
    return "\n".join(
        markup.picture(path.stem.replace("_", " "), path.read_bytes()) for path in sorted(folder.glob("*.png"))
    )


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
    """The whole page, comparing the working tree with `revision` if there is one."""
    now, before = summary.read(None), summary.read(revision) if revision else None
    params = Path("params.yaml").read_text(encoding="utf-8")
    knobs = YAML(typ="safe", pure=True).load(params)
    images = json.loads((artifacts.METRICS / "data.json").read_text(encoding="utf-8"))
    specs = picture.specs(revision)
    for spec in specs.values():
        spec.pop("$schema", None)  # names the Vega-Lite of DVC's own page; the one carried here is newer and says so
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its annotation lacks the default
    plots = json.dumps(specs).replace("<", "\\u003c")  # a class of this name could end the script that carries them
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        style=markup.style(),
        dataset=html.escape(str(knobs["dataset"])),
        eps=html.escape(str(knobs["eps"])),
        compared=f", compared with <b>{html.escape(revision)}</b>" if revision else "",
        headline=headline(now, before),
        audit=audit(verdicts.read()),
        data=data(images),
        pictures=pictures(artifacts.IMAGES),
        params=html.escape(params),
        environment=environment(images["fingerprint"]),
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
        raise SystemExit(f"error: {error}") from None
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(content, encoding="utf-8")
    print(f"{OUT} ({len(content) / 2**20:.1f} MB) opens in any browser, without a network")


if __name__ == "__main__":
    main()
