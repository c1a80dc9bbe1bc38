"""The pipeline as DVC sees it: exact deps and params, one run end to end on the digits, every plot drawn."""

import ast
import functools
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

from scripts import deps, picture, seeds, summary
from stages.common import params
from stages.common.params import faults
from tests.repository import ROOT, SMALL, call, new_repository, ran

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CHOSEN = {"dataset": "digits", "model.name": "whitened_cnn"}


@pytest.mark.parametrize("stage", STAGES)
def test_modules_imported_are_the_deps(stage):
    """Held by hand once: whoever changes the program that writes the deps is told here what it must find."""
    deps_on_code = [dep for dep in STAGES[stage]["deps"] if dep.startswith("stages/")]
    assert deps_on_code == deps.closure(ROOT / f"stages/{stage}.py", ROOT)
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}" and STAGES[stage]["desc"]


def loaded(stage: str) -> set[str]:
    """The project's files with code that the stage loads when it is imported, as Python itself says."""
    code = f"import sys, stages.{stage}; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('stages')))"
    paths = [Path(name) for name in call(ROOT, sys.executable, "-c", code).stdout.split()]
    return {path.relative_to(ROOT).as_posix() for path in paths if path.stat().st_size}


@pytest.mark.parametrize("stage", ["prepare", "train_standard", "ood_eval"])
def test_the_deps_are_what_python_loads_but_for_declarations_and_refusals(stage):
    left_out = deps.DECLARATIONS | deps.REFUSALS
    asked_by_refusals = {"stages/common/class_names.py"}
    if stage == "prepare":
        asked_by_refusals = {"stages/common/normalization.py", "stages/common/origin_names.py"}
    left_out |= asked_by_refusals
    found = set()
    for dep in deps.closure(ROOT / f"stages/{stage}.py", ROOT):
        path = ROOT / dep
        found |= {file.relative_to(ROOT).as_posix() for file in (path.rglob("*.py") if path.is_dir() else [path])}
    assert found | left_out == loaded(stage) | left_out


def test_what_no_stage_depends_on_holds_no_code_or_changes_no_value(monkeypatch):
    """Declarations: classes of annotations. Refusals: without them the same parameters are read."""
    for name in deps.DECLARATIONS:
        for node in ast.parse((ROOT / name).read_text()).body:
            declares = isinstance(node, ast.Assign) and not any(isinstance(n, ast.Call) for n in ast.walk(node))
            assert declares or isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.Expr)), ast.dump(node)
            for line in node.body if isinstance(node, ast.ClassDef) else []:
                assert isinstance(line, (ast.AnnAssign, ast.Expr, ast.Pass)) or "model_config" in ast.dump(line)
                assert (
                    not isinstance(line, ast.AnnAssign) or line.value is None
                )  # no default beside params.yaml's value
    whole = params.load(ROOT / "params.yaml")
    monkeypatch.setattr(faults, "found_in", lambda params: [])
    assert params.load(ROOT / "params.yaml") == whole


def test_common_modules_import_nothing_above_them():
    for file in (ROOT / "stages/common").rglob("*.py"):
        assert all(name.startswith("stages.common") for name in deps.imports(file)), file


def test_packages_of_common_do_not_import_each_other_in_a_circle():
    """A module and all that it imports: nothing that it imports may come back to it."""
    files = [file for file in (ROOT / "stages/common").rglob("*.py") if file.name != "__init__.py"]
    direct = {f: {g for m in deps.imports(f) for g in deps.files_of(m, ROOT)} for f in files}
    for file in files:
        seen, waiting = set(), [file]
        while waiting:
            new = {g for g in direct.get(waiting.pop(), ()) if g not in seen and g.name != "__init__.py"}
            seen |= new
            waiting += new
        assert file not in seen, file


class Recorder:
    """Stands for Params and notes each key that is read."""

    def __init__(self, section: BaseModel, path: str, reads: set[str]):
        self._section, self._path, self._reads = section, path, reads

    def __getattr__(self, name):
        prop = getattr(type(self._section), name, None)
        if isinstance(prop, property):
            return prop.fget(self)
        if name in vars(params.Params) and callable(prop):  # a method: what it reads is read
            return functools.partial(prop, self)
        value = getattr(self._section, name)
        if callable(value):  # model_dump reads the whole section
            self._reads.add(self._path)
            return value
        field = type(self._section).model_fields.get(name)  # whose name in the file may be another one
        path = f"{self._path}.{(field and field.alias) or name}".lstrip(".")
        if isinstance(value, BaseModel):
            return Recorder(value, path, self._reads)
        self._reads.add(path)
        return value


