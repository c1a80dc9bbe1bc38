"""Architectures of any size, and checkpoints that rebuild them or say why not."""

import os
from pathlib import Path

import pytest
import torch

from stages.common import artifacts, models
from stages.common.errors import UserError

OPTIONS = {"whitened_cnn": {"widths": [8, 12, 16]}, "simple_cnn": {}, "resnet18": {"width": 8}}


def build(name="whitened_cnn", *, channels=3, classes=10):
    torch.manual_seed(0)
    return models.build(name, channels=channels, classes=[f"c{i}" for i in range(classes)], **OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("size", "channels", "classes"), [(8, 1, 2), (24, 3, 10), (32, 3, 37), (33, 1, 3), (64, 3, 5)])
def test_any_input_and_any_number_of_classes(name, size, channels, classes):
    model = build(name, channels=channels, classes=classes).eval()
    images = torch.rand(3, channels, size, size)
    model.adapt(images)
    features = model.features(images)
    assert features.shape[0] == 3 and features.ndim == 2
    assert model(images).shape == (3, classes)
    assert torch.equal(model(images), model.head(features))


def test_the_stem_whitens():
    model = build()
    images = torch.rand(200, 3, 1, 1).expand(-1, -1, 16, 16) * 0.5 + torch.rand(200, 3, 16, 16) * 0.5
    model.adapt(images)
    with torch.no_grad():
        maps = model.whiten(model.normalize(images))
    half = maps[:, : maps.shape[1] // 2].permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(half @ half.T / half.shape[1], torch.eye(12, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(maps[:, 12:], -maps[:, :12])  # no direction is lost to the ReLU that follows


def test_normalisation_is_the_models_own():
    model = build()
    images = torch.rand(50, 3, 8, 8) * 0.2 + 0.5
    model.adapt(images)
    normalised = model.normalize(images)
    assert normalised.mean().abs() < 1e-3 and (normalised.std() - 1).abs() < 0.01


def save(path, name="whitened_cnn", **changes):
    model = build(name)
    content = models.checkpoint(model, name=name, options=OPTIONS[name])
    artifacts.write_checkpoint(path, content | changes)
    return model.eval()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_checkpoint_gives_the_model_back(tmp_path, name):
    model = save(tmp_path / "a.pt", name)
    loaded = models.load_checkpoint(tmp_path / "a.pt")
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    assert loaded.classes == model.classes and not loaded.training
    save(tmp_path / "another_name.pt", name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another_name.pt").read_bytes()


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
    Path("garbage.pt").write_bytes(b"no checkpoint")
    Path("truncated.pt").write_bytes(Path("good.pt").read_bytes()[:5000])
    faults = {
        "absent.pt": "missing",
        "garbage.pt": "not a checkpoint",
        "truncated.pt": "not a checkpoint",
        "list.pt": "not a checkpoint",
        "bomb.pt": "not a checkpoint",
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
