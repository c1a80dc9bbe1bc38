"""Temporary repositories for tests: the files of the working tree, without results, with settings of seconds."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SMALL = {  # a run of seconds; every key is one that a person might set
    "dataset": "digits",
    "eps": "8/255",
    "targeted_sweep.target": "4",
    "models.whitened_cnn.widths": "[8,16]",
    "datasets.digits.train_standard.epochs": "2",
    "datasets.digits.train_robust.epochs": "3",
    "fgsm_sweep.pgd_images": "50",
    "audit.images": "50",
    "audit.square_queries": "20",
    "ood_attack.images": "40",
    "ood_attack.pgd_steps": "3",
    "breakdown.images": "50",
    "autoattack.images": "20",
    "autoattack.queries": "20",
    "corruption_sweep.images": "50",
    "certify.images": "5",
    "certify.samples": "50",
}

FEW_JUDGED = {  # what the stages that judge find does not matter
    "breakdown.images": "20",
    "autoattack.images": "4",
    "autoattack.queries": "2",
    "corruption_sweep.images": "10",
    "certify.images": "2",
    "certify.samples": "10",
}


def new_repository(folder: Path, knobs: dict[str, str]) -> Path:
    """A repository in `folder` with the files of the working tree but no results, and these parameters."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/", "dvc.lock", "weights/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    yaml_file = YAML()
    yaml_file.width, yaml_file.preserve_quotes = 200, True
    content = yaml_file.load(folder / "params.yaml")
    for key, value in knobs.items():
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section[name]
        section[last] = yaml.safe_load(value)
    yaml_file.indent(mapping=2)
    yaml_file.dump(content, folder / "params.yaml")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        call(folder, "git", *command)
    return folder


def call(folder: Path, *command: str, ok: bool = True) -> subprocess.CompletedProcess:
    identity = {f"GIT_{who}_{what}": "tests@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = os.environ | identity | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for name in ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the `make test` that these tests run in
        env.pop(name, None)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0 or not ok, done.stdout + done.stderr
    return done


def ran(done: subprocess.CompletedProcess) -> set[str]:
    return set(re.findall(r"Running stage '(\w+)'", done.stdout))
