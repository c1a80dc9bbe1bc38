"""Ranks under torchrun, on CPUs with gloo: equal figures, equal training, and an end in order when one of them dies."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.repository import FEW_JUDGED, ROOT, SMALL, call, new_repository

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the signals and process groups of POSIX")
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SOON = 30  # seconds within which all of a stage has ended after one rank has


def at_work(task, processes, folder, ok=True):
    """What the task of tests/ranks_at_work finds as so many processes."""
    file = folder / f"{task}-{processes}.pt"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "tests.ranks_at_work", task, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stderr
    return torch.load(file) if ok else done.stderr


def same(one, other, atol=0.0):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key], atol)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)
    else:
        assert one == pytest.approx(other, abs=atol) if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Every task by one process, each once."""
    folder, found = tmp_path_factory.mktemp("alone"), {}

    def by_one(task):
        if task not in found:
            found[task] = at_work(task, 1, folder)
        return found[task]

    return by_one


@pytest.mark.parametrize("processes", [2, 3])
def test_no_figure_depends_on_how_many_ranks_there_are(alone, tmp_path, processes):
    """97 images in batches of 16: nothing divides them, and the last batch is another rank's each time."""
    found = at_work("judge", processes, tmp_path)
    same(found, alone("judge"))
    assert 0 < int(found["strongest"].sum()) < 97 and 0 < int(found["square"].sum()) < 50  # so that they could differ


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_is_fitted_on_many_images_is_there_once(alone, tmp_path, processes):
    """313 images in batches of 16, exchanged part by part."""
    found = alone("fit") if processes == 1 else at_work("fit", processes, tmp_path)
    same(found["scores"], alone("fit")["scores"])
    assert found["left"] == [] and len(found["mapped"]) == processes
    if sys.platform == "linux":
        assert len(found["mapped"][0]) == 4  # logits and features of two views
        assert all(files == found["mapped"][0] for files in found["mapped"])


