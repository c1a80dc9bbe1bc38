"""The report page carries everything in itself, and a real browser without a network draws all of it."""

import csv
import html
import json
import os
import re
import shutil
import subprocess
from copy import deepcopy

import pandas as pd
import pytest

from scripts import findings, markup, picture, report, summary, templates
from stages.common.artifacts import MODELS
from tests.repository import ROOT

# REPORT_BROWSER is set where no test may be left out, as in .ci/run
BROWSER = os.environ.get("REPORT_BROWSER") or next(
    filter(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")), None
)
looked_at = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        content = report.page(None)
        plots = picture.specs()
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(content, encoding="utf-8")
    return path, plots


def test_nothing_is_loaded_from_elsewhere(page):
    content = page[0].read_text(encoding="utf-8")
    markup = re.sub(r"<script>.*?</script>", "<script></script>", content, flags=re.S)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=(?![\"']?data:)", markup)
    assert content.count('src="data:image/png;base64,') == len(list((ROOT / "plots/images").glob("*.png"))) > 0


def test_figures_are_the_committed_ones(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    metrics, content = summary.read(None), page[0].read_text(encoding="utf-8")
    for title, name, key in summary.rows(metrics):
        cells = [summary.cell(metrics[name][model], key) for model in MODELS]
        assert f"<th>{title.replace(chr(39), '&#x27;')}</th><td>{cells[0]}</td><td>{cells[1]}</td>" in content
    assert content.count('class="fail"') == sum(metrics["audit"][model]["failed"] for model in MODELS)


def test_a_figure_that_moved_carries_the_difference(monkeypatch):
    monkeypatch.chdir(ROOT)
    now = summary.read(None)
    before = deepcopy(now)
    before["fgsm"]["robust"]["clean"] -= 0.25
    assert 'class="delta"' not in report.headline(now, deepcopy(now))
    assert re.findall(r'class="delta">(.*?)<', report.headline(now, before)) == ["+0.250"]


def test_a_figure_that_the_other_commit_lacks_is_shown_without_a_difference(monkeypatch):
    monkeypatch.chdir(ROOT)
    now = summary.read(None)
    before = deepcopy(now)
    del before["ood"]["robust"]["deep_knn_entropy"]
    assert report.headline(now, before) == report.headline(now, None)
    assert summary.cell(before["ood"]["robust"], "deep_knn_entropy.auroc") == ""


def test_a_check_that_had_nothing_to_look_at_is_grey_and_no_reason_for_doubt():
    rows = [
        {"model": "standard", "check": "a_b", "verdict": "n/a", "seen": "eps is 0 < 1", "meaning": ""},
        {"model": "robust", "check": "a_b", "verdict": "FAIL", "seen": "0.1", "meaning": "masked"},
        {"model": "robust", "check": "c", "verdict": "warn", "seen": "0.2", "meaning": "weak"},
        {"model": "standard", "check": "c", "verdict": "pass", "seen": "0", "meaning": ""},
    ]
    found = report.audit(pd.DataFrame(rows))
    assert '<th>a b</th><td class="na" title="eps is 0 &lt; 1">n/a</td><td class="fail" title="0.1">FAIL</td>' in found
    assert re.findall('<td class="said">(.*?)</td>', found) == ["robust: 0.1: masked", "robust: 0.2: weak"]
    style = markup.style()
    kinds = re.findall('<td class="([a-z]+)" title', found)
    assert sorted(kinds) == ["fail", "na", "pass", "warn"] and all(f".{kind} {{" in style for kind in kinds)


DATA = {
    "image_shape": [3, 24, 32],
    "sizes": {"train": 3000, "test": 20, "ood": 7, "extra": 5},
    "images_per_class": {"train": {"all": 2000, "cat": 1000}, "test": {"all": 12, "cat": 8}, "ood": {"cup": 7}},
    "extra_sets": ["noise"],
    "files": {"left_out": {".txt": 2, "in no class folder": 1}, "resized_from": {"9x70": 3}, "laid_on_white": 4},
    "copies": {"images that stand in two classes": 0, "OOD images that are images of a learnt class": 0},
}


def test_data_shows_images_by_split_and_class_and_what_became_of_the_files():
    shown = report.data(DATA)
    rows = re.findall("<tr>(.*?)</tr>", shown)
    assert [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in rows] == [
        ["images", "train", "test", "ood"],
        ["all", "3,000", "20", "7"],
        ["all", "2,000", "12", ""],  # a class may be called so
        ["cat", "1,000", "8", ""],
        ["cup", "", "", "7"],
    ]
    assert re.findall("<li>(.*?)</li>", shown)[2:] == [
        "5 images of more OOD sets: noise",
        "left out: 2 .txt, 1 in no class folder",
        "resized to 32x24: 3 of 9x70",
        "laid on white, since transparent in places: 4",
    ]
    plain = report.data(DATA | {"files": {"left_out": {}, "resized_from": {}, "laid_on_white": 0}, "extra_sets": []})
    assert re.findall("<li>(.*?)</li>", plain)[2:] == ["left out: no file"]


def test_data_warns_of_copies_and_of_nothing_else():
    assert "warning" not in report.data(DATA) and 'class="fail"' not in report.data(DATA)
    shown = report.data(DATA | {"copies": DATA["copies"] | {"images that stand in two classes": 1234}})
    warned = '<li class="fail">warning: the same image twice: 1,234 images that stand in two classes</li>'
    assert shown.count("warning") == 1 and warned in shown


def test_the_page_has_the_committed_data_as_they_are(page):
    committed = json.loads((ROOT / "metrics/data.json").read_text())
    assert report.data(committed) in page[0].read_text(encoding="utf-8")


def test_sections_stand_in_the_order_of_the_study_and_every_plot_in_one_of_them(page):
    path, plots = page
    content = path.read_text(encoding="utf-8")
    links, sections = re.findall('<a href="#(.*?)"', content), re.findall('<section id="(.*?)"', content)
    assert links == sections == list(report.SECTIONS)  # nothing is left for a last one
    assert sorted(re.findall('data-plot="(.*?)"', content)) == sorted(html.escape(name) for name in plots)
    assert content.count('<p class="doubt">') == len(sections)


def test_what_belongs_to_no_section_stands_in_a_last_one(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    links, sections = report.sections(findings.read(), ["plots/answers.csv"], {"mine_too": b"png"})
    assert 'href="#more"' in links
    last = sections.split("<section ")[-1]
    assert 'data-plot="plots/answers.csv"' in last and 'alt="mine too"' in last


def test_only_plots_that_the_other_commit_lacks_are_forgiven(monkeypatch):
    """DVC exits with 0 and lists what it could not read."""
    missing = {"name": "new", "rev": "HEAD~1", "source": "plots/new.csv", "type": "FileNotFoundError", "msg": ""}

    def dvc_says(error):
        answer = json.dumps({"errors": [error], "data": {"new": [{"type": "vega", "content": "{}"}]}})
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, answer, ""))

    dvc_says(missing)
    assert picture.specs("HEAD~1") == {"new": {}}
    for broken in ({**missing, "rev": "workspace"}, {**missing, "type": "ValueError"}):
        dvc_says(broken)
        with pytest.raises(RuntimeError, match="new"):
            picture.specs("HEAD~1")


def look_at(path):
    """What a browser without a network makes of the page, and what is said on its console."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--enable-logging=stderr"]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]
    shown = subprocess.run(
        [BROWSER, *options, *offline, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=300
    )
    return shown.stdout, re.findall(r"CONSOLE.*", shown.stderr)


@looked_at
def test_a_browser_without_a_network_draws_every_plot(page):
    path, plots = page
    shown, said = look_at(path)
    assert f'data-drawn="{len(plots)}"' in shown
    drawings = shown.split("<nav>")[1].split("<script>")[0]
    assert drawings.count("<svg") == len(plots) and drawings.count("<path") > 10 * len(plots)
    assert not said


OWN = "document.title='owned'"
HOSTILE = [f"<img src=x onerror={OWN}>", "<!--<script>", f"</script><script>{OWN}</script>", f"'\"><b onclick={OWN}>"]
HOVER = """<script>
  const wait = setInterval(() => {
    if (!document.body.dataset.drawn) return;
    clearInterval(wait);
    const told = document.body.appendChild(document.createElement("pre"));
    for (const mark of document.querySelectorAll("[data-plot] .mark-symbol path, [data-plot] .mark-rect path")) {
      mark.dispatchEvent(new PointerEvent("pointermove", {bubbles: true}));
      told.textContent += document.getElementById("vg-tooltip-element")?.innerHTML;
    }
    told.id = "told";
  }, 100);
</script>"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The page of a run whose classes, sets and kinds of files have names that are markup."""
    for name in ("metrics", "plots"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    kinds = {f".{name}": 1 for name in HOSTILE}
    names = {"classes": HOSTILE, "ood_classes": HOSTILE, "extra_sets": HOSTILE, "fingerprint": "0"}
    per_class = {"train": dict.fromkeys(HOSTILE, 1), "test": dict.fromkeys(HOSTILE, 1)}
    data = DATA | names | {"images_per_class": per_class}
    data["sizes"] = DATA["sizes"] | {"val": 4}
    data["files"] = {"left_out": kinds, "resized_from": {}, "laid_on_white": 0}
    (tmp_path / "metrics/data.json").write_text(json.dumps(data))
    specs = {}
    columns_of = {"ood_classes": ["class", "taken_for"], "audit_verdicts": ["seen", "meaning"], "classes": ["class"]}
    for table, columns in columns_of.items():
        with (tmp_path / f"plots/{table}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for number, row in enumerate(rows):
            row |= {"rev": "workspace"} | dict.fromkeys(columns, HOSTILE[number % len(HOSTILE)])
        pd.DataFrame(rows).to_csv(tmp_path / f"plots/{table}.csv", index=False)
        specs[f"plots/{table}.csv"] = templates.TEMPLATES[table] | {"data": {"values": rows}}
    monkeypatch.setattr(picture, "specs", lambda revision: specs)
    path = tmp_path / "report.html"
    path.write_text(report.page(None) + HOVER, encoding="utf-8")
    return path


@looked_at
def test_names_that_are_markup_are_shown_and_never_run(hostile):
    shown, said = look_at(hostile)
    assert "<title>FGSM" in shown and "owned</title>" not in shown
    assert 'data-drawn="3"' in shown and not said
    assert not re.findall("<img(?! alt=)|<b |<!--", shown.split("<script>")[0] + shown.split('id="told"')[1])
    told = html.unescape(shown.split('id="told">')[1].split("</pre>")[0])
    for name in HOSTILE:
        escaped = html.escape(name, quote=False)
        assert f"<th>{escaped}</th>" in shown  # in the table of images
        assert f">{html.escape(name[:12], quote=False)}" in shown.split("<nav>")[1]  # on an axis, cut to its width
        assert escaped in told  # in a tooltip
