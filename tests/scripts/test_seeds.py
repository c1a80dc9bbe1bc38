"""Figures over several seeds: the statistics, the names, and that a failed run stops with a word to the person."""

import json
import subprocess
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import vl_convert
from scipy import stats

from scripts import seeds, summary
from tests.repository import ROOT


def test_the_interval_is_students():
    values = [0.5, 0.52, 0.57]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert seeds.spread(values) == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} [{low:.3f}, {high:.3f}]"
    assert seeds.spread([0.5]) == "0.500"


def test_the_band_is_students_and_a_plot_of_dvc_s_draws_it(tmp_path, monkeypatch):
    sweep = pd.read_csv(ROOT / "plots/fgsm_sweep.csv")
    lower = sweep.assign(robust=sweep.robust - 0.04)
    found = seeds.bands([sweep, lower]).set_index(["model", "attack", "eps"])
    row = found.loc[("robust", "FGSM", 0.05)]
    first = float(sweep.robust[sweep.eps == 0.05].iloc[0])
    low, high = stats.t.interval(0.95, 1, first - 0.02, stats.sem([first, first - 0.04]))
    assert row["mean"] == pytest.approx(first - 0.02, abs=1e-6)
    assert (row["low"], row["high"]) == pytest.approx((max(low, 0), min(high, 1)), abs=1e-6)
    assert (found.loc["standard"].deviation == 0).all()

    template = json.loads((ROOT / ".dvc/plots/seeds.json").read_text())
    rows = found.reset_index().assign(rev="workspace").astype(str).to_dict("records")
    svg = vl_convert.vegalite_to_svg(template | {"data": {"values": rows}})
    assert "NaN" not in svg and svg.count("mark-area") == svg.count("mark-line") == 4


def test_the_table_has_every_headline_figure(monkeypatch):
    monkeypatch.chdir(ROOT)
    one = summary.read(None)
    other = deepcopy(one)
    other["fgsm"]["robust"]["clean"] = one["fgsm"]["robust"]["clean"] + 0.1
    shown = seeds.table([one, other]).splitlines()
    assert len(shown) == 2 + len([key for *_, key in summary.rows(one) if key != "verdict"])
    clean = next(line for line in shown if line.startswith("| accuracy on clean"))
    assert "± 0.000" in clean.split("|")[2] and "± 0.071" in clean.split("|")[3]


def test_names_tell_what_was_set_and_git_takes_them():
    assert seeds.experiment(0, []) == "seed-0"
    name = seeds.experiment(2, ["dataset=digits", "eps=8/255"])
    assert name == "seed-2-dataset-digits-eps-8_255"
    subprocess.run(["git", "check-ref-format", f"refs/exps/{name}"], check=True)


def test_a_run_is_not_repeated_and_a_failed_one_says_so(monkeypatch):
    calls = []

    def dvc(command, **_):
        calls.append(command)
        return SimpleNamespace(stdout="seed-0\n", returncode=0 if "list" in command else 1)

    monkeypatch.setattr(seeds.subprocess, "run", dvc)
    assert seeds.run(0, []) == "seed-0" and len(calls) == 1
    with pytest.raises(SystemExit, match="seed-1 failed"):
        seeds.run(1, [])
