"""What DVC has left half-done is put right, so that it goes on and nothing is run again; all else is left alone."""

import json
import time

import dvc.lock
import pytest
from dvc.dvcfile import Lockfile
from dvc.repo import Repo

from scripts import mend
from tests.repository import SMALL, call, new_repository, ran

PIPELINE = "stages:\n" + "".join(
    f"  {name}: {{cmd: cp {dep} {out}, deps: [{dep}], outs: [{out}]}}\n"
    for name, dep, out in [("first", "a", "b"), ("second", "b", "c"), ("third", "c", "d")]
)


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """A pipeline of three stages that has run, and its dvc.lock."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "a").write_text("some data\n")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"], ["git", "add", "-A"]):
        call(folder, *command)
    call(folder, "git", "rm", "-q", "--cached", "dvc.lock")
    call(folder, "git", "commit", "-qm", "start")
    return folder, (folder / "dvc.lock").read_bytes()


@pytest.fixture
def project(run_once, monkeypatch):
    """The working folder is that pipeline's, with dvc.lock whole and not committed."""
    folder, whole = run_once
    (folder / "dvc.lock").write_bytes(whole)
    monkeypatch.chdir(folder)
    return folder


def test_dvc_goes_on_wherever_its_lock_was_cut_and_runs_nothing_again(project, capsys):
    path = project / "dvc.lock"
    whole = path.read_bytes()
    outcomes = set()
    for length in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:length])
        mend.mend()
        assert path.exists() == ("dvc.lock was cut short and is deleted" not in capsys.readouterr().out)
        if path.exists():
            assert path.read_bytes() == whole[:length]
            Lockfile(Repo(), str(path)).load()  # DVC can read it
        outcomes.add(path.exists())
    assert outcomes == {True, False}
    for length in (len(whole) // 2, whole.index(b"  third:")):
        path.write_bytes(whole[:length])
        mend.mend()
        assert not ran(call(project, "dvc", "repro")) and path.read_bytes() == whole


def test_a_whole_lock_or_none_is_left_alone(project, capsys):
    mend.mend()
    whole = (project / "dvc.lock").read_bytes()
    (project / "dvc.lock").unlink()
    mend.mend()
    assert whole and not (project / "dvc.lock").exists() and not capsys.readouterr().out


def test_a_lock_that_was_committed_is_put_back(project, capsys):
    whole = (project / "dvc.lock").read_bytes()
    call(project, "git", "add", "dvc.lock")
    call(project, "git", "commit", "-qm", "lock")
    (project / "dvc.lock").write_bytes(whole[: len(whole) // 2])
    mend.mend()
    assert (project / "dvc.lock").read_bytes() == whole
    assert "put back as it was committed" in capsys.readouterr().out
    call(project, "git", "reset", "-q", "HEAD~1")


def test_a_list_of_running_commands_that_was_cut_is_deleted(project):
    path = project / ".dvc/tmp/rwlock"
    whole = json.dumps({"write": {"b": {"pid": 1, "cmd": "dvc repro"}}})
    for length in range(len(whole)):
        path.write_text(whole[:length])
        mend.mend()
        assert not path.exists()
    path.write_text(whole)
    mend.mend()
    assert path.read_text() == whole
    path.unlink()


def test_files_under_dvcs_temporary_names_go_when_nobody_writes_them(project, monkeypatch):
    temporary = ".0123456789abcdefghij-_.tmp"
    strays = [project / folder / temporary for folder in (".dvc/cache/files/md5/ab", "metrics", "plots/images")]
    others = [project / "metrics/.a.tmp", project / "metrics/a.json", project / temporary]
    for path in (*strays, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    mend.mend()  # an experiment may be writing them now
    assert all(path.exists() for path in (*strays, *others))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    mend.mend()
    assert all(path.exists() for path in others) and not any(path.exists() for path in strays)
    for path in others:
        path.unlink()


def test_while_dvc_is_at_work_nothing_is_touched(project, monkeypatch):
    monkeypatch.setattr(dvc.lock, "DEFAULT_TIMEOUT", 0)
    (project / "dvc.lock").write_bytes(b"stages:\n  half")
    with Repo().lock:
        mend.mend()
    assert (project / "dvc.lock").read_bytes() == b"stages:\n  half"


def test_a_source_archive_is_told_what_to_do(tmp_path):
    folder = new_repository(tmp_path, SMALL)
    (folder / ".git").rename(folder / "git")
    done = call(folder, "make", "--no-print-directory", "-o", "setup", "repro", ok=False)
    assert done.returncode and not done.stdout
    message, end = done.stderr.splitlines()
    assert message.startswith("error: ") and "not a git repository" in message and "git init" in message
    assert end.startswith("make: ")
