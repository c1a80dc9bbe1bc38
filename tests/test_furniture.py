"""What a repository is taken by: its version in one voice, its citation complete, its dependencies pinned."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()  # read by patterns: Python 3.10 has no tomllib
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def names(section: str) -> list[str]:
    """The dependencies of a list in pyproject.toml, without their versions."""
    found = re.search(rf"^{section} = \[(.*?)^\]", PROJECT, re.S | re.M)
    assert found, section
    return re.findall(r'^\s*"([\w.-]+)', found[1], re.M)


def test_the_version_is_the_same_everywhere():
    (version,) = re.findall(r'^version = "(.+?)"', PROJECT, re.M)
    newest = re.search(r"^## \[(.+?)\] - (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest and newest[1] == version == str(CITATION["version"])
    assert newest[2] == str(CITATION["date-released"])


def test_the_citation_has_what_its_format_asks_for():
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys() and CITATION["license"] == "MIT"
    for work in CITATION["references"]:
        assert {"type", "title", "authors", "year"} <= work.keys(), work
        assert all("family-names" in author for author in work["authors"]), work["title"]


@pytest.mark.parametrize("section", ["dependencies", "export", "dev"])
def test_every_dependency_is_pinned(section):
    pinned = {name.lower().replace(".", "-") for name in re.findall(r"^([\w.-]+)==", LOCK, re.M)}
    assert names(section) and {name.lower().replace(".", "-") for name in names(section)} <= pinned


def test_the_torch_of_the_figures_is_the_one_that_is_pinned():
    """`make lock` may take no other."""
    for pin in re.findall(r'"(torch(?:vision)?==[\d.]+)"', PROJECT):
        assert f"\n{pin}\n" in LOCK


def test_python_versions_of_ci_are_allowed():
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    versions = yaml.safe_load(text)["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == re.findall(r'"Programming Language :: Python :: ([\d.]+)"', PROJECT)
    assert f'requires-python = ">={versions[0]}"' in PROJECT
