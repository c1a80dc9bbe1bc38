"""How a command ends: a message for a person, exit status 1, no traceback."""

import contextlib
import errno
import io
import os
import signal
import sys
import unicodedata
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.text import Text

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # a disk's, or what is allowed of it
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
