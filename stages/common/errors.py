"""The one way a stage starts and ends: no arguments but --help; a message for a person, exit status 1, no traceback."""

import argparse
import contextlib
import errno
import inspect
import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text


class UserError(Exception):
    """Something that the person running the stage can put right. The message says what, where and how."""


def paint(text: str, style: str, stream: TextIO) -> str:
    """`text` in colour if `stream` is a terminal that shows them and NO_COLOR is not set, else as it is."""
    console = Console(file=stream)
    if not console.is_terminal or console.no_color:
        return text
    with console.capture() as captured:
        console.print(Text(text, style), end="")
    return captured.get()


def run_stage(main: Callable[[], None]) -> None:
    """`run` for a stage, which takes its parameters from params.yaml and no arguments but --help."""
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{Path(inspect.getfile(main)).stem}",
        description=inspect.getdoc(inspect.getmodule(main)),
        epilog="Parameters are read from params.yaml; `dvc exp run -S key=value` changes one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    run(main)


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
        sys.exit(f"{paint('error:', 'bold red', sys.stderr)} {error}")
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