def test_two_machines_have_it_once_each_and_agree_with_one_process(alone, tmp_path):
    """Two torchruns with two ranks each, the machine that writes started last."""
    file = tmp_path / "fit.pt"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    torchrun += ["--master-addr", "localhost", "--master-port", port]
    task = ["-m", "tests.ranks_at_work", "fit", str(file)]
    machines = [
        subprocess.Popen(
            [*torchrun, "--node-rank", number, *task], cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True
        )
        for number in ("1", "0")
    ]
    said = [machine.communicate()[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    found = torch.load(file)
    same(found["scores"], alone("fit")["scores"])
    if sys.platform == "linux":
        first, again, second, _ = found["mapped"]
        assert first == again and not {*first} & {*second}


@pytest.mark.parametrize(("task", "processes"), [("simple", 2), ("simple", 3), ("trades", 2)])
def test_without_batch_norm_ranks_learn_what_one_process_learns(alone, tmp_path, task, processes):
    """The same images, noise and steps, in spite of sums in another order. TRADES takes four steps alone: its attack
    starts where the slope is near 0, and makes more of what is rounded from step to step.
    """
    found = at_work(task, processes, tmp_path)
    same(found["state"], alone(task)["state"], atol=1e-5)
    assert found["rows"][-1]["loss"] == pytest.approx(alone(task)["rows"][-1]["loss"], abs=1e-4)
    moved = {key: float((value - found["before"][key]).abs().max()) for key, value in found["state"].items()}
    assert moved["fc3.weight"] > 3e-4  # thirty times what they may differ by


def test_with_batch_norm_they_learn_as_well_and_repeat_to_the_byte(alone, tmp_path):
    """Each rank has the statistics of its own part of a batch, which is another training and as good a one."""
    first, again = (at_work("whitened", 2, tmp_path / name) for name in ("first", "again"))
    same(first, again)
    accuracy, expected = (found["rows"][-1]["val_accuracy"] for found in (first, alone("whitened")))
    assert abs(accuracy - expected) < 0.1 and accuracy > 0.7
    assert not torch.equal(first["state"]["linear.weight"], alone("whitened")["state"]["linear.weight"])


def test_ranks_that_have_other_files_say_so(tmp_path):
    said = at_work("disagree", 2, tmp_path, ok=False)
    assert "rank 1 has another params.yaml than rank 0; give every machine the same files" in said


def test_what_is_wrong_in_params_yaml_is_said_once(tmp_path):
    """By the first of ranks that were started by hand."""
    (tmp_path / "params.yaml").write_text("eps: much\n")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "stages.fgsm_sweep"]
    done = subprocess.run([sys.executable, *torchrun], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(re.findall(r"^error: params.yaml", done.stderr, re.M)) == 1, done.stderr


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        env = ENV | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **port}
        command = [sys.executable, "-m", "stages.train_standard"]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and re.search(
        r"^error: rank 0 cannot reach the others \(.*\); MASTER_ADDR", done.stderr
    )
    assert "Traceback" not in done.stderr


# A stage as ranks


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project on the digits with two processes, prepared and with a standard model."""
    knobs = SMALL | FEW_JUDGED | {"distributed.processes": "2", "datasets.digits.train_robust.epochs": "8"}
    folder = new_repository(tmp_path_factory.mktemp("project"), knobs)
    for stage in ("prepare", "train_standard"):
        done = run(folder, stage)
        assert done.returncode == 0, done.stderr
    return folder


def run(folder, stage):
    env = ENV | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=env, capture_output=True, text=True
    )


def start(folder, stage="train_robust"):
    """The stage at work, once its first epoch is over, and its ranks."""
    env, pipe = ENV | {"PYTHONPATH": str(folder)}, subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout.readline().startswith("robust: "), process.communicate()
    return process, ranks_of(process.pid)


def ranks_of(parent):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in listed]
    return [int(pid) for pid, of, said in rows if int(of) == parent and "-m stages." in said]


def gone(processes):
    """Whether all of them end within a moment."""
    for _ in range(10 * SOON):
        if not any(Path(f"/proc/{each}").exists() for each in processes):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")
def test_a_rank_that_dies_ends_all_and_the_rest_goes_on_to_the_same_bytes(project):
    whole = run(project, "train_robust")
    assert whole.returncode == 0 and whole.stdout.count("robust: epoch 1/8") == 1, whole.stderr  # one rank speaks
    expected = (project / "data/checkpoints/robust.pt").read_bytes()

    process, ranks = start(project)
    assert len(ranks) == 2
    begin = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == 1 and time.monotonic() - begin < SOON and gone(ranks)
    assert re.fullmatch(r"error: rank 1 of 2 was killed by SIGKILL, out of memory perhaps; .*\n", err), err
    assert (project / "data/checkpoints/robust.pt").read_bytes() == expected

    resumed = run(project, "train_robust")
    assert "going on after epoch" in resumed.stdout, resumed.stderr
    assert (project / "data/checkpoints/robust.pt").read_bytes() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=lambda value: str(value),
)
def test_ranks_do_not_outlive_who_started_them(project, number, status):
    process, ranks = start(project)
    process.send_signal(number)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == status and gone(ranks) and "Traceback" not in err, err


def test_ranks_say_and_write_what_one_process_does(project):
    """Of figures that do not depend on how many there are, each once."""
    assert (project / "data/checkpoints/robust.pt").exists()
    both = run(project, "fgsm_sweep")
    files = [project / "metrics/fgsm.json", project / "plots/fgsm_sweep.csv", project / "plots/images/fgsm_robust.png"]
    expected = [file.read_bytes() for file in files]
    with processes(project, 1):
        one = run(project, "fgsm_sweep")
    assert both.returncode == one.returncode == 0 and both.stdout == one.stdout, both.stderr
    assert [file.read_bytes() for file in files] == expected


@contextlib.contextmanager
def processes(project, number):
    """The project with another number of them."""
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("processes: 2", f"processes: {number}"))
    yield
    (project / "params.yaml").write_text(text)


def test_an_interrupted_training_cannot_go_on_as_another_number(project):
    process, _ = start(project)
    process.kill()
    process.communicate()
    with processes(project, 1):
        done = run(project, "train_robust")
    assert done.returncode == 1 and "was interrupted as 2 processes and cannot go on as 1" in done.stderr, done.stderr
    assert run(project, "train_robust").returncode == 0


def test_a_batch_that_cannot_be_dealt_out_evenly_is_one_line(project):
    with processes(project, 3):
        done = run(project, "train_standard")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "batch_size = 64: it is dealt out to 3 processes; allowed is a multiple of 3" in done.stderr


def test_the_study_runs_as_two_processes_through_dvc(tmp_path):
    folder = new_repository(tmp_path, SMALL | FEW_JUDGED | {"dataset": "cifar10"})
    call(folder, "dvc", "exp", "run", "-Sdistributed.processes=2", "-Sdataset=digits")
    fgsm = json.loads((folder / "metrics/fgsm.json").read_text())
    assert fgsm["standard"]["clean"] > 0.5
    assert "Data and pipelines are up to date" in call(folder, "dvc", "status").stdout
