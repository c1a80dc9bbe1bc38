"""The stages breakdown and autoattack on two small models of the digits: what they write agrees with itself."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from stages import autoattack, breakdown
from stages.common import accuracy, artifacts, attacks, evaluation, images, params, rows
from stages.common.autoattack import ensemble
from tests.small import RECIPE, against, fit

EPS = 0.05


@pytest.fixture(scope="module")
def both(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    return {"standard": fit(digits, folder, RECIPE)[0], "robust": fit(digits, folder, RECIPE, against())[0]}


@pytest.fixture
def here(monkeypatch, tmp_path, digits, both):
    """A folder in which a stage finds these models, the digits and small parameters."""
    knobs = SimpleNamespace(
        breakdown=SimpleNamespace(images=60, pgd_steps=5),
        audit=SimpleNamespace(pgd_steps=5, restarts=2),
        autoattack=SimpleNamespace(images=20, queries=20),
        device="cpu",
        precision="float32",
        seed=0,
        eps=EPS,
        eps_l2=0.5,
        confidence=0.95,
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(params, "load_prepared", lambda: knobs)
    monkeypatch.setattr(images, "read", lambda name: digits.take(torch.arange(1600, 1797)))
    monkeypatch.setattr(evaluation, "load_both", lambda image_set, where: both)
    return tmp_path


def metrics(name):
    return json.loads((artifacts.METRICS / f"{name}.json").read_text())


def test_the_breakdown_s_tables_are_of_the_same_images(here, digits, capsys):
    breakdown.main()
    found, table = metrics("breakdown"), rows.read(rows.FOLDER / "breakdown.csv")
    classes, confusion, reliability = (
        pd.read_csv(artifacts.PLOTS / f"{name}.csv", dtype={"class": str, "taken_for": str})
        for name in ("classes", "confusion", "reliability")
    )
    held_out = digits.take(torch.arange(1600, 1797))
    names = [str(held_out.labels[index].item()) for index in table["index"]]
    assert len(table) == 60 and table["index"].is_unique and set(table["set"]) == {"test"}
    for model in artifacts.MODELS:
        left = (table[f"{model}_strongest_0.05"] == "1").to_numpy()
        assert ((table[f"{model}_strongest_0.05_taken_for"] == names).to_numpy() == left).all()
        assert found[model]["strongest"]["accuracy"] == pytest.approx(left.mean(), abs=1e-4)
        for attack in ("clean", "pgd", "strongest"):
            by_class = classes[(classes["model"] == model) & (classes["attack"] == attack)]
            right = np.arange(60) < round((by_class["images"] * by_class["accuracy"]).sum())
            of = found[model][attack]
            expected = accuracy.figures({"accuracy": right}, 0.95)
            assert {key: of[key] for key in expected} == pytest.approx(expected, abs=1e-4)
            assert by_class["images"].sum() == 60
            assert of["worst_class"] == pytest.approx(by_class["accuracy"].min(), abs=1e-4)
            cells = confusion[(confusion["model"] == model) & (confusion["attack"] == attack)]
            diagonal = cells[cells["class"] == cells["taken_for"]].set_index("class")["share"]
            for _, row in by_class.iterrows():
                assert diagonal[row["class"]] == pytest.approx(row["accuracy"], abs=1e-5)
        assert (
            found[model]["strongest"]["accuracy"]
            <= found[model]["pgd"]["accuracy"]
            <= found[model]["clean"]["accuracy"]
        )
        assert 0 <= found[model]["clean"]["ece"] <= 1 and "ece" not in found[model]["strongest"]
    assert set(reliability["attack"]) == {"clean", "pgd"}
    assert (reliability.groupby(["model", "attack"])["count"].sum() == 60).all()
    gain = found["robust_minus_standard"]["pgd"]
    assert gain["difference"] == pytest.approx(
        found["robust"]["pgd"]["accuracy"] - found["standard"]["pgd"]["accuracy"], abs=2e-4
    )
    assert gain["low"] <= gain["difference"] <= gain["high"] and gain["difference"] > 0
    said = capsys.readouterr().out
    assert "robust, strongest: " in said
    announced = (
        "60 test images, 2 models: PGD of 5 steps; the strongest attack, PGD from 2 starts and the margins of 9 "
    )
    assert said.startswith(announced + "classes, 5 steps each: about ")


def test_each_part_of_autoattack_leaves_no_more_than_the_one_before(here):
    autoattack.main()
    found, table = metrics("autoattack"), pd.read_csv(artifacts.PLOTS / "autoattack.csv")
    assert not list(here.glob("data/resume/autoattack-*"))
    for model in artifacts.MODELS:
        for budget, parts in {
            "eps": ["clean", "apgd_ce", "apgd_t", "fab_t", "square"],
            "at_8_255": ["clean", "apgd_ce", "apgd_t", "fab_t", "square"],
            "l2": ["clean", "apgd_ce", "apgd_t"],
        }.items():
            of = found[model][budget]
            assert list(of) == [*parts, "all", "all_low", "all_high"]
            left = [of[part] for part in parts]
            assert left == sorted(left, reverse=True) and of["all"] == left[-1]
            assert of["all_low"] <= of["all"] <= of["all_high"]
            drawn = table[(table["model"] == model) & (table["budget"] == budget)]
            assert drawn["part"].tolist() == parts and drawn["accuracy"].tolist() == pytest.approx(left, abs=1e-4)
    assert found["standard"]["l2"]["all"] < found["robust"]["l2"]["all"]


def test_an_interrupted_autoattack_goes_on_after_its_last_part(here, monkeypatch):
    autoattack.main()
    whole = metrics("autoattack")
    run, made = ensemble.run, []

    def cut_off(*given, **more):
        for part, alive in run(*given, **more):
            made.append(part)
            if len(made) == 2:
                raise KeyboardInterrupt
            yield part, alive

    monkeypatch.setattr(ensemble, "run", cut_off)
    with pytest.raises(KeyboardInterrupt):
        autoattack.main()
    (file,) = here.glob("data/resume/autoattack-*.pt")
    assert list(artifacts.read_checkpoint(file)["done"]) == ["apgd_ce"]  # the second part was not written yet
    resumed = []

    def watched(*given, done, **more):
        resumed.append(list(done))
        return run(*given, done=done, **more)

    monkeypatch.setattr(ensemble, "run", watched)
    autoattack.main()
    assert resumed[0] == ["apgd_ce"] and metrics("autoattack") == whole

    file.write_bytes(b"half a file")
    autoattack.main()  # begun again
    assert metrics("autoattack") == whole and not list(here.glob("data/resume/autoattack-*"))


def test_the_larger_of_two_budgets_by_a_norm_is_attacked_first_and_spares_its_survivors(here, monkeypatch):
    """Half of what is attacked survives: at 8/255 only the half that eps broke is attacked."""
    asked = []

    def half(model, attacked, eps, *, norm, queries, seed, done):
        asked.append((norm, eps, len(attacked)))
        yield "apgd_ce", torch.arange(len(attacked)) % 2 == 0

    monkeypatch.setattr(ensemble, "run", half)
    autoattack.main()
    assert asked == 2 * [(attacks.L2, 0.5, 20), (attacks.Linf, EPS, 20), (attacks.Linf, 8 / 255, 10)]
    found, table = metrics("autoattack")["robust"], rows.read(rows.FOLDER / "autoattack.csv")
    assert [found[budget]["all"] for budget in ("eps", "at_8_255", "l2")] == [0.5, 0.75, 0.5]
    at_eps, smaller = (table[f"robust_autoattack_{eps}"] == "1" for eps in ("0.05", "0.03137"))
    assert list(table)[2:5] == ["standard_autoattack_0.05", "standard_autoattack_0.03137", "standard_apgd_l2_0.5"]
    assert at_eps.sum() == 10 and (at_eps <= smaller).all() and smaller.sum() == 15


def test_one_budget_by_two_names_is_attacked_once(here, monkeypatch):
    params.load_prepared().eps = attacks.EIGHT
    autoattack.main()
    for of in metrics("autoattack").values():
        assert of["eps"] == of["at_8_255"]
