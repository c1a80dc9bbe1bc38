"""Checkpoints give the model back, or say why not."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from stages.common import artifacts, models
from stages.common.errors import UserError

OPTIONS = {"whitened_cnn": {"widths": [8, 12, 16]}, "simple_cnn": {}, "resnet18": {"width": 8}}


def save(path, name="whitened_cnn", **changes):
    torch.manual_seed(0)
    model = models.build(name, channels=3, classes=[f"c{i}" for i in range(10)], **OPTIONS[name])
    model.adapt(torch.rand(8, 3, 16, 16))
    artifacts.write_checkpoint(path, models.checkpoint(model) | changes)
    return model.eval()


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_a_checkpoint_gives_the_model_back(tmp_path, name):
    model = save(tmp_path / "a.pt", name)
    loaded = models.load_checkpoint(tmp_path / "a.pt")
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    assert torch.equal(loaded.features(images), model.features(images))
    assert loaded.recipe == model.recipe and loaded.classes == model.classes and not loaded.training
    save(tmp_path / "another_name.pt", name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another_name.pt").read_bytes()
    artifacts.write_checkpoint(tmp_path / "again.pt", models.checkpoint(loaded))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "again.pt").read_bytes()


def test_a_checkpoint_does_not_follow_the_model(tmp_path):
    """The best epoch is kept while training goes on."""
    model = save(tmp_path / "a.pt")
    kept = models.checkpoint(model)
    with torch.no_grad():
        model.linear.weight.zero_()
    assert kept["state"]["linear.weight"].any()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_bad_checkpoints_are_named_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("good.pt")
    good = artifacts.read_checkpoint("good.pt")
    nan = {**good["state"], "linear.weight": good["state"]["linear.weight"] * float("nan")}
    save("nan.pt", state=nan)
    save("other.pt", model=good["model"] | {"widths": [4, 4]})
    save("unknown.pt", model=good["model"] | {"name": "vgg"})
    save("format.pt", format=99)
    torch.save({"state_dict": {}}, "foreign.pt")
    torch.save({"format": 1, "model": Bomb(), "state": {}}, "bomb.pt")
    torch.save([1, 2], "list.pt")
    torch.save({"format": 1, "model": Bomb(), "state": {}}, "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile("good.pt") as whole, zipfile.ZipFile("packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    save("tensor.pt", format=torch.ones(2))
    Path("garbage.pt").write_bytes(b"no checkpoint")
    Path("truncated.pt").write_bytes(Path("good.pt").read_bytes()[:5000])
    faults = {
        "absent.pt": "missing",
        "garbage.pt": "not a checkpoint",
        "truncated.pt": "not a checkpoint",
        "list.pt": "not a checkpoint",
        "bomb.pt": "not a checkpoint",
        "old.pt": "not a checkpoint",
        "packed.pt": "it is compressed",  # by a thousand times, perhaps
        "tensor.pt": "format",
        "foreign.pt": "not a checkpoint",
        "format.pt": "format",
        "other.pt": "another architecture",
        "unknown.pt": "another architecture",
        "nan.pt": "not finite",
    }
    for path, words in faults.items():
        with pytest.raises(UserError, match=words) as raised:
            models.load_checkpoint(path)
        assert path in str(raised.value) and "dvc repro" in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "exploded").exists()