def small_params(folder: Path) -> None:
    """SMALL in a params.yaml, with the data set's own target and budget: those named by the user hide these keys."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in (SMALL | {"targeted_sweep.target": "null", "eps": "null"}).items():
        section = content
        for part in key.split(".")[:-1]:
            section = section[part]
        section[key.split(".")[-1]] = yaml.safe_load(value)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def test_params_read_are_the_params_declared(tmp_path, monkeypatch):
    """But for what a refusal looks at, which changes nothing of what the stage gives."""
    monkeypatch.setattr(faults, "found_in_data", lambda params, classes, images: [])
    small_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    doors = {name: getattr(params, name) for name in ("load", "load_prepared")}
    for stage, spec in STAGES.items():
        reads: set[str] = set()
        name = "load" if stage == "prepare" else "load_prepared"
        monkeypatch.setattr(params, name, lambda name=name, reads=reads: Recorder(doors[name](), "", reads))
        __import__(f"stages.{stage}", fromlist=["main"]).main()
        declared = {re.sub(r"\$\{([\w.]+)\}", lambda m: CHOSEN[m[1]], key) for key in spec.get("params", [])}

        def covers(key, read):
            return read == key or read.startswith(f"{key}.")

        undeclared = {read for read in reads if not any(covers(key, read) for key in declared)}
        of_another = {
            "datasets.torchvision.name",
            "datasets.torchvision.ood_name",
        }  # dvc.yaml cannot ask for them there alone
        unread = {key for key in declared - of_another if not any(covers(key, read) for read in reads)}
        assert not undeclared and not unread, f"{stage}: read but not declared {undeclared}, declared only {unread}"
        outputs = [*spec.get("outs", []), *(next(iter(o)) for o in spec.get("metrics", []) + spec.get("plots", []))]
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
    sweep = pd.read_csv(clone / "plots/fgsm_sweep.csv")
    assert fgsm["standard"]["clean"] > 0.5
    for model in ("standard", "robust"):
        clean_of_pgd_s_few = sweep.loc[sweep.eps == 0, f"{model}_pgd"].item()
        assert fgsm[model]["pgd"] <= clean_of_pgd_s_few and fgsm[model]["fgsm_worst"] <= fgsm[model]["fgsm"]
    assert yaml.safe_load((clone / "params.yaml").read_text())["eps"] == "8/255"
    assert "Data and pipelines are up to date" in call(clone, "dvc", "status").stdout


def test_eps_leaves_prepare_and_train_standard_alone_and_comes_back_from_the_cache(clone):
    before = {name: (clone / name).read_bytes() for name in ("dvc.lock", "metrics/fgsm.json", "plots/fgsm_sweep.csv")}
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("\neps: 8/255", "\neps: 0.2"))
    assert ran(call(clone, "dvc", "repro")) == set(STAGES) - {"prepare", "train_standard"}
    assert (clone / "metrics/fgsm.json").read_bytes() != before["metrics/fgsm.json"]
    (clone / "params.yaml").write_text(text)
    assert ran(call(clone, "dvc", "repro")) == set()
    assert {name: (clone / name).read_bytes() for name in before} == before


# Stages that read both models, and all of them that attack one
ATTACKED = {"fgsm_sweep", "targeted_sweep", "ood_eval", "ood_attack", "breakdown", "autoattack", "certify", "audit"}
PARAMS, COMMON = "params.yaml", "stages/common"
EDITS = {  # what is edited: where, a text there, what takes its place -> the stages that DVC must call stale, exactly
    "a score's knob turned": ([(PARAMS, "temperature: 0.5", "temperature: 0.7")], {"ood_eval", "ood_attack"}),
    "a new knob of ood_eval": (
        [
            (PARAMS, "  temperature: 0.5", "  sharpness: 2\n  temperature: 0.5"),
            (
                f"{COMMON}/params/schema.py",
                "class OODEval(Section):",
                "class OODEval(Section):\n    sharpness: Positive",
            ),
        ],
        {"ood_eval", "ood_attack"},
    ),
    "a new knob of the audit": (
        [
            (PARAMS, "  restarts: 3", "  restarts: 3\n  patience: 2"),
            (f"{COMMON}/params/schema.py", "class Audit(Section):", "class Audit(Section):\n    patience: Count"),
        ],
        {"audit"},
    ),
    "another bound of a knob": ([(f"{COMMON}/params/schema.py", "guides: Count", "guides: Positive")], set()),
    "a refusal": ([(f"{COMMON}/params/faults.py", "two classes at least", "at least two classes")], set()),
    "PGD": ([(f"{COMMON}/attacks.py", "2.5 * ball.reach", "2.6 * ball.reach")], {"train_robust", *ATTACKED}),
    "a training attack": ([(f"{COMMON}/adversary.py", "1.25 * duel.eps", "1.3 * duel.eps")], {"train_robust"}),
    "a score": ([(f"{COMMON}/detection/scores.py", "amax(1)", "amax(1).abs()")], {"ood_eval", "ood_attack"}),
    "evasion": ([(f"{COMMON}/detection/evasion.py", "DOWN, UP = -1, 1", "DOWN, UP = -2, 2")], {"ood_attack"}),
    "a check": ([(f"{COMMON}/audit/attack_checks.py", "share > 0.95", "share > 0.96")], {"audit"}),
    "Square": ([(f"{COMMON}/audit/square.py", "START = 0.8", "START = 0.7")], {"autoattack", "audit"}),
    "APGD": ([(f"{COMMON}/autoattack/apgd.py", "MOMENTUM = 0.75", "MOMENTUM = 0.7")], {"autoattack"}),
    "an interval of two models": (
        [(f"{COMMON}/accuracy.py", "HALVINGS = 60", "HALVINGS = 50")],
        {"fgsm_sweep", "targeted_sweep", "breakdown", "autoattack", "corruption_sweep", "certify", "audit"},
    ),
    "the level of intervals": (
        [(PARAMS, "confidence: 0.95", "confidence: 0.9")],
        set(STAGES) - {"prepare", "train_standard", "train_robust", "images_table"},
    ),
    "the joined rows": (
        [("stages/images_table.py", '"ood_eval", "fgsm_sweep"', '"fgsm_sweep", "ood_eval"')],
        {"images_table"},
    ),
    "the strongest attack": (
        [(f"{COMMON}/audit/strongest.py", "seed + 1, seed", "seed + 2, seed")],
        {"breakdown", "audit"},
    ),
    "a corruption": ([(f"{COMMON}/corruptions.py", "REACH = 2", "REACH = 3")], {"corruption_sweep"}),
    "the smoothing": ([(f"{COMMON}/smoothing.py", "NOISES = 10, 8", "NOISES = 10, 4")], {"certify"}),
    "a figure": (
        [(f"{COMMON}/figures.py", "DPI = 100", "DPI = 90")],
        {"fgsm_sweep", "targeted_sweep", "ood_eval", "audit"},
    ),
    "a data set's reader": ([(f"{COMMON}/datasets/noise.py", "COUNT = 500", "COUNT = 400")], {"prepare"}),
    "class names": ([(f"{COMMON}/class_names.py", '"truck"', '"lorry"')], {"prepare"}),
    "the loop": (
        [(f"{COMMON}/training/loop.py", "EARLY_SHARE = 0.5", "EARLY_SHARE = 0.4")],
        {"train_standard", "train_robust"},
    ),
    "a new file in a folder": ([(f"{COMMON}/audit/new.py", None, "NEW = 1\n")], {"audit"}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_makes_stale_what_depends_on_it_and_nothing_else(clone, edit):
    changes, expected = EDITS[edit]
    before = {name: (clone / name).read_text() if old else None for name, old, _ in changes}
    try:
        for name, old, new in changes:
            path = clone / name
            if old is not None:
                assert path.read_text().count(old) >= 1, f"{name} does not hold {old!r}"
            path.write_text(new if old is None else path.read_text().replace(old, new))
        assert set(json.loads(call(clone, "dvc", "status", "--json").stdout)) == expected
    finally:
        for name, text in before.items():
            (clone / name).unlink() if text is None else (clone / name).write_text(text)


def test_every_plot_is_drawn(clone, monkeypatch):
    monkeypatch.chdir(clone)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    drawn = picture.specs()
    tables = {next(iter(p)) for spec in STAGES.values() for p in spec.get("plots", []) if ".csv" in str(p)}
    assert tables | {
        "FGSM against PGD",
        "Targeted accuracy",
        "Attacks on max logit",
        "Confusion of clean images",
    } == set(drawn)
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
    (clone / "params.yaml").write_text(text.replace("\neps: 8/255", "\neps: 1.5"))
    done = call(clone, "dvc", "repro", ok=False)
    (clone / "params.yaml").write_text(text)
    assert done.returncode != 0
    assert "eps = 1.5: allowed is a number from 0 to 1" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
