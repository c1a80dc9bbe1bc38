"""The digits, which need no download."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from stages import prepare
from stages.common import artifacts, datasets, params
from stages.common.errors import UserError
from tests.datasets.raw import choose


def test_digits(place, capsys):
    choose("digits")
    prepare.main()
    metrics = json.loads(prepare.METRICS.read_text())
    assert metrics["classes"] == list("01234567") and metrics["ood_classes"] == ["8", "9"]
    assert metrics["image_shape"] == [1, 8, 8]
    assert sum(metrics["sizes"].values()) == 1797 and metrics["sizes"]["ood"] == 174 + 180
    with np.load(artifacts.PREPARED / "train.npz") as train:
        assert train["images"].dtype == np.uint8 and train["images"].max() == 255
        assert train["labels"].dtype == np.int64 and set(train["labels"]) == set(range(8))
    assert "354 ood" in capsys.readouterr().out


def test_digits_labels_skip_what_is_ood(place):
    choose("digits", ood_classes=["0", "5"], target="3")
    splits = datasets.load(params.load())
    assert splits["train"].classes == tuple("12346789") and splits["ood"].classes == ("0", "5")
    assert np.bincount(splits["ood"].labels).tolist() == [178, 182]


@pytest.mark.parametrize("good_writes", range(5))
def test_full_disk_leaves_nothing(place, monkeypatch, good_writes):
    choose("digits")
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > good_writes:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="disk is full"):
        prepare.main()
    assert len(calls) == good_writes + 1
    assert not [path for top in ("data", "metrics") for path in Path(top).rglob("*") if path.is_file()]
