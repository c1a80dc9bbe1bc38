"""How a stage starts: no arguments but --help, once in a folder, no longer than DVC, on the devices that are there."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from stages.common import device, params, stage
from tests.repository import ROOT

STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def signals():
    """What `run` sets for its process is put back for the other tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# Arguments


@pytest.mark.parametrize("name", STAGES)
def test_help_prints_the_docstring_and_runs_nothing(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # where nothing could run: there is no params.yaml
    module = __import__(f"stages.{name}", fromlist=["main"])
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        stage.run(module.main)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert module.__doc__.strip() in said and f"python -m stages.{name}" in said and "params.yaml" in said


def test_help_of_a_stage_as_it_is_run(tmp_path):
    """There the module is called __main__."""
    command = [sys.executable, "-m", "stages.prepare", "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("usage: python -m stages.prepare") and "Read the data set of params.yaml" in done.stdout
    )


@pytest.mark.parametrize("arguments", [["--dataset", "digits"], ["digits"], ["--eps=0.1"], ["-S", "eps=0.1"], [""]])
def test_arguments_are_refused_before_anything_runs(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stage.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        stage.run(lambda: pytest.fail("it runs all the same"))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "usage:" in said and "unrecognized arguments" in said and arguments[-1] in said


def test_without_arguments_a_stage_runs(monkeypatch):
    ran = []
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    stage.run(lambda: ran.append(True), ranked=False)
    assert ran == [True]


# At work once, and no longer than DVC

STAGE = """import os, select, sys, time
from stages.common import stage
def main():
    print("at work", os.getpid(), flush=True)
    select.select([sys.stdin], [], [], 30)  # until its input ends
    print("done", flush=True)
if __name__ == "__main__":
    while "LOADING" in os.environ and os.path.exists("/proc/" + os.environ["DVC"]):
        time.sleep(0.01)
    stage.run(main, ranked=False)
"""


def at_work(folder, *wrapper, **env):
    """The stage `work` of the project in `folder`, started by `wrapper`."""
    folder.mkdir(exist_ok=True)
    (folder / "work.py").write_text(STAGE)
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    pipe = subprocess.PIPE
    command = [*wrapper, sys.executable, "work.py"]
    return subprocess.Popen(command, cwd=folder, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_a_stage_is_at_work_once_in_a_folder(tmp_path):
    first = at_work(tmp_path / "one")
    assert first.stdout.readline() == f"at work {first.pid}\n"
    second, elsewhere = at_work(tmp_path / "one"), at_work(tmp_path / "other")
    out, err = second.communicate()
    where = f" (process {first.pid})" if sys.platform == "linux" else ""
    assert err == f"error: work is at work already in this folder{where}; wait for it or stop it\n"
    assert second.returncode == 1 and not out
    assert elsewhere.communicate()[0].startswith("at work")
    first.kill()  # the lock goes with its process
    first.communicate()
    assert at_work(tmp_path / "one").communicate()[0].startswith("at work")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"work.py"}


def test_a_file_system_without_locks_stops_no_stage(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    ran = []
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    monkeypatch.chdir(ROOT)
    stage.run(lambda: ran.append(True), ranked=False)
    assert ran == [True]


def launcher(shell, then):
    """Starts a stage as DVC does, in its own session, and then waits for it or ends at once."""
    begin = "import os, subprocess, sys; os.setsid(); os.environ.update(DVC_STAGE='work', DVC=str(os.getpid()))"
    return [sys.executable, "-c", f"{begin}; subprocess.Popen({shell} + sys.argv[1:]){then}"]


SHELLS = pytest.mark.parametrize(
    "shell", [[], ["sh", "-c", '"$@"; exit $?', "sh"]], ids=["started by DVC", "by a shell that stays between"]
)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when another process ends")
@SHELLS
def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path, shell):
    dvc = at_work(tmp_path, *launcher(shell, ".wait()"))
    assert dvc.stdout.readline().startswith("at work")
    dvc.kill()
    assert dvc.stdout.read() == dvc.stderr.read() == ""  # until the stage too has closed them


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who takes in orphans")
@SHELLS
def test_a_stage_whose_dvc_died_while_it_loaded_does_nothing(tmp_path, shell):
    dvc = at_work(tmp_path, *launcher(shell, ""), LOADING="1")
    dvc.wait()
    assert dvc.stdout.read() == dvc.stderr.read() == ""


def test_a_stage_that_dvc_runs_is_left_alone(tmp_path):
    dvc = at_work(tmp_path, *launcher([], ".wait()"))
    out, err = dvc.communicate()
    assert out.startswith("at work") and out.endswith("done\n") and not err


# Devices and memory


def asking(monkeypatch, overrides, main=lambda: None):
    """How a stage ends whose params.yaml has these values."""
    knobs = params.load(
        ROOT / "params.yaml", overrides={key.replace("__", "."): value for key, value in overrides.items()}
    )
    monkeypatch.setattr(params, "load", lambda: knobs)
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    with pytest.raises(SystemExit) as ended:
        stage.run(main)
    return str(ended.value.code)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(device, "choose", lambda name: torch.device("cuda", 0))
    said = asking(monkeypatch, {"distributed.processes": 3})
    assert said == "error: params.yaml: distributed.processes = 3: this machine has 2 of cuda"


@pytest.mark.parametrize(("gpus", "where", "expected"), [(4, "cuda", 4), (0, "cpu", 1)])
def test_auto_takes_the_gpus_that_are_there(monkeypatch, gpus, where, expected):
    launched, ran = [], []
    knobs = params.load(ROOT / "params.yaml", overrides={"distributed.processes": "auto"})
    monkeypatch.setattr(params, "load", lambda: knobs)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(device, "choose", lambda name: torch.device(where))
    monkeypatch.setattr(stage.distributed, "launch", lambda module, processes: launched.append(processes))
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    stage.run(lambda: ran.append(True))
    assert (launched, ran) == (([], [True]) if expected == 1 else ([expected], []))


def test_a_device_out_of_memory_is_one_line(monkeypatch):
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    said = asking(monkeypatch, {}, main)
    assert said.startswith("error: there is not enough memory") and "2.00 GiB" in said and "\n" not in said


def test_every_stage_starts_by_its_run():
    for name in STAGES:
        text = (ROOT / f"stages/{name}.py").read_text(encoding="utf-8")
        assert re.search(r'^if __name__ == "__main__":\n    stage\.run\(main(, ranked=False)?\)\n\Z', text, re.M), name
