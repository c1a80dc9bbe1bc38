"""The pipeline as DVC sees it: exact deps and params, one run end to end on the digits, every plot drawn."""

import ast
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pydantic import BaseModel

from scripts import picture, seeds, summary
from stages.common import params
from tests.repository import ROOT, SMALL, call, new_repository, ran

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CHOSEN = {"dataset": "digits", "model.name": "whitened_cnn"}


def imported(path: Path) -> set[str]:
    """The project's own modules that the file imports, directly or not, as paths below the root."""
    found, waiting = set(), [path]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stages"):
                names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("stages")]
            else:
                continue
            files = {ROOT / f"{name.replace('.', '/')}.py" for name in names}
            new = {file for file in files if file.is_file()} - found
            found |= new
            waiting += new
    return {file.relative_to(ROOT).as_posix() for file in found}


@pytest.mark.parametrize("stage", STAGES)
def test_modules_imported_are_the_deps(stage):
    script = f"stages/{stage}.py"
    code = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert code == imported(ROOT / script) | {script}
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}" and STAGES[stage]["desc"]


def test_common_modules_import_nothing_above_them():
    for file in (ROOT / "stages/common").glob("*.py"):
        assert all(name.startswith("stages/common/") for name in imported(file)), file


class Recorder:
    """Stands for Params and notes each key that is read."""

    def __init__(self, section: BaseModel, path: str, reads: set[str]):
        self._section, self._path, self._reads = section, path, reads

    def __getattr__(self, name):
        prop = getattr(type(self._section), name, None)
        if isinstance(prop, property):
            return prop.fget(self)
        value = getattr(self._section, name)
        if callable(value):  # model_dump reads the whole section
            self._reads.add(self._path)
            return value
        path = f"{self._path}.{name}".lstrip(".")
        if isinstance(value, BaseModel):
            return Recorder(value, path, self._reads)
        self._reads.add(path)
        return value


def small_params(folder: Path) -> None:
    """SMALL in a params.yaml, with the data set's own target: a target named by the user hides that other key."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in (SMALL | {"targeted_sweep.target": "null"}).items():
        section = content
        for part in key.split(".")[:-1]:
            section = section[part]
        section[key.split(".")[-1]] = yaml.safe_load(value)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def test_params_read_are_the_params_declared(tmp_path, monkeypatch):
    small_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    load = params.load
    for stage, spec in STAGES.items():
        reads: set[str] = set()
        monkeypatch.setattr(params, "load", lambda reads=reads: Recorder(load(), "", reads))
        __import__(f"stages.{stage}", fromlist=["main"]).main()
        declared = {re.sub(r"\$\{([\w.]+)\}", lambda m: CHOSEN[m[1]], key) for key in spec["params"]}

        def covers(key, read):
            return read == key or read.startswith(f"{key}.")

        undeclared = {read for read in reads if not any(covers(key, read) for key in declared)}
        unread = {key for key in declared if not any(covers(key, read) for read in reads)}
        assert not undeclared and not unread, f"{stage}: read but not declared {undeclared}, declared only {unread}"
        outputs = [*spec.get("outs", []), *(next(iter(o)) for o in spec["metrics"] + spec.get("plots", []))]
        assert all(Path(output).is_file() for output in outputs), stage


def test_ood_classes_do_not_touch_what_training_reads():
    for stage in ("train_standard", "train_robust"):
        assert not any("prepare" in key for key in STAGES[stage]["params"])
        assert "data/prepared/ood.npz" not in STAGES[stage]["deps"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A temporary repository, and a first experiment run in it on the digits."""
    folder = new_repository(tmp_path_factory.mktemp("clone"), {})
    assert call(folder, "dvc", "exp", "run", *(f"-S{key}={value}" for key, value in SMALL.items())).returncode == 0
    return folder


