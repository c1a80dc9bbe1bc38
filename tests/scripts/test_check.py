"""`python -m scripts.check`: what a run needs is told in seconds, and what would stop it is one message."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import check
from stages.common import artifacts
from stages.common.datasets import Look
from stages.common.errors import UserError
from tests.datasets.raw import choose, write_class
from tests.repository import ROOT


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A project for a user's own images: cat and dog to learn, of unequal numbers, and cup as OOD."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFAR_ROOT", raising=False)
    for shade, name in enumerate(["own/cat", "own/cat/older", "own/dog", "own_ood/cup"]):
        write_class(name, 40 * shade)
    Path("own/dog/notes.txt").touch()
    choose("folder", root="own", ood_root="own_ood", image_size=16, test_fraction=0.5)
    return tmp_path


def run(folder):
    """The command as a person gives it."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.check"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CIFAR_ROOT": ""},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_short_account_and_what_comes_next(own, capsys):
    before = sorted(own.rglob("*"))
    check.main()
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"params\.yaml: sound; device: \w+, steps in (bfloat16|float32)", said[0])
    assert [line for line in said if line.endswith(("own", "own_ood"))] == [
        "datasets.folder.prepare.root: own",
        "datasets.folder.prepare.ood_root: own_ood",
    ]
    assert "images of 3x16x16:" in said
    assert "  train         7  2 classes of 2 (dog) to 5 (cat)" in said
    assert {"classes learnt: cat, dog", "classes OOD: cup", "left out: 1 files (1 .txt)"} <= set(said)
    assert said[-2].startswith("disk: 0.5 GB needed, ") and said[-1] == "next: dvc repro"
    assert sorted(own.rglob("*")) == before


def test_without_the_data_it_says_so_with_the_remedy(own):
    choose("cifar10")
    done = run(own)
    assert done.returncode == 1 and "next:" not in done.stdout
    assert done.stderr.startswith("error: cifar10 is not there: looked for cifar10.zip") and "data/raw" in done.stderr
    assert done.stderr.count("error:") == 1


def test_digits_need_no_data(own, capsys):
    choose("digits")
    check.main()
    assert "next: dvc repro" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda: choose("folder", root="own", ood_root="own_ood", target="mug"), "target = 'mug'.*cat, dog"),
        (lambda: choose("folder", root="own", ood_root="own_ood", ood_classes=["pen"]), "'pen': allowed are cup"),
        (lambda: shutil.rmtree("own"), "own is not a folder"),
        (lambda: Path("params.yaml").write_text("eps: 3"), "params.yaml: "),
    ],
    ids=["target", "OOD class", "no folder", "parameters"],
)
def test_what_would_stop_a_stage_is_refused(own, capsys, spoil, words):
    spoil()
    with pytest.raises(UserError, match=words):
        check.main()
    assert "next:" not in capsys.readouterr().out


def test_a_device_that_is_not_there_is_refused(own):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("device: auto", "device: mps"))
    with pytest.raises(UserError, match="device = 'mps'"):
        check.main()


def test_what_only_reading_tells_is_called_that(own, monkeypatch, capsys):
    monkeypatch.setattr(check.datasets, "LOOKS", {})
    check.main()
    assert "folder: its images can be told only by prepare" in capsys.readouterr().out


@pytest.mark.parametrize("held", [0, 400_000])
def test_prepared_images_are_needed_twice_but_for_those_that_are_there(own, monkeypatch, held):
    """Of 1,000 images of 3 bytes: with their labels 11,000 bytes, in data/prepared and in DVC's cache."""
    look = Look({"train": {"a": 600, "b": 400}, "ood": {}}, (3, 1, 1))
    artifacts.PREPARED.mkdir(parents=True)
    Path(artifacts.PREPARED, "train.npz").write_bytes(bytes(held))
    needed = max(22_000 - held, 0) + check.BESIDE
    for free in (needed, needed - 1):
        monkeypatch.setattr(check.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if free < needed:
            with pytest.raises(UserError, match=r"GB free: .* free some space"):
                check.disk(look)
        else:
            assert check.disk(look).startswith("disk: ")


def test_classes_are_named_up_to_a_number_of_them():
    few = {"a": 3, "b": 3}
    many = {f"c{number:03}": 2 for number in range(check.LISTED + 5)}
    said = list(check.lines(Look({"train": many, "val": few, "test": few, "ood": {"z": 1200}, "extra": {}}, (1, 8, 8))))
    assert said[1].endswith(f"{2 * len(many)}  {len(many)} classes of 2")
    assert said[4].endswith("1,200  1 class of 1,200") and said[5].split() == ["extra", "0"]
    assert said[6] == f"classes learnt: {', '.join(list(many)[: check.LISTED])} and 5 more"
