"""The one way a stage starts and ends: no arguments but --help; a message for a person, exit status 1, no traceback."""

import argparse
import contextlib
import errno
import inspect
import io
import os
import select
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

if sys.platform != "win32":
    import fcntl

OBEYED = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are no UTF-8, line and paragraph ends


class UserError(Exception):
    """Something that the person running the stage can put right. The message says what, where and how."""


def shown(name: str) -> str:
    """A name from a disk, for people and tables: letters that a terminal would obey or end a line at are escaped."""
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in OBEYED else letter
        for letter in name
    )


def paint(text: str, style: str, stream: TextIO) -> str:
    """`text` in colour if `stream` is a terminal that shows them and NO_COLOR is not set, else as it is."""
    console = Console(file=stream)
    if not console.is_terminal or console.no_color:
        return text
    with console.capture() as captured:
        console.print(Text(text, style), end="")
    return captured.get()


def run_stage(main: Callable[[], None]) -> None:
    """`run` for a stage, which takes its parameters from params.yaml and no arguments but --help.

    In one folder a stage is at work once: a second one says so. On Linux it ends with the DVC that started it.
    """
    script = Path(inspect.getfile(main))
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{script.stem}",
        description=inspect.getdoc(inspect.getmodule(main)),
        epilog="Parameters are read from params.yaml; `dvc exp run -S key=value` changes one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()

    def once() -> None:
        _end_with_dvc()
        with _alone(script):
            main()

    run(once)


def run(main: Callable[[], None]) -> None:
    """Run `main`, turning the faults that a person can mend into one message and exit status 1.

    Any other exception is a defect of this project and keeps its traceback. Ctrl-C exits with 130 and SIGTERM with 143,
    as shells expect, after what was begun has been put in order. A terminal that lacks a letter shows its escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except UserError as error:
        message = "\n".join(shown(line) for line in str(error).split("\n"))  # it may name a file of any name
        sys.exit(f"{paint('error:', 'bold red', sys.stderr)} {message}")
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # as shells say of SIGPIPE
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        advice = {
            errno.ENOSPC: "the disk is full: free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
            errno.EACCES: "permission denied: check who owns the file",
            errno.EROFS: "the file system is read-only",
        }.get(error.errno or 0)
        if advice is None:
            raise
        sys.exit(f"{paint('error:', 'bold red', sys.stderr)} {advice}{where}")
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written is left; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _end_with_dvc() -> None:
    """Stop when the DVC that started this stage is gone: one that was killed can stop nothing itself.

    Linux alone tells when another process ends; elsewhere the stage goes on to its own end.
    """
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return

    def orphaned(by: int) -> bool:
        return os.getsid(by) != os.getsid(0)  # whoever takes in orphans belongs to another session

    try:
        dvc = os.getppid()
        if not orphaned(dvc) and b"DVC_STAGE=" in Path(f"/proc/{dvc}/environ").read_bytes():  # a shell between
            dvc = int(Path(f"/proc/{dvc}/stat").read_text().rpartition(")")[2].split()[1])
        gone, ended = orphaned(dvc), os.pidfd_open(dvc)
    except (OSError, AttributeError):  # a kernel before 5.3, or a Python made for one
        return
    if gone:
        sys.exit(128 + signal.SIGTERM)

    def watch() -> None:
        select.select([ended], [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _alone(script: Path) -> Iterator[None]:
    """Hold the lock on the stage's own file, which ends with the process however that ends.

    A stage whose file is not in the working folder works on other people's terms, and takes none. Raises UserError if
    another process has it.
    """
    if sys.platform == "win32" or not script.is_relative_to(Path.cwd()):
        yield
        return
    with script.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            number = os.fstat(file.fileno()).st_ino
            raise UserError(
                f"{script.stem} is at work already in this folder{_holder(number)}; wait for it or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def _holder(number: int) -> str:
    """The process that has locked the file with this inode number, in words, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():  # 1: FLOCK  ADVISORY  WRITE 123 08:01:4711 0 EOF
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(f":{number}"):
                return f" (process {words[4]})"
    return ""
