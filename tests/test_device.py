"""The device is chosen once, and asked of the model ever after."""

import ast
import os

import pytest
import torch
from torch import nn

from stages.common import device, models
from stages.common.errors import UserError
from tests.repository import ROOT


@pytest.fixture
def machine(monkeypatch):
    """Pretend that CUDA and MPS are there, or not."""

    def have(*, cuda=False, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield have
    torch.use_deterministic_algorithms(False)  # what is chosen for a GPU is put back for the other tests


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"cuda": True}, "cuda"),
        ({"cuda": True, "mps": True}, "cuda"),
    ],
)
def test_auto_takes_the_first_accelerator_that_is_there(machine, there, chosen):
    machine(**there)
    assert device.choose("auto") == torch.device(chosen)
    assert device.choose("cpu") == torch.device("cpu")
    assert device.choose(chosen) == torch.device(chosen)


def test_on_cuda_float32_is_float32_and_equal_runs_are_equal(machine):
    machine(cuda=True)
    device.choose("cpu")
    assert torch.backends.cudnn.allow_tf32 and not torch.are_deterministic_algorithms_enabled()
    device.choose("auto")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.backends.cudnn.benchmark


def test_a_rank_has_a_gpu_of_its_own(machine, monkeypatch):
    machine(cuda=True)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert device.choose("cuda") == torch.device("cuda", 1)
    assert device.choose("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("name", "there"), [("cuda", {"mps": True}), ("mps", {"cuda": True}), ("cuda", {})])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine, name, there):
    machine(**there)
    with pytest.raises(UserError, match=f"device = '{name}'") as raised:
        device.choose(name)
    said = str(raised.value).partition("this machine has ")[2]
    assert said and name not in said and all(kind in said for kind in ("cpu", *there))


def test_a_model_tells_where_it_is():
    model = models.build("simple_cnn", channels=1, classes=["a", "b"])
    assert device.of(model) == torch.device("cpu")
    assert device.of(model.to("meta")) == torch.device("meta")
    assert device.of(nn.BatchNorm2d(3, affine=False).to("meta")) == torch.device("meta")  # buffers alone
    assert device.of(nn.Flatten()) == torch.device("cpu")


def test_precision_auto_takes_bfloat16_only_where_the_processor_has_it(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for amx, avx in [(False, False), (True, False), (False, True)]:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert device.bfloat16("auto", cpu) == (amx or avx)
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there)
        assert device.bfloat16("auto", cuda) == there
    assert device.bfloat16("bfloat16", cpu) and not device.bfloat16("float32", cuda)
    assert not device.bfloat16("auto", torch.device("mps"))


def both_named(code: str) -> list[str]:
    """The functions in `code` that take a model and a device beside it."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            arguments = node.args
            names = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
            if names & {"model", "standard", "robust"} and names & {"device", "where"}:
                found.append(getattr(node, "name", "lambda"))
    return found


def test_no_function_takes_a_device_beside_a_model():
    """The two could disagree; `device.of` cannot."""
    files = list((ROOT / "stages").rglob("*.py"))
    assert len(files) > 20
    found = {path.name: both_named(path.read_text(encoding="utf-8")) for path in files}
    assert not {name: functions for name, functions in found.items() if functions}
    assert both_named("def grid(standard, robust, *, where): ...") == ["grid"]
