"""An interrupted run ends as an uninterrupted one, to the byte, and takes up nobody else's work."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from stages.common import artifacts, work
from stages.common.training import resume
from tests.small import RECIPE, SETTINGS, against, fit, new_model, parts, same, scripted

# Epoch 2 seems immune to one step and falls to ten, so the best is epoch 1's and the budget shrinks; 3 is sound but
# no better, and 4 is worse than the first by more than fifty images can hide
UNDONE = {1: (0.9, 0.6, 0.5), 2: (0.9, 0.9, 0.1), 3: (0.9, 0.5, 0.4), 4: (0.9, 0.6, 0.42)}
OPPONENTS = {
    "plain": None,
    "robust": against(),
    "an epoch undone": scripted(UNDONE, replace(SETTINGS, ramp=0.0)),
    "none undone": scripted(UNDONE, replace(SETTINGS, ramp=0.0, undo_overfitting=False)),
}


def cut_after(epoch):
    """A `log` that stops the run when an epoch's work file is there."""

    def log(rows):
        if len(rows) == epoch:
            raise KeyboardInterrupt

    return log


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("opponent", OPPONENTS.values(), ids=OPPONENTS)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(digits, tmp_path, opponent, bfloat16):
    """Cut after each epoch in turn: rows, budget, Muon's momentum and SGD's, and the best weights all survive."""
    recipe = replace(RECIPE, bfloat16=bfloat16)
    ends_the_same(digits, tmp_path, recipe, opponent)


@pytest.mark.parametrize("changes", [{"filter_rate": None}, {"flip": True}], ids=["without Muon", "mirrored in turn"])
def test_so_does_one_of_another_recipe(digits, tmp_path, changes):
    ends_the_same(digits, tmp_path, replace(RECIPE, **changes), None)


@pytest.mark.parametrize("attack", ["rs-fgsm", "pgd", "trades"])
def test_so_does_one_by_another_method(digits, tmp_path, attack):
    settings = replace(SETTINGS, attack=attack, steps=2, ramp=0.0)
    ends_the_same(digits, tmp_path, replace(RECIPE, epochs=2), against(settings))


def ends_the_same(digits, tmp_path, recipe, opponent):
    whole, result = fit(digits, tmp_path / "whole", recipe, opponent)
    assert len(result.rows) == recipe.epochs and not list((tmp_path / "whole").iterdir())

    folder, logged = tmp_path / "cut", []
    for epoch in range(1, recipe.epochs + 1):
        with pytest.raises(KeyboardInterrupt):
            fit(digits, folder, recipe, opponent, log=cut_after(epoch))
        assert len(list(folder.iterdir())) == 1
    resumed, again = fit(digits, folder, recipe, opponent, log=lambda rows: logged.append(len(rows)))
    assert same(whole, resumed) and again == result
    assert logged == [recipe.epochs]  # the table is whole though nothing was left to train
    assert not list(folder.iterdir())


def test_what_is_resumed_had_an_epoch_undone_before_the_cut(digits, tmp_path):
    """The case above is the one that it means to be: the budget shrank, and the first epoch stayed the best."""
    _, result = fit(digits, tmp_path, RECIPE, OPPONENTS["an epoch undone"])
    assert [row["overfitted"] for row in result.rows] == [0, 1, 0, 0] and result.epoch == 1
    assert [row["eps"] for row in result.rows] == pytest.approx([0.1, 0.1, 0.075, 0.075])


def test_an_epoch_that_did_not_end_is_trained_again(digits, tmp_path):
    """Interrupted while it is judged, before the work file is written: the run goes on after the epoch before."""
    whole, result = fit(digits, tmp_path / "whole", RECIPE, against())

    def stopping(model, val_set):
        regime = against()(model, val_set)
        judge = regime.after_epoch

        def after_epoch(row, progress):
            if row["epoch"] == 3:
                raise KeyboardInterrupt
            return judge(row, progress)

        regime.after_epoch = after_epoch
        return regime

    with pytest.raises(KeyboardInterrupt):
        fit(digits, tmp_path / "cut", RECIPE, stopping)
    resumed, again = fit(digits, tmp_path / "cut", RECIPE, against())
    assert same(whole, resumed) and again == result


