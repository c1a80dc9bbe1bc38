"""Put right what a DVC that was killed, or ran out of disk, has left half-done, so that it goes on.

    python -m scripts.mend     # `make repro` does it first

DVC writes dvc.lock and .dvc/tmp/rwlock in place. Cut short in that moment, every later command fails to read them.
Nothing is lost with them: the run cache gives back each stage that had finished.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

from stages.common import errors
from stages.common.errors import UserError

LOCK, RWLOCK = "dvc.lock", ".dvc/tmp/rwlock"
TEMPORARY = f".{'?' * 22}.tmp"  # how DVC names what it is about to rename
FOLDERS = (".dvc/cache", "data/prepared", "data/checkpoints", "metrics", "plots")
ABANDONED = 60.0  # seconds; an experiment beside this one, with a lock of its own, may be writing to the same cache


def mend() -> None:
    """Mend the project in the working folder, unless DVC is at work in it: then nothing is half-done.

    Raises UserError where there is no git repository.
    """
    try:
        repo = Repo()
        _ = repo.scm
    except DvcException as error:
        raise UserError(
            f"{error}, and DVC needs one: clone the project with git, or run "
            "'git init && git add -A && git commit -m start'"
        ) from None
    try:
        with repo.lock:
            _mend_lock(repo)
            _mend_rwlock()
            _sweep()
    except LockError:
        return


def _mend_lock(repo: Repo) -> None:
    path = Path(LOCK)
    if not path.is_file() or _whole(path, repo):
        return
    committed = subprocess.run(["git", "restore", "--source=HEAD", "--", LOCK], capture_output=True)
    if committed.returncode:
        path.unlink()
    state = "deleted" if committed.returncode else "put back as it was committed"
    print(f"{LOCK} was cut short and is {state}; finished stages come from DVC's cache", flush=True)


def _whole(path: Path, repo: Repo) -> bool:
    try:
        Lockfile(repo, str(path.absolute())).load()
    except DvcException:
        return False
    return path.read_bytes().endswith(b"\n")  # some beginnings of a YAML file are YAML too


def _mend_rwlock() -> None:
    path = Path(RWLOCK)
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        pass
    except ValueError:
        path.unlink()
        print(f"{RWLOCK} was cut short and is deleted", flush=True)


def _sweep() -> None:
    strays = [path for folder in FOLDERS for path in Path(folder).rglob(TEMPORARY)]
    for path in strays:
        if time.time() - path.stat().st_ctime > ABANDONED:
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    errors.run(mend)


if __name__ == "__main__":
    main()
