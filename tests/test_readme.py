"""README says what is so: its figures are the committed ones, its files, targets and parameters exist."""

import re
from pathlib import Path

import pytest
import yaml

from scripts import summary, verdicts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_is_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = re.search(r"<!-- figures: python -m scripts.summary -->\n(.*?)\n<!-- /figures -->", README, re.S)
    assert shown and shown[1].strip() == summary.table(summary.read(None))


def test_the_verdicts_are_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/audit.md").read_text()
    shown = re.search(r"<!-- verdicts: python -m scripts.verdicts -->\n(.*?)\n<!-- /verdicts -->", page, re.S)
    assert shown and shown[1].strip() == verdicts.table(verdicts.read())


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets


@pytest.mark.parametrize("key", sorted(set(re.findall(r"-S '?([\w.]+)=", README))))
def test_parameters_to_turn_exist(key):
    section = yaml.safe_load((ROOT / "params.yaml").read_text())
    for part in key.split("."):
        assert part in section, key
        section = section[part]
