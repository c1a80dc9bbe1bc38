"""How a command ends: one message for a person, the status that shells expect."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from stages.common import errors
from stages.common.errors import UserError
from tests.repository import ROOT


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
