"""docs/your-model.md, followed word for word in a fresh clone: every command does what the page says, and prints it."""

import json
import shutil

import pytest
import torch

from stages.common import models
from stages.common.errors import UserError
from tests import pages
from tests.repository import FEW_JUDGED, call, new_repository, ran

PAGE = pages.read("your-model.md")
PREPARE, EXAMINE, NAMES, MISNAMED, TRAIN, ADOPT = pages.commands(PAGE)
QUICK = {
    "audit.square_queries": "20",
    "ood_attack.images": "40",
    "ood_attack.pgd_steps": "2",
    **FEW_JUDGED,
    "datasets.folder.train_standard.epochs": "2",
    "datasets.folder.train_robust.epochs": "2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clone with the page's files, its pictures and its trained net."""
    made = new_repository(tmp_path_factory.mktemp("your_model"), QUICK)
    pages.apply(PAGE, made)
    call(made, "ruff", "check", "--quiet", "make_photos.py", "my_model.py")
    shell(made, PREPARE)
    return made


def shell(folder, command, *more, ok=True):
    """Run a command of the page, `more` arguments after it; what the page shows must have been printed."""
    typed, shown = command
    done = call(folder, "sh", "-c", " ".join([typed, *more]), ok=ok)
    assert not list(pages.not_printed(shown, done.stdout + done.stderr)), done.stdout + done.stderr
    return done


def examined(folder):
    return json.loads((folder / "build/examine/metrics.json").read_text())


def test_a_model_is_judged(folder):
    done = shell(folder, EXAMINE)
    found = examined(folder)
    assert found["clean"] > 0.95 and found["strongest"] <= found["pgd"] <= found["clean"]
    assert found["sweep"]["eps"] == pytest.approx([0, *(share * 8 / 255 for share in (0.25, 0.5, 1, 2, 4))], abs=1e-4)
    assert found["sweep"]["pgd"][-1] == 0
    assert found["ood"]["max_logit"]["auroc"] > 0.8 and found["ood"]["knn"]["auroc"] > 0.8
    assert done.stdout.count("\n  FAIL  ") == found["audit"]["failed"]
    assert (folder / "build/examine/report.html").is_file()


def test_classes_in_another_order_are_found_out_and_strict_fails(folder):
    shell(folder, NAMES)
    done = shell(folder, MISNAMED, ok=False)
    assert done.returncode == 1 and "by its answers the outputs are 0, 1, 2, 3, 4, 5, 6, 7\n" in done.stdout
    assert examined(folder)["images"] == 100  # written all the same


def test_the_pipeline_trains_it_and_adopts_its_weights(folder, monkeypatch):
    done = shell(folder, TRAIN, "train_robust")
    assert ran(done) == {"prepare", "train_robust"} and "robust: test accuracy" in done.stdout
    trained = checkpoint(folder, "robust")
    assert trained["model"]["origin"] == "py:my_model.py:build" and trained["model"]["classes"] == list("01234567")

    done = shell(folder, ADOPT, "train_standard")
    assert ran(done) == {"train_standard"} and "standard: adopted from my_model.pt: val accuracy" in done.stdout
    assert json.loads((folder / "metrics/train_standard.json").read_text())["accuracy"]["test"] > 0.95
    weights = torch.load(folder / "my_model.pt", weights_only=True)
    adopted = checkpoint(folder, "standard")["state"]
    assert all(adopted[f"module.{key}"].equal(value) for key, value in weights.items())

    (folder / "my_model.pt").rename(folder / "first.pt")
    torch.save({key: value * 2 for key, value in weights.items()}, folder / "my_model.pt")
    assert not ran(call(folder, "dvc", "repro", "--dry", "train_standard"))  # the name is the same
    (folder / "first.pt").replace(folder / "my_model.pt")

    monkeypatch.chdir(shutil.copytree(folder / "data/checkpoints", folder / "elsewhere"))
    with pytest.raises(UserError, match=r"is a model of py:my_model.py:build, .*there is no file my_model"):
        models.load_checkpoint("standard.pt")


def checkpoint(folder, name):
    return torch.load(folder / f"data/checkpoints/{name}.pt", weights_only=True)


def test_make_hands_over_names_with_spaces_and_asks_for_both(folder):
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')  # says what it is given
    python.chmod(0o755)
    make = ("make", "--no-print-directory", "-o", "setup", "examine")
    given = "MODEL=py:my net.py:build", "IMAGES=my photos"
    done = call(folder, *make, *given, "ARGS=--ood 'my others'")
    assert done.stdout.split("\n", 2)[2].splitlines() == [given[0][6:], "--images", "my photos", "--ood", "my others"]
    for some in ((), given[:1], given[1:]):
        done = call(folder, *make, *some, ok=False)
        assert done.returncode and not done.stdout
        assert done.stderr.count("\n") == 1 and "name both: make examine MODEL=py:my_model.py:build" in done.stderr