def test_the_table_is_whole_after_a_resumption(digits, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        fit(digits, tmp_path, log=cut_after(2))
    epochs = []
    fit(digits, tmp_path, log=lambda rows: epochs.append([row["epoch"] for row in rows]))
    assert epochs == [[1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert "test: going on after epoch 2\n" in capsys.readouterr().out


def test_other_seeds_give_other_weights(digits, tmp_path):
    short = replace(RECIPE, epochs=1)
    assert not same(fit(digits, tmp_path, short)[0], fit(digits, tmp_path, replace(short, seed=1))[0])


def test_a_work_file_half_written_by_a_killed_run_of_other_settings_is_swept(digits, tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    stray, beside = (tmp_path / f".test-0123456789abcdef.pt.{number}" for number in (killed.pid, os.getppid()))
    for path in (stray, beside):
        path.write_bytes(b"half")
    fit(digits, tmp_path, replace(RECIPE, epochs=1))
    assert not stray.exists() and beside.exists()


def test_work_files_of_other_runs_and_damaged_ones_are_left_aside(digits, tmp_path, capsys):
    short, used = replace(RECIPE, epochs=1), []

    def note(rows):
        (file,) = tmp_path.iterdir()
        used.append(file)

    whole, _ = fit(digits, tmp_path, short, log=note)
    used[0].write_bytes(b"no work file")
    assert same(whole, fit(digits, tmp_path, short, log=note)[0])
    artifacts.write_checkpoint(used[0], {"run": "another", "rows": []})
    assert same(whole, fit(digits, tmp_path, short, log=note)[0])
    assert "going on" not in capsys.readouterr().out
    fit(digits, tmp_path, replace(short, seed=1), log=note)
    fit(digits, tmp_path, short, against(), log=note)
    fit(digits, tmp_path, short, against(replace(SETTINGS, eps=0.09)), log=note)
    assert used[0] == used[1] == used[2] and len(set(used)) == 4


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_work_file_that_would_run_code_is_left_aside(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short, used = replace(RECIPE, epochs=1), []
    whole, _ = fit(digits, "work", short, log=lambda rows: used.extend(Path("work").iterdir()))
    torch.save({"run": Bomb(), "model": Bomb()}, used[0])
    assert same(whole, fit(digits, "work", short)[0]) and not Path("exploded").exists()


def test_few_work_files_of_runs_given_up_are_kept(tmp_path):
    files = [tmp_path / f"{name}-{i:016}.pt" for name in ("standard", "robust") for i in range(20)]
    for age, file in enumerate(files):
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    resume.WorkFile(tmp_path, "standard", "0" * 64)
    assert sorted(tmp_path.iterdir()) == sorted(files[: work.ABANDONED] + files[20:])
    assert not (tmp_path / "absent").exists() and resume.WorkFile(tmp_path / "absent", "standard", "0" * 64)


@pytest.fixture
def run(digits):
    """What a run depends on: the arguments of `fingerprint`."""
    return [new_model(digits), *parts(digits), RECIPE, SETTINGS]


def test_equal_runs_have_equal_fingerprints(run, digits):
    assert resume.fingerprint(*run) == resume.fingerprint(new_model(digits), *parts(digits), RECIPE, replace(SETTINGS))


def other(value):
    """Another value of the same type."""
    return not value if isinstance(value, bool) else f"{value}*" if isinstance(value, str) else (value or 0) + 1


@pytest.mark.parametrize("knob", [field.name for field in fields(RECIPE)])
def test_every_knob_of_the_recipe_makes_another_run(run, knob):
    changed = replace(RECIPE, **{knob: other(getattr(RECIPE, knob))})
    assert resume.fingerprint(*run[:3], changed, SETTINGS) != resume.fingerprint(*run)


@pytest.mark.parametrize("knob", [field.name for field in fields(SETTINGS)])
def test_every_setting_of_the_regime_makes_another_run(run, knob):
    changed = replace(SETTINGS, **{knob: "fgsm" if knob == "attack" else other(getattr(SETTINGS, knob))})
    assert resume.fingerprint(*run[:4], changed) != resume.fingerprint(*run) != resume.fingerprint(*run[:4], None)


@pytest.mark.parametrize("which", [1, 2], ids=["train", "val"])
@pytest.mark.parametrize("field", ["images", "labels"])
def test_a_pixel_or_a_label_makes_another_run(run, which, field):
    before = resume.fingerprint(*run)
    getattr(run[which], field).view(-1)[7] += 1  # of copies: `parts` takes the images by index
    assert resume.fingerprint(*run) != before


def test_a_weight_or_a_buffer_makes_another_run(run):
    found = {resume.fingerprint(*run)}
    for tensor in (run[0].linear.weight, run[0].first_norm[0].running_var, run[0].normalize.mean):
        with torch.no_grad():
            tensor.view(-1)[0] += 1
        found.add(resume.fingerprint(*run))
    assert len(found) == 4


def test_another_torch_makes_another_run(run, monkeypatch):
    before = resume.fingerprint(*run)
    monkeypatch.setattr(torch, "__version__", "0")
    assert resume.fingerprint(*run) != before


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("stages.common.anything", True),
        ("stages.common.training.anything", True),
        ("stages.common.params.anything", False),  # it reads values, and these are in the recipe and the settings
        ("scripts.anything", False),
    ],
)
def test_the_source_of_a_loaded_module_makes_another_run(run, monkeypatch, tmp_path, name, counts):
    module, source = ModuleType(name), tmp_path / "anything.py"
    module.__file__ = str(source)
    monkeypatch.setitem(sys.modules, name, module)
    source.write_text("one = 1\n")
    before = resume.fingerprint(*run)
    source.write_text("one = 2\n")
    assert (resume.fingerprint(*run) != before) == counts


def test_the_modules_at_work_are_among_those_that_count(run, monkeypatch):
    """Each by its own name: a package's __init__ alone would not tell when a module in it changes."""
    before = resume.fingerprint(*run)
    for name in ("adversary", "attacks", "robustness", "training.loop", "training.optimizer", "models.architectures"):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, f"stages.common.{name}")
            assert resume.fingerprint(*run) != before, name
    for name in [name for name in sys.modules if name.startswith("stages.common.params.")]:
        monkeypatch.delitem(sys.modules, name)
    assert resume.fingerprint(*run) == before
