"""How a stage starts and ends: no arguments but --help, one message for a person, the status that shells expect."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest

from stages.common import errors
from stages.common.errors import UserError
from tests.repository import ROOT

STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def signals():
    """What `run` sets for its process is put back for the other tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def failing(error):
    def main():
        raise error

    return main


def start(code, **env):
    """A process that runs `code`, which has `errors` and whatever else it needs."""
    code = f"import sys, time\nfrom stages.common import errors\n{code}"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# Arguments


@pytest.mark.parametrize("stage", STAGES)
def test_help_prints_the_docstring_and_runs_nothing(stage, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # where nothing could run: there is no params.yaml
    module = __import__(f"stages.{stage}", fromlist=["main"])
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        errors.run_stage(module.main)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert module.__doc__.strip() in said and f"python -m stages.{stage}" in said and "params.yaml" in said


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
        errors.run_stage(lambda: pytest.fail("it runs all the same"))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "usage:" in said and "unrecognized arguments" in said and arguments[-1] in said


def test_without_arguments_a_stage_runs(monkeypatch):
    ran = []
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    errors.run_stage(lambda: ran.append(True))
    assert ran == [True]


# Ends


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("eps = 2: too large"), "eps = 2: too large"),
        (OSError(errno.ENOSPC, "x", "data/a"), "disk is full"),
        (OSError(errno.EDQUOT, "x", "data/a"), "quota"),
        (OSError(errno.EROFS, "x", "data/a"), "read-only"),
        (PermissionError(errno.EACCES, "x", "data/a"), "data/a"),
    ],
)
def test_a_fault_that_a_person_can_mend_ends_with_one_message(error, words):
    with pytest.raises(SystemExit) as ended:
        errors.run(failing(error))
    assert str(ended.value.code).startswith("error: ") and words in str(ended.value.code)
    assert "\n" not in str(ended.value.code)


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "x", "a"), ValueError("x")])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        errors.run(failing(error))


def test_ctrl_c_ends_with_130(capsys):
    with pytest.raises(SystemExit) as ended:
        errors.run(failing(KeyboardInterrupt()))
    assert ended.value.code == 130 and "interrupted" in capsys.readouterr().err


def test_sigterm_ends_with_143_after_all_is_put_in_order():
    code = """
def main():
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("put in order", flush=True)
errors.run(main)
"""
    process = start(code)
    assert process.stdout.readline().strip() == b"at work"
    process.terminate()
    out, err = process.communicate()
    assert process.returncode == 143
    assert out.strip() == b"put in order" and b"Traceback" not in err


def test_outside_the_main_thread_a_stage_runs_too():
    """Where no signal can be set."""
    code = """
import threading
thread = threading.Thread(target=errors.run, args=(lambda: print("ran"),))
thread.start()
thread.join()
"""
    out, err = start(code).communicate()
    assert out.strip() == b"ran" and not err


# Letters


@pytest.mark.parametrize(
    ("encoding", "word", "shown"),
    [
        ("ascii", "prüfen", rb"pr\xfcfen"),
        ("cp1252", "собака", rb"\u0441\u043e"),
        ("utf-8", "собака", "собака".encode()),
        ("utf-8", "\udcff", rb"\udcff"),  # as in a file's name that is no UTF-8
    ],
)
def test_a_terminal_that_lacks_a_letter_shows_its_escape(encoding, word, shown):
    code = f"""
def main():
    print({word!a}, flush=True)
    raise errors.UserError({word!a})
errors.run(main)
"""
    process = start(code, PYTHONIOENCODING=encoding)
    out, err = process.communicate()
    assert process.returncode == 1 and b"Traceback" not in err, err
    assert shown in out and shown in err and err.startswith(b"error: ")


def test_every_stage_starts_by_run_stage():
    for stage in STAGES:
        text = (ROOT / f"stages/{stage}.py").read_text(encoding="utf-8")
        assert re.search(r'^if __name__ == "__main__":\n    errors\.run_stage\(main\)\n\Z', text, re.M), stage
