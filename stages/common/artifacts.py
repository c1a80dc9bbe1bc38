"""Every file that a stage writes or reads back: JSON, CSV, PNG, arrays and checkpoints.

Files appear whole or not at all (written beside their place, then renamed), and equal content gives equal bytes: no
times, no paths, no hostnames. That is what keeps `dvc.lock` and the committed figures stable.
"""

import contextlib
import glob
import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd
import torch

from stages.common import arrays, distributed
from stages.common.errors import NO_ROOM, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # only stages that draw pay for its import

METRICS = Path("metrics")
PLOTS = Path("plots")
IMAGES = PLOTS / "images"
PREPARED = Path("data/prepared")
CHECKPOINTS = Path("data/checkpoints")
ROWS = Path("data/images.csv")  # an image each
ZIP_HEADER = 30  # bytes of a zip member's own header, before its name
MODELS = ("standard", "robust")  # the two that are compared: names of checkpoints, keys of metrics, series of plots


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` atomically: a crash or a full disk leaves the old file, or none, never half of one."""
    with _appearing(Path(path)) as file:
        file.write(content)


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` once all of it is on the disk; of the first rank alone."""
    if not distributed.first():  # whose writing is the others' too
        yield io.BytesIO()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, glob.escape(path.name))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(f"{path}: the disk is full, nothing was written; free some space and run again") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, pattern: str) -> None:
    """Delete what processes that were killed while they wrote files of `pattern` have left in `folder`."""
    for stray in folder.glob(f".{pattern}.*"):
        writer = stray.name.rsplit(".", 1)[-1]
        if writer.isdecimal() and int(writer) != os.getpid() and not _runs(int(writer)):
            stray.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if sys.platform == "win32":
        return True  # os.kill would end it there; strays stay
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def write_metrics(path: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write nested metrics as JSON, floats rounded to 4 places.

    Raises ValueError for NaN or infinity: a figure that does not exist is a defect of the stage, not a value.
    """
    write_bytes(path, (json.dumps(_rounded(metrics, Path(path).name), indent=2) + "\n").encode())


def _rounded(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item, f"{where}:{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item, where) for item in value]
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: metrics are finite numbers")
        return round(float(value), 4)
    return int(value) if isinstance(value, (bool, np.bool_, np.integer)) else value


def write_table(
    path: str | Path, table: pd.DataFrame | Mapping[str, Any] | Sequence[Mapping[str, Any]], *, places: int = 6
) -> None:
    """Write a table, columns of equal length, or rows, as CSV with LF line ends and floats rounded to `places`."""
    frame = pd.DataFrame(table).round(places)
    write_bytes(path, frame.to_csv(index=False, lineterminator="\n").encode())


def write_figure(path: str | Path, figure: "Figure") -> None:
    """Write a matplotlib figure as PNG."""
    write_bytes(path, png(figure))


def png(figure: "Figure") -> bytes:
    """A matplotlib figure as PNG, without the metadata that would differ between matplotlib's versions."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_arrays(path: str | Path, **named: np.ndarray) -> None:
    """Write named arrays as an uncompressed .npz, the bytes of `np.savez`, a part at a time (its members are dated
    1980, so equal arrays give equal bytes). Raises ValueError for arrays of objects.
    """
    with _appearing(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in named.items():
            if array.dtype.hasobject:
                raise ValueError(f"{name} holds objects, which would have to be pickled")
            header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
            rows = np.atleast_1d(array)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for part in arrays.parts(rows):
                    member.write(rows[part].tobytes())


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote, as maps of the file: pages are read when they are looked at, and written to never
    (a change stays in memory). Raises UserError for a missing or damaged file; never unpickles.
    """
    path = _present(path)
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return {info.filename.removesuffix(".npy"): _mapped(path, file, info) for info in archive.infolist()}
    except Exception as error:  # a damaged header ends in whatever its text comes to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); delete it and run `dvc repro`") from None


def _mapped(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> np.ndarray:
    """One array of an uncompressed archive. Its bytes lie behind the member's own header and numpy's."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    file.seek(member.header_offset)
    header = file.read(ZIP_HEADER)
    name_length, extra_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = member.header_offset + ZIP_HEADER + name_length + extra_length
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or fortran:
        raise ValueError(f"{member.filename} holds {'objects' if dtype.hasobject else 'another order'}")
    if math.prod(shape) * dtype.itemsize > start + member.file_size - file.tell():
        raise ValueError(f"{member.filename} is shorter than it says")
    if math.prod(shape) == 0:  # nothing to map
        return np.empty(shape, dtype)
    mapped = np.memmap(path, dtype, mode="c", offset=file.tell(), shape=shape)
    return mapped if dtype.itemsize == 1 else np.array(mapped)  # wider numbers would not be aligned


def write_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """`torch.save` with bytes that depend on the content alone (the archive inside is not named after the file)."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_bytes(path, buffer.getvalue())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU with `weights_only=True`. Raises UserError for a missing or damaged file."""
    path = _present(path)
    try:
        if compressed(path):  # torch would unpack what takes a thousand times as much in memory
            raise ValueError("it is compressed")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a checkpoint of this project ({reason}); delete it and `dvc repro`") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, not a checkpoint; delete it and run `dvc repro`")
    return content


def compressed(path: Path) -> bool:
    """Whether a zip archive holds a compressed member, which torch never writes. Raises BadZipFile for another file."""
    with zipfile.ZipFile(path) as archive:
        return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())


def _present(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing: an earlier stage makes it; run `dvc repro`, or `dvc pull` with a remote")
    return path
