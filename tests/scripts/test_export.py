"""Exported models answer other programs as the checkpoint answers torch."""

import importlib.util
import json
import re

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from scripts import export
from stages.common import artifacts, models
from tests.repository import ROOT

CLASSES = ["cat", "dog", "ship"]
OPTIONS = {"whitened_cnn": {"widths": [8, 12]}, "simple_cnn": {}, "resnet18": {"width": 8}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in which both models, small ones, were trained on images of 16x16 pixels."""
    monkeypatch.chdir(tmp_path)
    for name in artifacts.MODELS:
        artifacts.write_checkpoint(f"data/checkpoints/{name}.pt", models.checkpoint(new("whitened_cnn")))
    artifacts.write_metrics("metrics/data.json", {"image_shape": [3, 16, 16]})
    return tmp_path


def new(name):
    torch.manual_seed(0)
    model = models.build(name, channels=3, classes=CLASSES, **OPTIONS[name])
    model.adapt(torch.rand(50, 3, 16, 16))
    return model.eval()


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["export", *arguments])
    export.main()


def written(project):
    return {path.name for path in (project / "build/export").glob("*")}


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_onnxruntime_answers_pixels_as_torch_does(name):
    if name == "simple_cnn" and not export.MODERN_TORCH:
        pytest.skip("the exporter of an older torch cannot pool adaptively")
    model = new(name)
    content = export.as_onnx(model, 16)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 3, 8):
        images = torch.rand(count, 3, 16, 16)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-4)
    found = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    assert json.loads(found["classes"]) == CLASSES and "[0, 1], not normalised" in found["input"]
    assert b".py" not in content  # no source file of this machine


def test_both_models_are_written_in_both_formats(project, monkeypatch):
    run(monkeypatch)
    assert written(project) == {f"{model}.{form}" for model in artifacts.MODELS for form in ("safetensors", "onnx")}


def test_safetensors_rebuild_the_model_with_equal_bytes(project, monkeypatch):
    run(monkeypatch, "robust", "--format", "safetensors")
    assert written(project) == {"robust.safetensors"}
    path = project / "build/export/robust.safetensors"
    with safe_open(path, "pt") as file:
        rebuilt = models.build(**json.loads(file.metadata()["model"]))
        rebuilt.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    original, images = models.load_checkpoint("data/checkpoints/robust.pt"), torch.rand(4, 3, 16, 16)
    assert torch.equal(rebuilt.eval()(images), original(images))
    assert {export.as_safetensors(original, 16) for _ in range(5)} == {path.read_bytes()}


def test_faults_are_one_line_and_leave_nothing(project, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(export, "difference", lambda content, model, size: 0.5)
        with pytest.raises(SystemExit, match=r"5.0e-01 away from torch's: nothing was written"):
            run(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SystemExit, match=r"pip install -e '.\[export\]'"):
            run(monkeypatch)
    (project / "data/checkpoints/robust.pt").unlink()
    with pytest.raises(SystemExit, match=r"data/checkpoints/robust.pt is missing: `make weights`"):
        run(monkeypatch)
    (project / "metrics/data.json").unlink()
    with pytest.raises(SystemExit, match="how large the images are"):
        run(monkeypatch, "standard")
    assert not written(project)
    with pytest.raises(SystemExit) as status:
        run(monkeypatch, "other")
    assert status.value.code == 2


def test_what_the_page_shows_reads_them(project, monkeypatch):
    run(monkeypatch, "robust")
    page = (ROOT / "docs/weights.md").read_text()
    images = torch.rand(2, 3, 16, 16)
    found = {"images": images}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        found["images"] = images.numpy() if "onnxruntime" in block else images
        exec(block, found)
        if "onnxruntime" in block:
            assert found["logits"].shape == (2, 3) and found["classes"] == CLASSES
        else:
            assert torch.equal(found["model"](images), models.load_checkpoint("data/checkpoints/robust.pt")(images))
