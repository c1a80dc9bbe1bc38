"""What ranks cost and gain on this machine: one process with all cores against as many processes with one core each.

python -m benchmarks.ranks     # three minutes; writes the table into docs/scale.md
Images are made up, the net is params.yaml's; --quick takes a few small images and a narrow net and writes nothing.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.devices import NARROW, epoch_seconds, made_up, pgd_seconds
from stages.common import attacks, device, distributed, params, training
from stages.common.errors import run

DOCUMENT = Path("docs/scale.md")
START, END = "<!-- table: python -m benchmarks.ranks -->", "<!-- /table of ranks -->"
IMAGES, ATTACKED, STEPS = 4096, 1000, 10  # of an epoch; of PGD, two batches, and how far it goes
QUICK = "RANKS_QUICK"  # in the environment of the processes that are timed
CPU = torch.device("cpu")


def timed(quick: bool) -> Iterator[tuple[str, float]]:
    """What this process, or its group, does, and the seconds that it takes."""
    knobs = params.load(overrides={**NARROW, "datasets.cifar10.training.batch_size": 32} if quick else {})
    train_set = made_up(64, 8) if quick else made_up(IMAGES, 32)
    some = train_set.take(torch.arange(min(ATTACKED, len(train_set))))
    with attacks.searching(bfloat16=device.bfloat16(knobs.precision, CPU)):
        yield "an epoch of n-fgsm", epoch_seconds(knobs, "robust", train_set, CPU)
        yield f"PGD-{STEPS}", pgd_seconds(knobs, some, CPU, steps=STEPS)
    model = training.new_model(knobs, "robust", some)
    slopes = [torch.zeros_like(parameter) for parameter in model.parameters() if parameter.requires_grad]
    start = time.perf_counter()
    distributed.average([torch.cat([slope.flatten() for slope in slopes])])
    yield "gradients averaged once", time.perf_counter() - start


def measured(processes: int, threads: int, quick: bool) -> dict[str, float]:
    """What `timed` says as so many processes with so many threads each."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "benchmarks.ranks", "--timed"]
    env = (
        os.environ | {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"} | ({QUICK: "1"} if quick else {})
    )
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    first = next(iter(found.values()))
    lines = [f"| | {' | '.join(f'{what}, s' for what in first)} |", f"|---|{'---:|' * len(first)}"]
    lines += [f"| {name} | {' | '.join(f'{s:.3g}' for s in row.values())} |" for name, row in found.items()]
    return "\n".join(lines)


def as_timed() -> None:
    device.keep_freed_memory()
    quick = QUICK in os.environ
    if distributed.is_rank():
        with distributed.joined(CPU):
            print(json.dumps(dict(timed(quick))))
    else:
        print(json.dumps(dict(timed(quick))))


def main() -> None:
    if sys.argv[1:] == ["--timed"]:
        return as_timed()
    quick = common.asked_quick(__doc__)
    cores = os.cpu_count() or 1
    ways = {
        f"one process, {cores} threads": (1, cores),
        f"{cores} processes, one thread each": (cores, 1),
        "one process, one thread": (1, 1),
    }
    found = {name: measured(*way, quick) for name, way in ways.items()}
    shown = table(found)
    print(shown)
    if not quick:
        count = f"{IMAGES:,} images an epoch, {ATTACKED:,} under PGD"
        common.put_table(DOCUMENT, START, END, f"Measured on {common.machine()}; {count}.\n\n{shown}")


if __name__ == "__main__":
    run(main)
