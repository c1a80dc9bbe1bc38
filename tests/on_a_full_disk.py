"""What tests/test_full_disk.py has run on a small file system of its own, the folder that SMALL_DISK names."""

import contextlib
import importlib
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from stages.common import errors
from stages.common.training import resume
from tests.repository import FEW_JUDGED, ROOT, SMALL, call, new_repository, ran

DISK = Path(os.environ["SMALL_DISK"])
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])  # each after those that it needs
ROOM = 512  # bytes: not enough for what any stage writes
SMALLER = {  # what is found does not matter here
    "models.whitened_cnn.widths": "[8,8]",
    "fgsm_sweep.pgd_images": "10",
    "fgsm_sweep.pgd_steps": "1",
    "ood_attack.detectors": "[max_logit]",
    "ood_attack.images": "10",
    **FEW_JUDGED,
    "audit.images": "10",
    "audit.pgd_steps": "1",
    "audit.square_images": "5",
    "audit.square_queries": "2",
    "datasets.digits.prepare.extra_sets": "[]",
}


@pytest.fixture(scope="module")
def project():
    return new_repository(DISK / "project", SMALL | SMALLER)


@pytest.fixture(autouse=True)
def here(project, monkeypatch):
    monkeypatch.chdir(project)


@contextlib.contextmanager
def full(room):
    """A disk with `room` bytes left."""
    yield fill(room)
    (DISK / "filler").unlink()


def fill(room):
    disk = os.statvfs(DISK)
    with (DISK / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - room)


def run(stage):
    """The stage as `python -m` runs it, but for loading torch again: its exit status, or its message."""
    try:
        errors.run(importlib.import_module(f"stages.{stage}").main)
    except SystemExit as ended:
        return ended.code
    return 0


def files(*folders):
    found = (path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    return {path.as_posix(): path.read_bytes() for path in found}


def results():
    return files("data", "metrics", "plots")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_says_so_loses_nothing_and_goes_on_when_there_is_space(stage):
    before = results()
    with full(ROOM):
        said = run(stage)
        during = results()
    assert re.fullmatch(r"error: .*the disk is full.*free some space and run .*", said), said  # one line
    assert before.items() <= during.items()
    assert run(stage) == 0
    kept = {path: content for path, content in during.items() if not path.startswith("data/resume/")}  # gone when done
    assert kept.items() <= results().items()  # what was written on the full disk was whole, and is what it must be


@pytest.mark.parametrize("name", ["standard", "robust"])
def test_a_training_goes_on_after_the_last_epoch_that_found_space(name, monkeypatch, capsys):
    whole = results()
    save = resume.WorkFile.save

    def save_and_fill(self, *arguments):
        save(self, *arguments)
        fill(0)

    with monkeypatch.context() as patch:
        patch.setattr(resume.WorkFile, "save", save_and_fill)
        said = run(f"train_{name}")
    assert "the disk is full" in said
    assert [path for path in results() if path not in whole] == [
        path.as_posix() for path in Path("data/resume").iterdir()
    ]
    (DISK / "filler").unlink()
    assert run(f"train_{name}") == 0 and results() == whole
    assert f"{name}: going on after epoch 1" in capsys.readouterr().out


PIPELINE = "stages: {one: {cmd: cp a b && sh then.sh, deps: [a], outs: [b: {cache: CACHE}]}}"


@pytest.fixture
def pipeline(request):
    """One stage, which makes b of a, ends with what then.sh does, and keeps b in DVC's cache or not."""
    folder = DISK / request.node.name
    folder.mkdir()
    (folder / "dvc.yaml").write_text(PIPELINE.replace("CACHE", "true" if "cache" in folder.name else "false"))
    (folder / "a").write_bytes(os.urandom(2**20))
    (folder / "then.sh").write_text("true")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        call(folder, *command)
    return folder


def mended(folder):
    code = "from scripts import mend; mend.ABANDONED = 0; mend.mend()"
    with_scripts = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"
    return call(folder, sys.executable, "-c", with_scripts).stdout


def test_a_cache_without_space_leaves_only_what_is_swept(pipeline):
    with full(3 * 2**19):  # for b, and half of it again
        failed = call(pipeline, "dvc", "repro", ok=False)
    assert failed.returncode and "No space left on device" in failed.stderr
    assert list(pipeline.rglob("*.tmp"))
    mended(pipeline)
    assert not list(pipeline.rglob("*.tmp"))
    assert ran(call(pipeline, "dvc", "repro")) == {"one"}
    assert "up to date" in call(pipeline, "dvc", "status").stdout
    (kept,) = files(pipeline / ".dvc/cache/files/md5").values()
    assert kept == (pipeline / "b").read_bytes() == (pipeline / "a").read_bytes()


def test_a_lock_without_space_is_mended(pipeline):
    """Full just when DVC writes dvc.lock: it is empty then, and DVC refuses all work until it is mended."""
    (pipeline / "then.sh").write_text("cat /dev/zero > ../filler; true")
    failed = call(pipeline, "dvc", "repro", ok=False)
    (DISK / "filler").unlink()
    (pipeline / "then.sh").write_text("true")
    assert failed.returncode and (pipeline / "dvc.lock").read_bytes() == b""
    assert "validation failed" in call(pipeline, "dvc", "repro", ok=False).stderr
    assert "dvc.lock was cut short" in mended(pipeline)
    assert ran(call(pipeline, "dvc", "repro")) == {"one"}
    assert "up to date" in call(pipeline, "dvc", "status").stdout
