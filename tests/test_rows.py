"""Rows of images: a part a stage, joined by set and index with no figure changed, and the pictures chosen by them."""

import math

import pandas as pd
import pytest
import torch

from scripts import images_table as pictures
from stages import images_table
from stages.common import artifacts, images, rows
from stages.common.errors import UserError
from stages.common.images import ImageSet

FIRST = {"class": ["nan", "7", "7"], "standard_knn": torch.tensor([-1.5, 1e-9, 0.1], dtype=torch.float64)}


def test_parts_are_joined_by_image_and_what_nobody_looked_at_is_empty(tmp_path):
    one = rows.part("test", torch.arange(3), FIRST)
    two = rows.part("test", torch.tensor([2, 0]), {"robust_fgsm_0.05": torch.tensor([True, False])})
    ood = rows.part("ood", torch.arange(1), {"class": ["x"], "standard_knn": torch.tensor([2.0])})
    extra = rows.part("digits", torch.tensor([10, 9]), {"class": ["0", "1"], "standard_knn": torch.zeros(2)})
    rows.write(tmp_path / "t.csv", rows.join([pd.concat([extra, ood, one]), two]))
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "set,index,class,standard_knn,robust_fgsm_0.05",
        "test,0,nan,-1.5,0",
        "test,1,7,1e-09,",
        "test,2,7,0.1,1",
        "ood,0,x,2,",
        "digits,9,1,0,",
        "digits,10,0,0,",
    ]


def test_what_is_joined_again_is_the_same_bytes_and_reads_as_numbers(tmp_path):
    budgets = torch.tensor([0.0, torch.inf, 0.0039])
    rows.write(tmp_path / "a.csv", rows.part("test", torch.arange(3), FIRST | {"robust_smallest_pgd": budgets}))
    table = rows.read(tmp_path / "a.csv")
    rows.write(tmp_path / "b.csv", rows.join([table]))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    found = rows.numbers(table.assign(robust_taken_for="1", robust_pgd_0=["", "1", "0"]))
    assert found["class"].tolist() == ["nan", "7", "7"] and found["robust_taken_for"].tolist() == ["1"] * 3
    assert found["robust_smallest_pgd"].tolist() == [0.0, math.inf, 0.0039]
    assert math.isnan(found["robust_pgd_0"][0]) and found["robust_pgd_0"][1] == 1


def test_a_column_of_two_stages_and_an_image_twice_are_refused():
    part = rows.part("test", torch.arange(3), FIRST)
    with pytest.raises(ValueError, match="more than one stage writes the column class, standard_knn"):
        rows.join([part, part])
    with pytest.raises(pd.errors.MergeError):
        rows.join([part, rows.part("test", torch.tensor([1, 1]), {"a": torch.zeros(2)})])


def test_columns_are_named_after_model_attack_and_budget():
    assert rows.column("robust", "fgsm", 8 / 255) == "robust_fgsm_0.03137"
    assert rows.column("robust", "pgd", 0.1) == "robust_pgd_0.1"


# The stage and the pictures

COUNT = 30


