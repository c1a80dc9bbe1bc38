"""The tables that docs carry: what they print of made-up figures."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from scripts import detection, headline, summary, verdicts
from stages.common.artifacts import MODELS
from tests.repository import ROOT


@pytest.fixture
def metrics(monkeypatch):
    """The committed figures, from before the audit looked at 8/255."""
    monkeypatch.chdir(ROOT)
    found = summary.read(None)
    for model in MODELS:
        found["audit"][model].pop("at_8_255", None)
    return found


def test_summary_has_a_column_for_each_model(metrics):
    first, *_, last = summary.table(metrics).splitlines()
    assert summary.models(metrics) == list(MODELS)
    assert first == "| | standard | robust | from |"
    counts = [f"{metrics['audit'][model]['passed']} / {metrics['audit'][model]['failed']}" for model in MODELS]
    assert last == f"| audit: checks passed / failed | {counts[0]} | {counts[1]} | metrics/audit.json |"


def test_summary_has_a_row_for_what_was_measured(metrics):
    before = summary.table(metrics).splitlines()
    metrics["audit"]["robust"]["at_8_255"] = {"strongest": 0.4321}
    after = summary.table(metrics).splitlines()
    row = "| under the audit's strongest attack at 8/255 |  | 0.432 | metrics/audit.json |"
    place = next(number for number, line in enumerate(before) if line.startswith("| under PGD at 8/255 |")) + 1
    assert after == [*before[:place], row, *before[place:]]


def test_summary_needs_no_torch():
    """It is asked for often, and torch takes five times as long to load as the rest."""
    code = "import sys, scripts.summary; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_verdicts_say_what_a_check_saw_and_mark_what_is_unsound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/audit_verdicts.csv").write_text(
        "model,check,verdict,seen,meaning\n"
        "robust,one,n/a,nothing to compare,\nrobust,two,FAIL,0.1,masked\n"
        "standard,one,warn,0.2,weak\nstandard,two,pass,NA,\n"
    )
    assert verdicts.table(verdicts.read()).splitlines() == [
        "| check | standard | robust |",
        "|---|---|---|",
        "| one | **warn**: 0.2; weak | n/a: nothing to compare |",
        "| two | pass: NA | **FAIL**: 0.1; masked |",
    ]


def test_scores_table_marks_the_best_of_each_column():
    rows = [
        {"model": model, "set": key, "score": score, "auroc": auroc, "auroc_low": 0.1, "auroc_high": 0.9, "fpr95": 0.5}
        for model in MODELS
        for key, aurocs in {"ood": (0.7, 0.8), "far": (0.95, 0.6)}.items()
        for score, auroc in zip(("a", "b"), aurocs, strict=True)
    ]
    first, _, a, b = detection.scores(pd.DataFrame(rows)).splitlines()
    assert first == "| score | standard: ood [95 %], FPR95 | standard: far | robust: ood [95 %], FPR95 | robust: far |"
    assert a == "| a | 0.700 [0.100, 0.900], 0.50 | **0.950** | 0.700 [0.100, 0.900], 0.50 | **0.950** |"
    assert b == "| b | **0.800** [0.100, 0.900], 0.50 | 0.600 | **0.800** [0.100, 0.900], 0.50 | 0.600 |"


def test_attacked_table_has_a_column_for_each_budget():
    rows = [
        {"model": model, "score": "a", "attack": attack, "side": side, "eps": eps, "auroc": 0.9 - eps}
        for model in MODELS
        for attack in ("noise", "pgd")
        for side in ("ID down", "both")
        for eps in (0.0, 0.1)
    ]
    lines = detection.attacked(pd.DataFrame(rows)).splitlines()
    assert lines[0] == "| score | model | 0.0000 | 0.1000 |"
    assert lines[2:] == ["| a | standard | 0.900 | 0.800 |", "| a | robust | 0.900 | 0.800 |"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("plots", "metrics", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "plots/fgsm_sweep.csv").write_text("eps,robust,robust_pgd\n0,0.7,0.7\n0.05,0.45,0.0\n")
    (tmp_path / "metrics/fgsm.json").write_text(json.dumps({"robust": {"clean": 0.7, "fgsm": 0.45, "pgd": 0.0}}))
    verdicts = "model,check,verdict\nstandard,one,FAIL\nrobust,one,pass\nrobust,fgsm_close_to_pgd,FAIL\n"
    (tmp_path / "plots/audit_verdicts.csv").write_text(verdicts)
    return tmp_path


def test_headline_sets_both_recipes_and_the_robust_model_s_failed_checks_side_by_side(results):
    found = headline.figures_of(None)
    assert found["failed"] == ["fgsm_close_to_pgd"] and found["curves"]["pgd"] == [0.7, 0.0]
    study, ours = headline.table(found, found | {"failed": []}).splitlines()[2:]
    assert study.endswith("| 0.700 | 0.450 | 0.000 | **FAIL**: fgsm_close_to_pgd |")
    assert ours.endswith("| no check failed |")
    assert len(headline.draw(found, found).axes) == 2


def test_headline_without_figures_says_so(results, monkeypatch):
    monkeypatch.setattr("sys.argv", ["headline"])
    with pytest.raises(SystemExit, match="error: no figures"):
        headline.main()
