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


def test_a_reader_that_has_gone_ends_it_without_a_traceback():
    process = start("errors.run(lambda: [print('line', flush=True) for _ in range(100_000)])")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 141 and process.stderr.read() == b""
    process.stderr.close()


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


# At work once, and no longer than DVC

STAGE = """import os, select, sys, time
from stages.common import errors
def main():
    print("at work", os.getpid(), flush=True)
    select.select([sys.stdin], [], [], 30)  # until its input ends
    print("done", flush=True)
if __name__ == "__main__":
    while "LOADING" in os.environ and os.path.exists("/proc/" + os.environ["DVC"]):
        time.sleep(0.01)
    errors.run_stage(main)
"""


def stage(folder, *wrapper, **env):
    """The stage `work` of the project in `folder`, started by `wrapper`."""
    folder.mkdir(exist_ok=True)
    (folder / "work.py").write_text(STAGE)
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    pipe = subprocess.PIPE
    command = [*wrapper, sys.executable, "work.py"]
    return subprocess.Popen(command, cwd=folder, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_a_stage_is_at_work_once_in_a_folder(tmp_path):
    first = stage(tmp_path / "one")
    assert first.stdout.readline() == f"at work {first.pid}\n"
    second, elsewhere = stage(tmp_path / "one"), stage(tmp_path / "other")
    out, err = second.communicate()
    where = f" (process {first.pid})" if sys.platform == "linux" else ""
    assert err == f"error: work is at work already in this folder{where}; wait for it or stop it\n"
    assert second.returncode == 1 and not out
    assert elsewhere.communicate()[0].startswith("at work")
    first.kill()  # the lock goes with its process
    first.communicate()
    assert stage(tmp_path / "one").communicate()[0].startswith("at work")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"work.py"}


def test_a_file_system_without_locks_stops_no_stage(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    ran = []
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    monkeypatch.chdir(ROOT)
    errors.run_stage(lambda: ran.append(True))
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
    dvc = stage(tmp_path, *launcher(shell, ".wait()"))
    assert dvc.stdout.readline().startswith("at work")
    dvc.kill()
    assert dvc.stdout.read() == dvc.stderr.read() == ""  # until the stage too has closed them


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who takes in orphans")
@SHELLS
def test_a_stage_whose_dvc_died_while_it_loaded_does_nothing(tmp_path, shell):
    dvc = stage(tmp_path, *launcher(shell, ""), LOADING="1")
    dvc.wait()
    assert dvc.stdout.read() == dvc.stderr.read() == ""


def test_a_stage_that_dvc_runs_is_left_alone(tmp_path):
    dvc = stage(tmp_path, *launcher([], ".wait()"))
    out, err = dvc.communicate()
    assert out.startswith("at work") and out.endswith("done\n") and not err


# Letters


def test_a_message_says_nothing_to_the_terminal():
    """Names of files may hold what a terminal would obey. Line ends are the message's own."""
    with pytest.raises(SystemExit) as ended:
        errors.run(failing(UserError("two:\n       \x1b]0;owned\x07\n       собака\x9b\u2028")))
    assert ended.value.code == "error: two:\n       \\x1b]0;owned\\x07\n       собака\\x9b\\u2028"


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
