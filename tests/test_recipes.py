"""docs/extending.md: every recipe, applied word for word to a fresh clone, runs and shows up where it says."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests import pages
from tests.repository import SMALL, call, new_repository, ran

RECIPES = pages.sections(pages.read("extending.md"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository in which the pipeline has run on the digits, with small settings and its results committed."""
    folder = new_repository(tmp_path_factory.mktemp("finished"), SMALL | {"targeted_sweep.target": "null"})
    call(folder, "dvc", "repro")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-qm", "results")
    return folder


@pytest.fixture
def clone(finished, tmp_path):
    """A copy of it to change, its cache included."""
    return Path(shutil.copytree(finished, tmp_path / "clone"))


def run(recipe, folder):
    """Apply the recipe and run its commands; what it leaves must pass the linter, its deps be as its imports say."""
    pages.apply(recipe, folder)
    *before, last = (command for command, _ in pages.commands(recipe))
    for command in before:
        call(folder, *command.split())
    call(folder, sys.executable, "-m", "scripts.deps", "--check")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-qm", "recipe")
    call(folder, "ruff", "check", "--quiet", ".")
    call(folder, "ruff", "format", "--check", "--quiet", "stages")
    return call(folder, *last.split())


def metrics(folder, name):
    return json.loads((folder / f"metrics/{name}.json").read_text())


def test_an_ood_score(clone):
    assert ran(run(RECIPES["An OOD score"], clone)) == {"ood_eval", "ood_attack"}
    found = metrics(clone, "ood")
    assert all(0 < found[model]["logit_deviation"]["auroc"] < 1 for model in ("standard", "robust"))
    assert "logit_deviation" in set(pd.read_csv(clone / "plots/ood_scores.csv").score)


def test_a_training_attack(clone):
    run(RECIPES["A training attack"], clone)
    assert yaml.safe_load((clone / "params.yaml").read_text())["train_robust"]["attack"] == "two-step"
    assert metrics(clone, "train_robust")["accuracy"]["test"] > 0.2


def test_a_model(clone):
    run(RECIPES["A model"], clone)
    assert metrics(clone, "train_standard")["accuracy"]["test"] > 0.15
    assert metrics(clone, "ood")["standard"]["deep_knn"]["auroc"] > 0


def test_a_data_set(clone):
    run(RECIPES["A data set"], clone)
    data = metrics(clone, "data")
    assert data["dataset"] == "bars" and data["image_shape"] == [1, 12, 12] and data["ood_classes"] == ["slanting"]
    assert metrics(clone, "train_standard")["accuracy"]["test"] > 0.9


def test_a_stage(clone):
    assert ran(run(RECIPES["A stage"], clone)) == {"answers"}
    table = pd.read_csv(clone / "plots/answers.csv")
    assert set(table.model) == {"standard", "robust"} and len(table) == 2 * metrics(clone, "data")["sizes"]["test"]
    assert "plots/answers.csv" in call(clone, "dvc", "plots", "show", "--json", "plots/answers.csv").stdout


def test_a_check(clone):
    assert ran(run(RECIPES["A check of the audit"], clone)) == {"audit"}
    found = metrics(clone, "audit")
    assert all(found[model]["every_class_is_answered"] in (0, 1) for model in ("standard", "robust"))


def test_a_team_shares_checkpoints_through_a_remote(clone, tmp_path_factory):
    """dvc push, a fresh clone, dvc pull: every plot comes back, and nothing is trained."""
    store, other = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("other")
    call(clone, "dvc", "remote", "add", "-d", "team", str(store))
    call(clone, "git", "add", "-A")
    call(clone, "git", "commit", "-qm", "a remote")
    call(clone, "dvc", "push")
    call(other, "git", "clone", "-q", str(clone), ".")
    assert not (other / "data/checkpoints").exists()
    call(other, "dvc", "pull")
    done = call(other, "dvc", "repro")
    assert not ran(done) and "up to date" in done.stdout
    for name in ("standard", "robust"):
        path = f"data/checkpoints/{name}.pt"
        assert (other / path).read_bytes() == (clone / path).read_bytes()
    shown = json.loads(call(other, "dvc", "plots", "show", "--json").stdout)
    assert len(shown["data"]) == len(json.loads(call(clone, "dvc", "plots", "show", "--json").stdout)["data"]) > 15
    assert not shown.get("errors")
