"""A card says what its model is, and names every figure that the audit objects to."""

import json
import shutil

import pandas as pd
import pytest

from scripts import cards, verdicts
from stages.common import params
from stages.common.artifacts import METRICS
from tests.repository import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The committed parameters and figures, in a folder of their own."""
    for name in ("params.yaml", "dvc.lock", "metrics", "plots/audit_verdicts.csv"):
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["cards", *arguments])
    cards.main()


def judged(project, **found):
    """The robust model's verdicts, passed but for those that `found` names."""
    table = verdicts.read()
    robust = table.model == "robust"
    table.loc[robust, ["verdict", "meaning"]] = ["pass", ""]
    for check, verdict in found.items():
        table.loc[robust & (table.check == check), ["verdict", "meaning"]] = [verdict, f"{check} means this"]
    table.to_csv(project / "plots/audit_verdicts.csv", index=False)


def rows(text, title):
    return [line for line in text.splitlines() if line.startswith(f"| {title}")]


def test_a_card_is_stale_when_what_it_is_made_from_changes(project, monkeypatch):
    write(monkeypatch)
    write(monkeypatch, "--check")
    found = json.loads((METRICS / "fgsm.json").read_text())
    found["robust"]["clean"] = 0.1234
    (METRICS / "fgsm.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit, match=r"error: docs/cards/robust.md: not as the figures are; run `make cards`"):
        write(monkeypatch, "--check")
    write(monkeypatch)
    assert "| accuracy on clean test images | 0.123 [" in (project / "docs/cards/robust.md").read_text()


def test_a_failed_check_is_named_at_the_figures_that_it_speaks_of(project, monkeypatch):
    judged(project, fgsm_close_to_pgd="FAIL", gradients_agree_nearby="warn")
    write(monkeypatch)
    text = (project / "docs/cards/robust.md").read_text()
    for row in rows(text, "under FGSM at"):
        assert row.endswith("| **not to be believed**: gradients_agree_nearby, fgsm_close_to_pgd |")
    assert all(row.endswith("|  |") for row in rows(text, "under PGD at"))
    assert "| fgsm_close_to_pgd | **FAIL** | " in text and "fgsm_close_to_pgd means this |" in text


def test_a_check_of_the_attacks_themselves_speaks_of_every_attack(project, monkeypatch):
    judged(project, planted_examples_found="warn")
    write(monkeypatch)
    text = (project / "docs/cards/robust.md").read_text()
    assert all(row.endswith("| with care: planted_examples_found |") for row in rows(text, "under "))
    assert rows(text, "accuracy on clean test images")[0].endswith("|  |")


def test_where_nothing_is_objected_to_the_card_says_what_that_is_worth(project, monkeypatch):
    judged(project)
    write(monkeypatch)
    text = (project / "docs/cards/robust.md").read_text()
    assert "No check of the audit warned or failed. That is no proof" in text


def test_training_is_told_as_it_was(project):
    (project / "mine.pt").touch()
    knobs = params.load(overrides={"train_robust.attack": "pgd", "train_standard.weights": "mine.pt"})
    metrics = {name: json.loads((METRICS / f"{name}.json").read_text()) for name in (*cards.READ, "train_robust")}
    metrics["train_standard"] = {"accuracy": dict.fromkeys(("train", "val", "test"), 0.5)}
    told = {which: cards.card(which, knobs, metrics, verdicts.read(), "0" * 32) for which in ("standard", "robust")}
    assert "Adopted: its weights are those of mine.pt" in told["standard"]
    assert "attacked by PGD with 10 steps; the budget grows" in told["robust"]


def test_missing_figures_are_one_line(project, monkeypatch):
    (METRICS / "ood.json").unlink()
    with pytest.raises(SystemExit, match=r"error: no figures to make cards of .*ood.json.*; run `dvc repro`"):
        write(monkeypatch)
    assert not (project / "docs").exists()


def test_every_check_that_a_card_knows_exists():
    table = pd.read_csv(ROOT / "plots/audit_verdicts.csv", keep_default_na=False)
    assert set(cards.DOUBTED) <= set(table.check)