def test_the_pipeline_runs_end_to_end(clone):
    fgsm = json.loads((clone / "metrics/fgsm.json").read_text())
    assert fgsm["standard"]["clean"] > 0.5
    for model in ("standard", "robust"):
        assert fgsm[model]["pgd"] <= fgsm[model]["clean"] and fgsm[model]["fgsm_worst"] <= fgsm[model]["fgsm"]
    assert yaml.safe_load((clone / "params.yaml").read_text())["eps"] == "8/255"
    assert "Data and pipelines are up to date" in call(clone, "dvc", "status").stdout


def test_eps_leaves_prepare_and_train_standard_alone_and_comes_back_from_the_cache(clone):
    before = {name: (clone / name).read_bytes() for name in ("dvc.lock", "metrics/fgsm.json", "plots/fgsm_sweep.csv")}
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("eps: 8/255", "eps: 0.2"))
    assert ran(call(clone, "dvc", "repro")) == {
        "train_robust",
        "fgsm_sweep",
        "targeted_sweep",
        "ood_eval",
        "ood_attack",
        "audit",
    }
    assert (clone / "metrics/fgsm.json").read_bytes() != before["metrics/fgsm.json"]
    (clone / "params.yaml").write_text(text)
    assert ran(call(clone, "dvc", "repro")) == set()
    assert {name: (clone / name).read_bytes() for name in before} == before


def test_a_score_parameter_reruns_only_what_reads_it(clone):
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("temperature: 0.5", "temperature: 0.7"))
    changed = json.loads(call(clone, "dvc", "status", "--json").stdout)
    (clone / "params.yaml").write_text(text)
    assert set(changed) == {"ood_eval", "ood_attack"}


def test_every_plot_is_drawn(clone, monkeypatch):
    monkeypatch.chdir(clone)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    drawn = picture.specs()
    tables = {next(iter(p)) for spec in STAGES.values() for p in spec.get("plots", []) if ".csv" in str(p)}
    assert tables | {"FGSM against PGD", "Targeted accuracy", "Attacks on max logit"} == set(drawn)
    for name, spec in drawn.items():
        svg = picture.vl_convert.vegalite_to_svg(spec)
        drawing = r'class="mark-(line|area|rect|symbol)[^>]*>.*?<path[^>]* d="M[^"]{10,}'
        assert re.search(drawing, svg, re.S), f"{name} is empty"
        assert "NaN" not in svg and "undefined" not in svg, name
    figures = summary.table(summary.read(None))
    assert len(figures.splitlines()) == len(summary.ROWS) + 2


def test_dvc_draws_the_band_over_seeds(clone, monkeypatch):
    monkeypatch.chdir(clone)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    sweep = pd.read_csv("plots/fgsm_sweep.csv")
    seeds.OUT.mkdir(exist_ok=True)
    seeds.bands([sweep, sweep]).to_csv(seeds.OUT / "seeds.csv", index=False)
    seeds.draw()
    assert "Accuracy over seeds" in (clone / "build/seeds/index.html").read_text()


def test_the_table_of_experiments_has_few_columns(clone):
    command = shlex.split(call(clone, "make", "--no-print-directory", "-n", "experiments").stdout.splitlines()[-1])
    command.remove("--only-changed")  # there is but one commit to show
    columns = [cell.strip() for cell in call(clone, *command).stdout.splitlines()[0].strip("|").split("|")]
    wanted = {f"{m}.{f}" for m in ("standard", "robust") for f in ("clean", "fgsm", "pgd", "max_logit.auroc", "failed")}
    assert {column for column in columns if column.startswith(("standard.", "robust."))} == wanted
    assert {"Experiment", "eps", "seed"} <= set(columns)
    assert not [column for column in columns if column.startswith(("metrics/", "stages/", "data/", "plots/"))]


def test_a_bad_parameter_stops_the_run_before_any_work(clone):
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("eps: 8/255", "eps: 1.5"))
    done = call(clone, "dvc", "repro", ok=False)
    (clone / "params.yaml").write_text(text)
    assert done.returncode != 0
    assert "eps = 1.5: allowed is a number from 0 to 1" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
