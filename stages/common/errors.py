"""The one way a stage ends badly: a message for a person, exit status 1, no traceback."""

import errno
import sys
from collections.abc import Callable
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


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`, turning the faults that a person can mend into one message and exit status 1.

    Any other exception is a defect of this project and keeps its traceback. Ctrl-C exits with 130, as shells expect.
    """
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
        }.get(error.errno)
        if advice is None:
            raise
        sys.exit(f"{paint('error:', 'bold red', sys.stderr)} {advice}{where}")
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written is left; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
