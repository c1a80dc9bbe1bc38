"""README and docs/ say what is so: figures are the committed ones; files, targets and parameters exist."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from benchmarks import variants
from scripts import cards, detection, headline, judgement, summary, verdicts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
EVERYTHING = "\n".join(PAGES.values())


def test_the_table_is_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = re.search(r"<!-- figures: python -m scripts.summary -->\n(.*?)\n<!-- /figures -->", README, re.S)
    assert shown and shown[1].strip() == summary.table(summary.read(None))


def test_the_verdicts_are_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/audit.md").read_text()
    shown = re.search(r"<!-- verdicts: python -m scripts.verdicts -->\n(.*?)\n<!-- /verdicts -->", page, re.S)
    assert shown and shown[1].strip() == verdicts.table(verdicts.read())


@pytest.mark.parametrize(("name", "command"), [("ood.md", detection), ("audit.md", judgement)])
def test_marked_tables_are_what_their_command_prints(monkeypatch, name, command):
    monkeypatch.chdir(ROOT)
    page = PAGES[name]
    for name, text in command.tables().items():
        shown = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", page, re.S)
        assert shown and shown[1].strip() == text, name


def test_the_headline_is_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    mark = r"<!-- headline: python -m scripts.headline -->\n(.*?)\n<!-- /headline -->"
    shown = re.search(mark, PAGES["study.md"], re.S)
    kept = json.loads(headline.KEPT.read_text())
    assert shown and shown[1].strip() == headline.table(kept, headline.figures_of(None))


def test_the_variants_are_what_their_rows_come_to(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = variants.DOCUMENT.read_text()
    shown = page.partition(variants.START)[2].partition(variants.END)[0]
    assert shown.strip() == variants.table(pd.read_csv(variants.TABLE))


def test_the_cards_are_what_the_command_writes(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert not cards.stale()


def test_links_lead_somewhere():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", EVERYTHING, re.M)) <= targets


@pytest.mark.parametrize("key", sorted(set(re.findall(r"-S '?([\w.]+)=", EVERYTHING))))
def test_parameters_to_turn_exist(key):
    section = yaml.safe_load((ROOT / "params.yaml").read_text())
    for part in key.split("."):
        assert part in section, key
        section = section[part]