@pytest.fixture
def written(tmp_path, monkeypatch, digits):
    """The parts of made-up figures for COUNT test and 12 OOD images, and the sets that they are of."""
    monkeypatch.chdir(tmp_path)
    test, ood = digits.take(torch.arange(COUNT)), digits.take(torch.arange(100, 112))
    ood = ImageSet(ood.images, ood.labels % 2, ["8x", "9x"])
    monkeypatch.setattr(images, "read", {"test": test, "ood": ood}.__getitem__)
    names = [test.classes[k] for k in test.labels.tolist()]
    sure = torch.linspace(0.1, 0.9, COUNT)
    of_test, of_ood = {"class": names}, {"class": [ood.classes[k] for k in ood.labels.tolist()]}
    strongest, smallest = {}, {}
    for model in artifacts.MODELS:
        wrong = torch.arange(COUNT) % 10 == 9
        taken = ["0" if out and name != "0" else name for out, name in zip(wrong, names, strict=True)]
        of_test |= {f"{model}_taken_for": taken, f"{model}_confidence": sure}
        of_test |= {f"{model}_max_logit": torch.zeros(COUNT), f"{model}_knn": torch.arange(COUNT) + 10.0}
        of_ood |= {f"{model}_taken_for": ["3"] * 12, f"{model}_confidence": torch.ones(12)}
        of_ood |= {f"{model}_max_logit": torch.zeros(12), f"{model}_knn": torch.arange(12.0)}
        left = (torch.arange(20) % 2 == 0) & ~wrong[:20]
        strongest[f"{model}_strongest_0.05"] = left
        strongest[f"{model}_strongest_0.05_taken_for"] = [n if s else "1" for n, s in zip(names, left, strict=False)]
        smallest[f"{model}_smallest_pgd"] = torch.where(wrong[:10], 0.0, torch.arange(1, 11) / 100)
        smallest[f"{model}_smallest_fgsm"] = torch.full((10,), torch.inf)
    parts = {
        "ood_eval": pd.concat(
            [rows.part("test", torch.arange(COUNT), of_test), rows.part("ood", torch.arange(12), of_ood)]
        ),
        "fgsm_sweep": rows.part("test", torch.arange(COUNT), {"robust_fgsm_0.05": torch.ones(COUNT).bool()}),
        "breakdown": rows.part("test", torch.arange(20), strongest),
        "autoattack": rows.part("test", torch.arange(5), {"robust_autoattack_0.05": torch.zeros(5).bool()}),
        "audit": rows.part("test", torch.arange(10), smallest),
    }
    assert set(parts) == set(images_table.PARTS)
    for name, part in parts.items():
        rows.write(rows.FOLDER / f"{name}.csv", part)
    return tmp_path


def test_the_stage_has_a_row_for_each_image_and_says_how_many(written, capsys):
    images_table.main()
    table = rows.numbers(rows.read(artifacts.ROWS))
    assert table.groupby("set", sort=False).size().to_dict() == {"test": COUNT, "ood": 12}
    assert table["robust_autoattack_0.05"].count() == 5 and table["robust_fgsm_0.05"].sum() == COUNT
    assert "data/images.csv: 30 test, 12 ood images, " in capsys.readouterr().out


def test_pictures_show_the_most_telling_images_first(written):
    images_table.main()
    table = rows.numbers(rows.read(artifacts.ROWS))
    shown = {name: pictures.chosen(name, table, "robust")["index"].tolist() for name in pictures.PICTURES}
    assert shown == {
        "surest_errors": [29, 19, 9],
        "broken": [17, 15, 13, 11, 7, 5, 3, 1],
        "survivors": [18, 16, 14, 12, 10, 8, 6, 4, 2, 0],
        "fragile": [0, 1, 2, 3, 4, 5, 6, 7, 8],
        "unknown_taken_in": [11, 10, 9, 8, 7, 6, 5, 4, 3, 2],
        "known_turned_away": list(range(10)),
    }
    assert pictures.chosen("broken", table, "robust")["taken_for"].unique() == ["1"]
    assert pictures.best_detector(table, "robust") == "robust_knn"


def test_every_picture_is_drawn(written, capsys):
    images_table.main()
    pictures.main()
    assert {path.stem for path in pictures.OUT.glob("*.png")} == set(pictures.PICTURES)
    assert "42 images in data/images.csv, best detectors standard_knn, robust_knn" in capsys.readouterr().out


def test_without_their_table_pictures_say_what_to_run(written):
    with pytest.raises(UserError, match=r"data/images.csv is missing: run `dvc repro`"):
        pictures.main()
    (rows.FOLDER / "audit.csv").unlink()
    with pytest.raises(UserError, match=r"data/rows/audit.csv is missing"):
        images_table.main()
    assert not artifacts.ROWS.exists()
