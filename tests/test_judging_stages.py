"""The stages breakdown and autoattack on two small models of the digits: what they write agrees with itself."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from scripts import images_table
from stages import autoattack, breakdown
from stages.common import accuracy, artifacts, attacks, evaluation, images, params
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


def test_the_breakdown_s_tables_are_of_the_same_images(here, capsys):
    breakdown.main()
    found, rows = metrics("breakdown"), pd.read_csv(artifacts.ROWS, dtype=dict.fromkeys(images_table.NAMES, str))
    classes, confusion, reliability = (
        pd.read_csv(artifacts.PLOTS / f"{name}.csv", dtype={"class": str, "taken_for": str})
        for name in ("classes", "confusion", "reliability")
    )
    assert len(rows) == 60 and rows["image"].is_unique
    for model in artifacts.MODELS:
        for attack in ("clean", "pgd", "strongest"):
            right = (rows[f"{model}_{attack}"] == rows["class"]).to_numpy()
            of = found[model][attack]
            expected = accuracy.figures({"accuracy": right}, 0.95)
            assert {key: of[key] for key in expected} == pytest.approx(expected, abs=1e-4)
            by_class = classes[(classes["model"] == model) & (classes["attack"] == attack)]
            assert by_class["images"].sum() == 60
            assert float((by_class["images"] * by_class["accuracy"]).sum()) == pytest.approx(right.sum(), abs=1e-3)
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
    assert "robust, strongest: " in capsys.readouterr().out


def test_the_pictures_show_what_their_rows_say(here, digits, capsys):
    breakdown.main()
    images_table.main()
    assert sorted(path.name for path in images_table.OUT.glob("*.png")) == sorted(
        f"{name}.png" for name in images_table.PICTURES
    )
    rows = pd.DataFrame(
        {"image": [0, 1, 2], "class": ["3", "4", "5"]}
        | {f"robust_{attack}": ["3", "4", "1"] for attack in ("clean", "pgd")}
        | {"robust_strongest": ["3", "9", "1"], "robust_confidence": [0.9, 0.8, 0.7]}
    )
    shown = {
        name: rows[chosen(rows, "robust")]["image"].tolist() for name, (chosen, _) in images_table.PICTURES.items()
    }
    assert shown == {"surest_errors": [2], "broken": [1], "survivors": [0]}


def test_without_its_rows_the_pictures_say_what_to_run(here):
    with pytest.raises(SystemExit, match="dvc repro breakdown"):
        images_table.main()


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
            rows = table[(table["model"] == model) & (table["budget"] == budget)]
            assert rows["part"].tolist() == parts and rows["accuracy"].tolist() == pytest.approx(left, abs=1e-4)
    assert found["standard"]["l2"]["all"] < found["robust"]["l2"]["all"]


def test_an_interrupted_autoattack_goes_on_after_its_last_part(here, monkeypatch):
    autoattack.main()
    whole = metrics("autoattack")
    run, made = autoattack.autoattack.run, []

    def cut_off(*given, **more):
        for part, alive in run(*given, **more):
            made.append(part)
            if len(made) == 2:
                raise KeyboardInterrupt
            yield part, alive

    monkeypatch.setattr(autoattack.autoattack, "run", cut_off)
    with pytest.raises(KeyboardInterrupt):
        autoattack.main()
    (file,) = here.glob("data/resume/autoattack-*.pt")
    assert list(artifacts.read_checkpoint(file)["done"]) == ["apgd_ce"]  # the second part was not written yet
    resumed = []

    def watched(*given, done, **more):
        resumed.append(list(done))
        return run(*given, done=done, **more)

    monkeypatch.setattr(autoattack.autoattack, "run", watched)
    autoattack.main()
    assert resumed[0] == ["apgd_ce"] and metrics("autoattack") == whole

    file.write_bytes(b"half a file")
    autoattack.main()  # begun again
    assert metrics("autoattack") == whole and not list(here.glob("data/resume/autoattack-*"))


def test_the_l2_budget_is_one(here, monkeypatch):
    asked = []
    monkeypatch.setattr(
        autoattack,
        "survivors",
        lambda model, attacked, eps, norm, knobs, file: (
            asked.append((norm, eps)) or {"apgd_ce": torch.ones(20, dtype=torch.bool)}
        ),
    )
    autoattack.main()
    assert asked == 2 * [(attacks.Linf, EPS), (attacks.Linf, 8 / 255), (attacks.L2, 0.5)]
