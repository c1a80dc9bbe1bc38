"""What a person meets when a stage cannot work: one message, exit status not 0, nothing written, nothing lost."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from stages.common import artifacts, errors, models

ROOT = Path(__file__).parents[1]
NEEDS = {
    "train_standard": "train.npz",
    "train_robust": "train.npz",
    "fgsm_sweep": "test.npz",
    "targeted_sweep": "test.npz",
    "ood_eval": "train.npz",
    "ood_attack": "train.npz",
    "breakdown": "test.npz",
    "autoattack": "test.npz",
    "corruption_sweep": "test.npz",
    "certify": "test.npz",
    "audit": "test.npz",
    "images_table": "ood_eval.csv",
}


@pytest.fixture
def project(tmp_path):
    """A folder with params.yaml alone, set to a training of seconds on the digits."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["dataset"] = "digits"
    content["models"]["whitened_cnn"]["widths"] = [8, 8]
    for name in ("standard", "robust"):
        content["datasets"]["digits"][f"train_{name}"]["epochs"] = 12
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def start(stage, folder, **env):
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits it ignored
    )


def run(stage, folder, **env):
    process = start(stage, folder, **env)
    out, err = process.communicate()
    return process.returncode, out, err


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refused(outcome, *words):
    status, _, err = outcome
    assert status == 1, err
    assert err.startswith("error: ") and "Traceback" not in err and err.count("error:") == 1
    for word in words:
        assert word in err, err


def account(folder, **changes):
    """What prepare says of the digits in metrics/data.json, which is in git as data/prepared is not."""
    (folder / "metrics").mkdir(exist_ok=True)
    said = {"dataset": "digits", "classes": list("01234567"), "sizes": {"train": 900}} | changes
    (folder / "metrics/data.json").write_text(json.dumps(said))


@pytest.mark.parametrize("stage", NEEDS)
def test_a_stage_run_alone_says_what_is_missing(project, stage):
    """As in a fresh clone, which has the metrics alone."""
    account(project)
    refused(run(stage, project), NEEDS[stage], "missing", "dvc repro")
    assert files(project) == ["metrics/data.json", "params.yaml"]


def test_what_the_data_do_not_have_is_refused_before_anything_is_trained(project):
    """A target mistyped after prepare, and more neighbours than there are images: later stages would ask for them."""
    content = yaml.safe_load((project / "params.yaml").read_text()) | {"dataset": "folder"}
    content["targeted_sweep"]["target"], content["ood_eval"]["neighbours"] = "hrose", 5000
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    refused(run("train_standard", project), "metrics/data.json is missing", "dvc repro")
    account(project, dataset="folder", classes=["cat", "horse"])
    refused(run("train_standard", project), "target = 'hrose'", "cat, horse", "neighbours = 5000", "1 to 900")
    assert files(project) == ["metrics/data.json", "params.yaml"]


def test_a_bad_parameter_is_found_before_any_file_is_read(project):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("eps: 0.05", "eps: 3"))
    for stage in ("prepare", "audit"):
        refused(run(stage, project), "eps = 3", "from 0 to 1")
    assert files(project) == ["params.yaml"]


def test_no_network_and_no_cifar_says_what_to_do(project):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("dataset: digits", "dataset: cifar10"))
    closed = "http://127.0.0.1:9"  # a port where nothing listens
    refused(run("prepare", project, https_proxy=closed, http_proxy=closed, CIFAR_ROOT=""), "data/raw", "digits")
    assert files(project) == ["params.yaml"]


def test_checkpoints_of_another_kind_are_refused(project):
    assert run("prepare", project)[0] == 0
    before = files(project)
    for name in ("standard", "robust"):
        model = models.build("simple_cnn", channels=3, classes=["cat", "dog"])
        path = project / artifacts.CHECKPOINTS / f"{name}.pt"
        artifacts.write_checkpoint(path, models.checkpoint(model))
    for stage in ("fgsm_sweep", "targeted_sweep", "ood_eval", "audit"):
        refused(run(stage, project), "standard.pt", "another data set")
    content = artifacts.read_checkpoint(project / artifacts.CHECKPOINTS / "standard.pt")
    content["model"] = content["model"] | {"name": "resnet18", "width": 8}
    artifacts.write_checkpoint(project / artifacts.CHECKPOINTS / "standard.pt", content)
    refused(run("audit", project), "standard.pt", "another architecture")
    (project / artifacts.CHECKPOINTS / "standard.pt").write_bytes(b"PK")
    refused(run("audit", project), "standard.pt", "dvc repro")
    assert [name for name in files(project) if "checkpoints" not in name] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("name", ["standard", "robust"])
def test_a_killed_training_goes_on_to_the_same_bytes(project, name, number):
    longer = (project / "params.yaml").read_text().replace("epochs: 12", "epochs: 30")
    (project / "params.yaml").write_text(longer)  # so that it is still at work when the signal comes
    assert run("prepare", project)[0] == 0
    whole = project.parent / f"{project.name}-whole"
    shutil.copytree(project, whole)
    queued = project / ".dvc/tmp/exps/tmp1234"  # as `dvc exp run --temp` and queued experiments
    shutil.copytree(whole, queued)
    place = queued if number == signal.SIGKILL else project
    process = start(f"train_{name}", place)
    while not (work := list((project / "data/resume").glob(f"{name}-*.pt"))) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), err
    if number == signal.SIGINT:
        assert "interrupted" in err and "Traceback" not in err
        assert not [file for file in files(project) if Path(file).name.startswith(".")]
    assert not (place / f"data/checkpoints/{name}.pt").exists()

    status, out, err = run(f"train_{name}", project)
    assert status == 0, err
    assert "going on after epoch" in out
    assert run(f"train_{name}", whole)[0] == 0
    for file in (f"data/checkpoints/{name}.pt", f"metrics/train_{name}.json", f"plots/training_{name}.csv"):
        assert (project / file).read_bytes() == (whole / file).read_bytes(), file
    assert not work[0].exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_only_where_a_terminal_shows_them(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    painted = errors.paint("error:", "bold red", Terminal())
    assert painted.startswith("\x1b[") and "error:" in painted
    assert errors.paint("error:", "bold red", io.StringIO()) == "error:"
    monkeypatch.setenv("NO_COLOR", "1")
    assert errors.paint("error:", "bold red", Terminal()) == "error:"
