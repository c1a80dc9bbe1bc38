"""A name becomes a module, or one message that says what to do."""

import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from stages.common.errors import UserError
from stages.common.models import origins

CODE = """
import time
import torch
from torch import nn
from beside import WIDTH

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 4))

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(WIDTH, 4))

def wide(width, depth=2):
    return build()

def broken():
    raise KeyError("conv")

def leaves():
    raise SystemExit("done")

def weights():
    return build().state_dict()

def nothing():
    pass

def slow():
    time.sleep(60)

not_callable = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(CODE)
    (tmp_path / "beside.py").write_text("WIDTH = 12\n")
    (tmp_path / "no_syntax.py").write_text("def build(:\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/nets.py").write_text("from own_nets import build\n")
    (tmp_path / "package/lacks.py").write_text("import no_such_package\n")
    (tmp_path / "broken.ts").write_bytes(b"PK no TorchScript")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name, m in sys.modules.items() if str(tmp_path) in str(getattr(m, "__file__", ""))]:
        del sys.modules[name]


def find(origin: str, **changes) -> nn.Module:
    return origins.find(origin, **({"classes": 4, "channels": 3, "pretrained": False} | changes)).module


@pytest.mark.parametrize(
    "origin", ["py:own_nets.py:build", "py:own_nets.py:Net", "py:own_nets:build", "py:package.nets:build"]
)
def test_a_function_without_arguments_is_called(folder, origin):
    assert find(origin)(torch.zeros(2, 3, 2, 2)).shape == (2, 4)


def test_a_file_anywhere_imports_what_lies_beside_it(folder, monkeypatch):
    monkeypatch.chdir(folder / "package")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(folder)])
    assert isinstance(find(f"py:{folder}/own_nets.py:build"), nn.Module)
    assert str(folder) not in sys.path


def test_libraries_are_told_classes_and_channels():
    assert find("torchvision:resnet18", classes=7).fc.out_features == 7
    grey = find("timm:resnet10t", classes=7, channels=1)
    assert grey.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_libraries_say_what_their_models_expect():
    expected = origins.find("torchvision:vit_b_16", classes=3, channels=3, pretrained=False).expected
    assert (expected.resize, expected.crop, expected.interpolation) == (256, 224, "bilinear")
    assert expected.moments.mean == (0.485, 0.456, 0.406)
    expected = origins.find("timm:resnet10t", classes=3, channels=3, pretrained=False).expected
    assert (expected.resize, expected.crop, expected.interpolation) == (201, 176, "bicubic")


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("resnet18", ["'resnet18'", "torchvision:NAME", "py:file.py:function"]),
        ("onnx:model", ["'onnx:model'", "ts:FILE"]),
        ("py:own_nets", ["py:package.module:function"]),
        ("py:own_nets.py:buld", ["no function 'buld'", "do you mean build"]),
        ("py:own_nets.py:not_callable", ["no function 'not_callable'"]),
        ("py:own_nets.py:wide", ["takes arguments (width, depth=2)", "without any"]),
        ("py:own_nets.py:broken", ["KeyError: 'conv'", "own_nets.py, line"]),
        ("py:own_nets.py:leaves", ["SystemExit: done"]),
        ("py:own_nets.py:weights", ["a dict", "--weights"]),
        ("py:own_nets.py:nothing", ["NoneType", "not an nn.Module"]),
        ("py:no_syntax.py:build", ["SyntaxError"]),
        ("py:absent.py:build", ["no file absent.py"]),
        ("py:absent.nets:build", ["no module 'absent'", "PYTHONPATH"]),
        ("py:package.lacks:build", ["no_such_package"]),
        ("torchvision:resnet81", ["no such classifier", "do you mean resnet18"]),
        ("timm:resnet81", ["no such model", "do you mean resnet18"]),
        ("ts:absent.ts", ["no file absent.ts"]),
        ("ts:broken.ts", ["no TorchScript that this torch", "export it again"]),
    ],
)
def test_what_names_no_model_says_what_to_do(folder, origin, words):
    with pytest.raises(UserError) as raised:
        find(origin)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_function_that_does_not_come_back_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(origins, "PATIENCE", 0.2)
    with pytest.raises(UserError, match=r"not returned a model after 0\.2 s"):
        find("py:own_nets.py:slow")
    time.sleep(0.3)  # no alarm comes after it


def test_a_library_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="needs timm, which is not installed here: pip install timm"):
        find("timm:resnet18")


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(UserError, match=r"own weights could not be had.*unreachable.*--weights FILE"):
        find("torchvision:resnet18", classes=1000, pretrained=True)
    with pytest.raises(UserError, match="know 1000 classes, not 4"):
        find("torchvision:resnet18", classes=4, pretrained=True)
    assert not list(Path(tmp_path).rglob("*.pth"))
