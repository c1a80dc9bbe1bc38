"""What the report says in words is what the figures say, whichever way they point."""

from copy import deepcopy

import pandas as pd
import pytest

from scripts import findings, report
from stages.common import params
from stages.common.errors import UserError
from tests.repository import ROOT


@pytest.fixture
def found(monkeypatch):
    """The committed results, to be changed."""
    monkeypatch.chdir(ROOT)
    read = findings.read()
    return read._replace(metrics=deepcopy(read.metrics), tables=dict(read.tables))


def said(found, section):
    return " ".join(findings.SECTIONS[section](found))


def test_each_section_of_the_report_is_told_in_a_few_sentences(found):
    assert list(findings.SECTIONS) == list(report.SECTIONS)
    for section, tell in findings.SECTIONS.items():
        see, doubt = tell(found)
        assert 40 < len(see) < 330 and 40 < len(doubt) < 330, section
        assert see.endswith(".") and doubt.endswith(".") and "nan" not in f"{see}{doubt}".lower(), section


def test_a_figure_in_a_sentence_is_the_metric(found):
    found.metrics["fgsm"]["robust"]["pgd"] = 0.1234
    assert "PGD) leave" in said(found, "attacks") and " 0.123." in said(found, "attacks")
    assert findings.in_short(found).startswith("Against the standard model, robust training is worth +12 points")
    assert "eps 0.05" in said(found, "attacks")
    other = found._replace(knobs=params.load(overrides={"eps": 0.2}))
    assert "eps 0.2 " in said(other, "attacks") and "eps 0.05" not in said(other, "attacks")


def test_a_model_whose_fgsm_figure_the_audit_passes_is_not_doubted(found):
    assert "Do not believe FGSM's figure of the standard model" in said(found, "attacks")
    table = found.tables["audit_verdicts"].copy()
    table.loc[table["check"] == "fgsm_close_to_pgd", "verdict"] = "pass"
    found.tables["audit_verdicts"] = table
    assert "Do not believe" not in said(found, "attacks")


def test_training_tells_what_was_undone_and_a_smaller_budget(found):
    assert "overfitted" not in said(found, "training") and "no more than" not in said(found, "training")
    found.metrics["train_robust"] |= {"overfitted_epochs": 3, "trained_eps": 0.0375}
    assert "were undone: 3." in said(found, "training")
    assert "trained at no more than 0.0375" in said(found, "training")
    kept = found._replace(knobs=params.load(overrides={"train_robust.undo_overfitting": False}))
    assert "were kept: 3." in said(kept, "training")
    del found.metrics["train_robust"]["trained_eps"]  # of adopted weights
    assert "no more than" not in said(found, "training")


def test_copies_come_before_anything_about_guessing(found):
    assert "commonest class is right on 10%" in said(found, "data")
    found.metrics["data"]["copies"] = {"test images that are training images": 12}
    assert "twice in 12 cases" in said(found, "data")


def test_a_rate_that_falls_back_is_told_from_one_that_grows(found):
    assert "overshoots" in said(found, "targeted") and "towards horse" in said(found, "targeted")
    smaller = found._replace(knobs=params.load(overrides={"eps": 0.005}))  # the peak is yet to come
    assert "overshoots" not in said(smaller, "targeted")
    found.metrics["targeted"]["standard"]["target_rate"] = 0.9
    assert "overshoots" not in said(found, "targeted")


def test_attacks_that_disagree_are_told(found):
    assert "agree within" in said(found, "autoattack")
    found.metrics["audit"]["robust"] |= {"strongest": 0.6, "strongest_low": 0.5, "strongest_high": 0.7}
    assert "disagree, believe the lower" in said(found, "autoattack")


def test_without_a_certificate_there_is_nothing_to_doubt(found):
    found.tables["certified"] = pd.DataFrame(columns=["radius", "curve", "accuracy", "low", "high"])
    found.metrics["certify"]["robust"] = {}
    assert findings.certified(found) == ("Nothing was certified: certify.images is 0.", "")
    assert "certified" not in report.tables(found)


def test_a_missing_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^metrics/data.json is missing: run `dvc repro`$"):
        findings.read()
