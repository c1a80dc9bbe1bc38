"""Files appear whole or not at all, and faults that a person can mend end in one message."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from stages.common import artifacts, errors
from stages.common.errors import UserError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, number):
    path = tmp_path / "metrics.json"
    artifacts.write_metrics(path, {"accuracy": 0.5})

    def full(_):
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        artifacts.write_metrics(path, {"accuracy": 0.6})
    assert json.loads(path.read_text()) == {"accuracy": 0.5} and [*tmp_path.iterdir()] == [path]


def test_ctrl_c_while_writing_keeps_the_old_file(tmp_path, monkeypatch):
    artifacts.write_bytes(tmp_path / "a", b"old")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifacts.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and len([*tmp_path.iterdir()]) == 1


def test_metrics_are_rounded_and_finite(tmp_path):
    artifacts.write_metrics(tmp_path / "m.json", {"a": {"b": np.float64(1 / 3)}, "c": np.int64(2), "d": True})
    assert (tmp_path / "m.json").read_text() == '{\n  "a": {\n    "b": 0.3333\n  },\n  "c": 2,\n  "d": 1\n}\n'
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"m\.json:a"):
            artifacts.write_metrics(tmp_path / "m.json", {"a": bad})


def test_tables_have_lf_ends_from_columns_or_rows(tmp_path):
    artifacts.write_table(tmp_path / "a.csv", {"x": [0.1, 0.2], "y": np.array([1 / 3, 1])})
    artifacts.write_table(tmp_path / "b.csv", [{"x": 0.1, "y": 1 / 3}, {"x": 0.2, "y": 1.0}])
    assert (tmp_path / "a.csv").read_bytes() == b"x,y\n0.1,0.333333\n0.2,1.0\n"
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_arrays_come_back_and_bad_ones_are_named(tmp_path):
    path = tmp_path / "a.npz"
    artifacts.write_arrays(path, images=np.arange(4, dtype=np.uint8), classes=np.array(["cat", "dog"]))
    first = path.read_bytes()
    assert artifacts.read_arrays(path)["classes"].tolist() == ["cat", "dog"]
    artifacts.write_arrays(path, images=np.arange(4, dtype=np.uint8), classes=np.array(["cat", "dog"]))
    assert path.read_bytes() == first
    path.write_bytes(first[:60])
    with pytest.raises(UserError, match="damaged"):
        artifacts.read_arrays(path)
    np.savez(path, images=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        artifacts.read_arrays(path)
    with pytest.raises(UserError, match=r"missing.*dvc repro"):
        artifacts.read_arrays(tmp_path / "absent.npz")


def test_a_stage_ends_with_one_message_or_a_defect_with_its_traceback(capsys):
    def failing(error):
        def main():
            raise error

        return main

    for error, words in (
        (UserError("eps = 2: too large"), "eps = 2: too large"),
        (OSError(errno.ENOSPC, "x", "data/a"), "disk is full"),
        (PermissionError(errno.EACCES, "x", "data/a"), "data/a"),
    ):
        with pytest.raises(SystemExit) as ended:
            errors.run(failing(error))
        assert words in str(ended.value.code) and str(ended.value.code).startswith("error: ")
    with pytest.raises(SystemExit) as ended:
        errors.run(failing(KeyboardInterrupt()))
    assert ended.value.code == 130 and "interrupted" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        errors.run(failing(ZeroDivisionError()))


def test_written_files_have_ordinary_permissions(tmp_path):
    artifacts.write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == Path(tmp_path / "b").stat().st_mode
