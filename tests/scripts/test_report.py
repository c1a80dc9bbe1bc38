"""The report page carries everything in itself, and a real browser without a network draws all of it."""

import json
import re
import shutil
import subprocess
from copy import deepcopy

import pandas as pd
import pytest

from scripts import picture, report, summary
from stages.common.artifacts import MODELS
from tests.repository import ROOT

BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")), None)


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
    style = report.TEMPLATE.read_text(encoding="utf-8")
    kinds = re.findall('<td class="([a-z]+)" title', found)
    assert sorted(kinds) == ["fail", "na", "pass", "warn"] and all(f".{kind} {{" in style for kind in kinds)


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


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_a_browser_without_a_network_draws_every_plot(page):
    path, plots = page
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--enable-logging=stderr"]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]
    shown = subprocess.run(
        [BROWSER, *options, *offline, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=300
    )
    assert f'data-drawn="{len(plots)}"' in shown.stdout
    drawings = shown.stdout.split('id="plots"')[1].split("<h2>")[0]
    assert drawings.count("<svg") == len(plots) and drawings.count("<path") > 10 * len(plots)
    assert not re.findall(r"CONSOLE.*", shown.stderr)
