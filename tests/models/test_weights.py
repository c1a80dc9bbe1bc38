"""Somebody else's weights: understood as people save them, loaded strictly, never run."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from stages.common.errors import UserError
from stages.common.models import weights


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(weights.PREFIXES[:2]), max_size=2),
    st.lists(st.sampled_from(weights.WRAPPERS), max_size=2),
    st.booleans(),
)
def test_prefixes_and_wrappers_are_understood(tmp_path, prefixes, wrappers, half):
    trained, found = small(), small()
    saved = {"".join(prefixes) + key: value.half().float() for key, value in trained.state_dict().items()}
    saved = {key: value.half() if half else value for key, value in saved.items()}
    for name in wrappers:
        saved = {name: saved, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(saved, tmp_path / "w.pt")
    weights.load(found, tmp_path / "w.pt")
    for key, value in found.state_dict().items():
        assert torch.equal(value.float(), trained.state_dict()[key].half().float()), key


def test_safetensors_and_a_file_without_batchnorm_s_counter(tmp_path):
    trained, found = small(), small()
    kept = {key: value for key, value in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(kept, tmp_path / "w.safetensors")
    weights.load(found, tmp_path / "w.safetensors")
    assert all(torch.equal(found.state_dict()[key], value) for key, value in kept.items())


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


FAULTS = {
    "too much": (lambda state: state | {"9.weight": torch.ones(2)}, ["not in the model: 9.weight"]),
    "missing": (lambda state: {k: v for k, v in state.items() if k != "3.bias"}, ["missing in the file: 3.bias"]),
    "another number of classes": (
        lambda state: state | {"3.weight": torch.ones(7, 144)},
        ["3.weight is (7, 144) in the file, (5, 144) in the model"],
    ),
    "not finite": (lambda state: state | {"3.bias": torch.full((5,), float("nan"))}, ["not finite", "3.bias"]),
    "a pickled module": (lambda state: small(), ["could run code", "torch.save(model.state_dict()"]),
    "code": (lambda state: {"state_dict": state, "hook": Bomb()}, ["could run code"]),
    "a list": (lambda state: [1, 2], ["not a state dict"]),
    "no weights": (lambda state: {"epoch": 3, "history": {"loss": 1}}, ["epoch, history", "state_dict"]),
    "nothing": (lambda state: {}, ["not a state dict"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    change, words = FAULTS[fault]
    found = small()
    before = {key: value.clone() for key, value in found.state_dict().items()}
    torch.save(change(small().state_dict()), "w.pt")
    with pytest.raises(UserError) as raised:
        weights.load(found, Path("w.pt"))
    assert all(word in str(raised.value) for word in ["w.pt", *words]), raised.value
    assert not Path("ran").exists()
    assert all(torch.equal(found.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pt", b"no weights", ["w.pt", "not a file of weights"]),
        ("w.safetensors", b"no weights", ["w.safetensors", "not a safetensors file"]),
        ("w.pt", None, ["w.pt", "is no file"]),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        weights.load(small(), tmp_path / name)
    assert all(word in str(raised.value) for word in words)


def test_torchscript_as_weights_is_told_where_it_belongs(tmp_path):
    torch.jit.script(small()).save(tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"TorchScript.*ts:.*m\.pt as MODEL"):
        weights.load(small(), tmp_path / "m.pt")
