"""The one way a stage starts: no arguments but --help, once in a folder, as one process or as several ranks."""

import argparse
import contextlib
import inspect
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from stages.common import artifacts, device, distributed, params
from stages.common.errors import UserError
from stages.common.errors import run as run_command
from stages.common.params import Params

if sys.platform != "win32":
    import fcntl

SAME = (Path("params.yaml"), artifacts.METRICS / "data.json")  # what every rank must have alike before any works
EXHAUSTED = ("can't allocate memory", "CUDA out of memory")  # in what torch says, on a CPU as a plain RuntimeError


def run(main: Callable[[], None], *, ranked: bool = True) -> None:
    """`errors.run` for a stage, which takes its parameters from params.yaml and no arguments but --help.

    In one folder a stage is at work once: a second one says so. On Linux it ends with the DVC that started it. Unless
    it is not `ranked`, it runs as `distributed.processes` ranks; started by torchrun, it is one of them.
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
            processes = _processes(params.load()) if ranked else 1
            if processes > 1:
                distributed.launch(f"stages.{script.stem}", processes)
            else:
                _in_memory(main)

    run_command((lambda: _as_rank(main)) if distributed.is_rank() else once)


def _processes(knobs: Params) -> int:
    """How many ranks params.yaml asks for on this machine. Raises UserError where it has not so many devices."""
    where, asked = device.choose(knobs.device), knobs.distributed.processes
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(where.type)
    if asked == "auto":
        return max(1, there or 1)
    if there is not None and asked > there:
        raise UserError(f"params.yaml: distributed.processes = {asked}: this machine has {there} of {where.type}")
    return asked


def _as_rank(main: Callable[[], None]) -> None:
    """Run `main` as one of torchrun's ranks, which ends with whoever launched it."""
    if distributed.LAUNCHED in os.environ:
        _end_with(os.getppid(), gone=os.getppid() != int(os.environ[distributed.LAUNCHED]))
    try:
        where, fault = device.choose(params.load().device), None
    except UserError as error:
        where, fault = device.choose("auto"), str(error)  # the others join too, so that one of them says it
    with distributed.joined(where):
        distributed.stop_at(fault)
        for file in SAME:
            distributed.agree(str(file), file.read_bytes() if file.is_file() else None)
        _in_memory(main)


def _in_memory(main: Callable[[], None]) -> None:
    """Run `main`. Raises UserError where the device has not the memory for it."""
    try:
        main()
    except RuntimeError as error:
        if not any(words in str(error) for words in EXHAUSTED):
            raise
        raise UserError(
            "there is not enough memory on the device for this stage (" + str(error).splitlines()[0] + "); "
            "lower datasets.*.training.batch_size, or take a smaller model"
        ) from None


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
        gone = orphaned(dvc)
    except OSError:
        return
    _end_with(dvc, gone=gone)


def _end_with(process: int, *, gone: bool) -> None:
    """Stop when `process` ends, at once if it is `gone` by now."""
    try:
        ended = os.pidfd_open(process)
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
