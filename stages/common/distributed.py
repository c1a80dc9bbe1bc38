"""Ranks: processes that share the work of one stage under torchrun. Without any there is one, and nothing here acts.

Every rank runs the same program on the same data. Ranks deal out batches, exchange what came of them and average what
they have learnt; the first one alone writes files and speaks, so no figure depends on how many there are.
"""

import contextlib
import datetime
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stages.common import arrays
from stages.common.errors import NO_ROOM, UserError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

T = TypeVar("T")
LAUNCHED = "STAGE_LAUNCHED"  # in the environment of ranks: the process whose `launch` has started them and speaks
WAIT = datetime.timedelta(hours=12)  # for the others: what only one rank does takes long, and a death ends all at once
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL communicator was aborted")


def is_rank() -> bool:
    """Whether this process was started by torchrun, or in its way."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def count() -> int:
    """How many ranks share the work; 1 where there are none."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return dist.get_rank() if _joined() else 0


def first() -> bool:
    """Whether this is the one that writes and speaks."""
    return rank() == 0


def local_rank() -> int | None:
    """Which of the ranks on this machine this process is; None where there are none."""
    return int(os.environ.get("LOCAL_RANK", os.environ["RANK"])) if is_rank() else None


def fills() -> bool:
    """Whether this process fills what `shared` makes: the first rank of each machine; on Windows each one its own."""
    return not local_rank() or sys.platform == "win32"


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def share(total: int) -> int:
    """How many of `total` things, dealt out one by one, this rank gets."""
    return len(range(rank(), total, count()))


def gathered(value: T) -> list[T]:
    """The `value` of every rank, in order: plain values and tensors on the CPU."""
    if count() == 1:
        return [value]
    every: list[T] = [value] * count()
    dist.all_gather_object(every, value)
    return every


def from_first(value: T) -> T:
    """The first rank's `value`, on all of them."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def shared(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.memmap:
    """An array on disk, which the ranks of a machine have once between them, for those that `fills` to fill. Its file
    has lost its name when this returns, and is gone with the processes, however they end.

    Raises UserError on every rank where the disk of one has no room for it.
    """
    size = arrays.size_of(shape, dtype)
    with _one_file() as file:
        fault = None
        if fills():
            try:
                arrays.make_room(file, size)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                fault = (
                    f"{arrays.folder()}: the disk has no room for {size / 1e9:.1f} GB that the stage keeps there while "
                    "it works; free some space and run again"
                )
        stop_at(fault)
        return np.memmap(file, dtype, "r+", shape=shape)


@contextlib.contextmanager
def _one_file() -> Iterator[IO[bytes]]:
    """An empty file without a name, the same one for all ranks of a machine."""
    if count() == 1 or sys.platform == "win32":
        with tempfile.TemporaryFile(dir=arrays.folder()) as file:
            yield file
        return
    name = None
    if fills():
        number, name = tempfile.mkstemp(dir=arrays.folder().resolve())
        os.close(number)
    of_machines = gathered(name)[: rank() + 1]  # ranks of a machine stand in a row, the one that fills first
    path = Path(next(given for given in reversed(of_machines) if given is not None))
    with path.open("r+b") as file:
        gathered(None)  # all have it open
        if fills():
            path.unlink()
        yield file


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace each of these floating-point tensors by its mean over the ranks."""
    if count() == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor.div_(count())


