"""weights/ holds the two checkpoints of dvc.lock and nothing else, and a clone gets them without a server."""

import os
import shutil

import pytest
import yaml

from scripts import weights
from stages.common.artifacts import CHECKPOINTS, MODELS
from tests.repository import ROOT, call

PIPELINE = "stages:\n" + "".join(
    f"  train_{name}: {{cmd: cp {name} {path}, deps: [{name}], outs: [{path}]}}\n"
    for name, path in ((name, f"data/checkpoints/{name}.pt") for name in ("standard", "robust"))
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two stages that have made checkpoints, .dvc/config as it is committed, and the folder brought up to date."""
    folder = tmp_path / "project"
    (folder / "data/checkpoints").mkdir(parents=True)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / ".gitignore").write_text("data/checkpoints\n")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        call(folder, *command)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["weights"])
    train(folder, "first")
    weights.main()
    return folder


def train(folder, word):
    for name in ("standard", "robust"):
        (folder / name).write_text(f"{name}, {word}")
    call(folder, "dvc", "repro", "-q")


def kept(folder):
    return {path.read_text() for path in (folder / "weights").rglob("*") if path.is_file()}


def check(monkeypatch):
    monkeypatch.setattr("sys.argv", ["weights", "--check"])
    weights.main()


def test_a_new_training_makes_the_folder_stale_until_it_is_published(project, monkeypatch):
    assert kept(project) == {"standard, first", "robust, first"}
    train(project, "second")
    with pytest.raises(SystemExit, match=r"data/checkpoints/robust.pt is missing; .*run `make publish`"):
        check(monkeypatch)
    monkeypatch.setattr("sys.argv", ["weights"])
    weights.main()
    check(monkeypatch)
    assert kept(project) == {"standard, second", "robust, second"}
    assert len(list((project / "weights/files/md5").iterdir())) == 2  # no empty folder is left


def test_what_is_damaged_or_strange_is_found_and_put_right(project, monkeypatch):
    damaged = next(path for path in (project / "weights").rglob("*") if path.is_file())
    damaged.chmod(0o644)
    damaged.write_text("half")
    (project / "weights/notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"is damaged.*notes.txt: no checkpoint of dvc.lock"):
        check(monkeypatch)
    monkeypatch.setattr("sys.argv", ["weights"])
    weights.main()
    assert kept(project) == {"standard, first", "robust, first"}


def test_nothing_is_deleted_when_the_new_checkpoints_are_not_there(project):
    train(project, "second")
    shutil.rmtree(project / ".dvc/cache")
    with pytest.raises(SystemExit, match="run `dvc repro` first"):
        weights.main()
    assert kept(project) == {"standard, first", "robust, first"}


def test_a_remote_elsewhere_is_filled_and_left_alone_otherwise(project, tmp_path, monkeypatch, capsys):
    store = tmp_path / "store"
    store.mkdir()
    (store / "somebody-else-s").write_text("data")
    call(project, "dvc", "remote", "modify", "weights", "url", str(store))
    weights.main()
    check(monkeypatch)
    assert "not looked at" in capsys.readouterr().out
    assert sum(path.is_file() for path in store.rglob("*")) == 3


def test_a_clone_pulls_them_without_a_home_and_without_an_identity(project, tmp_path):
    call(project, "git", "add", "-A")
    call(project, "git", "commit", "-qm", "trained")
    call(tmp_path, "git", "clone", "-q", str(project), "clone")
    pull = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "dvc pull" in line).strip().lstrip("@")
    nobody = [f"-u{name}" for name in os.environ if name.startswith(("GIT_", "HOME", "XDG_"))]
    call(tmp_path / "clone", "env", *nobody, *pull.split())
    found = {path.name: path.read_text() for path in (tmp_path / "clone/data/checkpoints").glob("*.pt")}
    assert found == {"standard.pt": "standard, first", "robust.pt": "robust, first"}


def test_dvc_knows_both_models_by_name(project, tmp_path):
    """As docs/weights.md says: by an annotated tag, from the cache."""
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    assert {name: found["path"] for name, found in artifacts.items()} == {
        name: (CHECKPOINTS / f"{name}.pt").as_posix() for name in MODELS
    }
    (project / "dvc.yaml").write_text(PIPELINE + yaml.safe_dump({"artifacts": artifacts}))
    call(project, "git", "add", "-A")
    call(project, "git", "commit", "-qm", "trained")
    call(project, "git", "tag", "-a", "robust@v1.0.0", "-m", "first")
    call(project, "dvc", "artifacts", "get", ".", "robust", "-o", str(tmp_path / "got.pt"))
    assert (tmp_path / "got.pt").read_text() == "robust, first"


@pytest.mark.parametrize("content", [None, "stages: {", "stages: {prepare: {cmd: x}}"])
def test_a_lock_without_checkpoints_is_one_line(project, content):
    (project / "dvc.lock").unlink()
    if content is not None:
        (project / "dvc.lock").write_text(content)
    with pytest.raises(SystemExit, match=r"dvc.lock names no trained checkpoints \([^\n]*\); run `dvc repro`"):
        weights.main()
    assert kept(project) == {"standard, first", "robust, first"}
