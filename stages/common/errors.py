"""The one way a stage ends badly: a message for a person, exit status 1, no traceback."""

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that the person running the stage can put right. The message says what, where and how."""


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`, turning the faults that a person can mend into one message and exit status 1.

    Any other exception is a defect of this project and keeps its traceback. Ctrl-C exits with 130, as shells expect.
    """
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
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
        sys.exit(f"error: {advice}{where}")
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written is left; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