def uniform(total: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers from [0, 1) in the shape and on the device of this rank's images `like`, (share(total), ...): one draw
    for the `total` images of all ranks, dealt out one by one as these are.
    """
    every = torch.rand((total, *like.shape[1:]), generator=generator, dtype=like.dtype, device=generator.device)
    return every[rank() :: count()].to(like.device)


def agree(what: str, value: object) -> None:
    """Raises UserError on every rank where they do not have the same `value` of `what`."""
    every = gathered(value)
    if any(other != every[0] for other in every):
        odd = next(number for number, other in enumerate(every) if other != every[0])
        raise UserError(f"rank {odd} has another {what} than rank 0; give every machine the same files, then run again")


def stop_at(fault: str | None) -> None:
    """Raises UserError with the first `fault` of the ranks on all of them, if any has one."""
    for said in gathered(fault):
        if said is not None:
            raise UserError(said)


@contextlib.contextmanager
def joined(where: torch.device) -> Iterator[None]:
    """Be one of the ranks that torchrun's environment tells of, on `where`: NCCL between GPUs, gloo between CPUs.

    A fault is left in torchrun's error file, in words; of a fault that all have, the first rank alone speaks. Raises
    UserError where the ranks cannot reach each other.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # Python's own handlers wait while a rank waits for the others
        signal.signal(number, signal.SIG_DFL)
    first_one, backend = os.environ["RANK"] == "0", "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    with contextlib.ExitStack() as stack:
        if not first_one:
            silence = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        try:
            _join(backend, where)
            yield
            dist.destroy_process_group()
        except BaseException as error:
            _leave_word(error)
            if LAUNCHED not in os.environ and not first_one and isinstance(error, UserError):
                time.sleep(1)  # torchrun ends the first rank as soon as another has ended: let it have spoken
            if LAUNCHED in os.environ or not first_one:
                os._exit(1)  # at once: a group that has lost a member cannot be taken apart in order
            raise


def _join(backend: str, where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.set_device(where)
    try:
        dist.init_process_group(backend, timeout=WAIT)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"rank {os.environ['RANK']} cannot reach the others ({reason}); MASTER_ADDR and MASTER_PORT must name a "
            "free port of the first machine"
        ) from None


def _leave_word(error: BaseException) -> None:
    """Write what has happened to the file that torchrun reads."""
    if (file := os.environ.get("TORCHELASTIC_ERROR_FILE")) is None:
        return
    plain = isinstance(error, UserError)
    said = str(error) if plain else "".join(traceback.format_exception(error))
    lost = not plain and any(words in said for words in LOST)
    content = {"message": said, "timestamp": int(time.time()), "plain": plain, "lost": lost}
    with contextlib.suppress(OSError):
        Path(file).write_text(json.dumps(content))


def launch(module: str, processes: int) -> None:
    """Run `python -m module` as so many ranks on this machine, by torchrun's own launcher, and wait for them.

    When one rank ends badly, or this process is told to end, all are ended. Raises UserError with what the rank that
    failed first has said; exits with its traceback where that was a defect.
    """
    # Here, since one process needs none of it, and it takes a while to load
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"{module}-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port: stages at work side by side do not meet
        max_restarts=0,
        monitor_interval=0.1,
    )
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ |= {LAUNCHED: str(os.getpid()), "OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    os.environ.setdefault("TORCHELASTIC_SHUTDOWN_TIMEOUT", "10")
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what went wrong is said once, below
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", module)
    except ChildFailedError as error:
        _explain(error.failures.values(), processes)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + error.sigval)


def _explain(failures: Iterable["ProcessFailure"], processes: int) -> NoReturn:
    """Say what the first of the failed ranks said; one that merely lost another comes last."""

    def order(failure: "ProcessFailure") -> tuple[bool, int]:
        return bool(failure.error_file_data.get("lost")), failure.timestamp

    failure = min(failures, key=order)
    said, which = failure.message, f"rank {failure.local_rank} of {processes}"
    if failure.error_file_data.get("plain"):
        raise UserError(said)
    if (code := failure.exitcode) < 0:
        raise UserError(
            f"{which} was killed by {signal.Signals(-code).name}"
            + (", out of memory perhaps" if -code == signal.SIGKILL else "")
            + "; the others were ended, and nothing half-written is left: run the same command again to go on"
        )
    print(said, file=sys.stderr)
    sys.exit(f"error: {which} failed as told above; the others were ended")
