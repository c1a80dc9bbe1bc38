"""A `dvc repro` killed again and again, anywhere, ends as one that was left alone: the same files, to the byte. And one
that is killed, or that finds another at work, leaves nothing running and does no harm.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import mend
from tests.repository import SMALL, call, new_repository, ran

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the signals and process groups of POSIX")

TARGET = "targeted_sweep"  # data, checkpoints, metrics, a table and pictures: every kind of file, in half the time
WRITTEN = ("data/prepared", "data/checkpoints", "data/resume", "metrics", "plots", "plots/images")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KINDS = ("time", "write", "time", "lock", "time")
KILLS = 20
LATEST = 3.5  # seconds after a start of the kills by time: about as long as DVC and a stage take to load and to work
SLOW = "import os, time\nfsync = os.fsync\nos.fsync = lambda file: (time.sleep(0.05), fsync(file))[1]\n"
# What DVC says when its own files were cut short, and a stage when an orphan of the run before is still at work
EXPECTED = r"dvc\.lock' (validation failed|is invalid)|unable to read: 'dvc\.lock'|RWLock-file|at work already"


def start(folder: Path, *options: str, say=None) -> subprocess.Popen:
    """`dvc repro` in a session of its own; what it says goes into a file beside the folder, or to `say`."""
    tools = folder.parent / "tools"  # writing takes a moment longer, so that a kill can be aimed at it
    tools.mkdir(exist_ok=True)
    (tools / "sitecustomize.py").write_text(SLOW)
    return subprocess.Popen(
        ["dvc", "repro", *options],
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(tools),
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",  # of a part of the pipeline DVC takes siblings in the order of a set
        },
        stdout=say or log(folder).open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )


def log(folder: Path) -> Path:
    return folder.with_suffix(".log")


def half_written(folder: Path) -> list[Path]:
    return [path for name in WRITTEN for path in (folder / name).glob(".*") if re.fullmatch(r"\..+\.\d+", path.name)]


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def reached(kind: str, folder: Path, seconds: float):
    """What tells that the moment to kill has come."""
    begin, before = time.monotonic(), size(folder / "dvc.lock")
    return {
        "time": lambda: time.monotonic() - begin > seconds,
        "write": lambda: half_written(folder),
        "lock": lambda: size(folder / "dvc.lock") != before,  # emptied, and written in parts over tenths of a second
    }[kind]


def kill(process: subprocess.Popen, number: signal.Signals, group: bool) -> None:
    """Kill all of a run, or `dvc` alone; a person goes on pressing Ctrl-C until it helps."""
    (os.killpg if group else os.kill)(process.pid, number)
    while number == signal.SIGINT and process.poll() is None:
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
    process.wait()


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every path but git's and Python's own, DVC's folders included, with the content.

    .dvc/tmp is there by name alone: DVC leaves its lock files (lock, rwlock, rwlock.lock, btime) after any run.
    """
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(".git/") and "__pycache__" not in name:
            found[name] = path.read_bytes() if path.is_file() and not name.startswith(".dvc/tmp/") else None
    return found


def test_a_run_killed_twenty_times_ends_as_one_left_alone(tmp_path, monkeypatch):
    """By three signals, the whole group or DVC alone, at any time and while stages or DVC itself are writing."""
    folder, whole = (new_repository(tmp_path / name, SMALL) for name in ("killed", "whole"))
    undisturbed = start(whole, TARGET)
    monkeypatch.chdir(folder)
    draw = random.Random(0)
    killed, left, mended, done = [], 0, 0, False
    for number in range(KILLS):
        kind, name = KINDS[number % len(KINDS)], SIGNALS[number % len(SIGNALS)]
        seconds = draw.uniform(0.2, LATEST)
        while True:
            process = start(folder, TARGET, *(["--force"] if done else []))  # if nothing is left to be done
            come = reached(kind, folder, seconds)
            while process.poll() is None and not come():
                time.sleep(0.001)
            if process.poll() is None or process.returncode == 0:
                break
            assert re.search(EXPECTED, log(folder).read_text()), log(folder).read_text()
            mended += 1
            assert mended < KILLS
            mend.mend()
        done |= process.poll() == 0
        if process.poll() is None:
            kill(process, name, group=number % 2 == 0 or name == signal.SIGINT)
            killed.append(kind)
            left += kind == "write" and bool(half_written(folder))
    assert len(killed) > KILLS / 2 and left and mended, (killed, left, mended)  # the aimed ones hit what they aimed at

    monkeypatch.setattr(mend, "ABANDONED", 0)
    mend.mend()
    final = start(folder, TARGET)
    assert final.wait() == 0, log(folder).read_text()
    assert undisturbed.wait() == 0, log(whole).read_text()
    one, other = everything(folder), everything(whole)
    assert set(one) == set(other)
    assert [path for path in one if one[path] != other[path]] == []
    assert {"dvc.lock", "metrics/targeted.json", "plots/targeted_sweep.csv", ".dvc/tmp/rwlock"} < set(one)


def test_a_second_run_is_refused_and_a_stage_does_not_outlive_its_dvc(tmp_path):
    folder = new_repository(tmp_path / "project", SMALL)
    first = start(folder, "prepare", say=subprocess.PIPE)
    while not first.stdout.readline().startswith("Running stage 'prepare'"):
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGSTOP)  # so that it is at work for as long as this takes
    second = call(folder, "dvc", "repro", "prepare", ok=False)
    assert second.returncode and "is busy, it is being blocked by" in second.stderr
    assert f"(PID {first.pid})" in second.stderr

    first.kill()
    os.killpg(first.pid, signal.SIGCONT)
    assert "images in data/prepared" not in first.stdout.read()  # until the stage too has closed it
    assert first.wait() == -signal.SIGKILL and not (folder / "metrics").exists()
    again = call(folder, "dvc", "repro", "prepare")
    assert ran(again) == {"prepare"} and "images in data/prepared" in again.stdout
