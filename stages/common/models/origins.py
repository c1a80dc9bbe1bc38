"""Where somebody else's model comes from: a name such as torchvision:resnet18 becomes a module.

py:pkg.module:function and py:file.py:function call a function without arguments; timm:NAME and torchvision:NAME ask
those libraries; ts:FILE is TorchScript. Each is a function in ORIGINS. Naming a `py:` origin runs its code.
"""

import difflib
import importlib
import importlib.util
import inspect
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from stages.common import vision, workspace
from stages.common.errors import UserError
from stages.common.normalization import Moments
from stages.common.origin_names import FORMS

PATIENCE = 300  # seconds that a function of somebody else's may take to build its model


class Expected(NamedTuple):
    """The images that a model was trained on, as its library states it: the shorter side is resized to `resize`, then
    the central square of `crop` pixels is cut out; `interpolation` is Pillow's name in small letters.
    """

    resize: int
    crop: int
    interpolation: str
    moments: Moments


class Origin(NamedTuple):
    """A module, on the CPU, and the images it expects where its library knows them."""

    module: nn.Module
    expected: Expected | None = None


def find(origin: str, *, classes: int, channels: int, pretrained: bool) -> Origin:
    """The module that `origin` names, for so many classes and input channels where it can be told them.

    `pretrained` asks timm or torchvision for their own weights; else weights are random there. Raises UserError, with
    what to do, for whatever keeps the module from being built.
    """
    kind, _, name = origin.partition(":")
    if kind not in ORIGINS or not name:
        raise UserError(f"{origin!r} names no model: allowed are {FORMS}")
    return ORIGINS[kind](name, classes, channels, pretrained)


def _python(name: str, classes: int, channels: int, pretrained: bool) -> Origin:
    where, _, function = name.rpartition(":")
    what = f"py:{name}"
    if not where or not function:
        raise UserError(f"{what}: write py:package.module:function or py:file.py:function")
    module = _file(what, where) if where.endswith(".py") else _module(what, where)
    factory = getattr(module, function, None)
    if not callable(factory):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{what}: {where} has no function {function!r}{_near(function, there)}")
    _refuse_arguments(what, factory)
    with _somebody_elses(what, "building its model"), _patience(what):
        built = factory()
    if isinstance(built, nn.Module):
        return Origin(built)
    held = "a dict: are these weights? Return the model, and pass the weights with --weights"
    raise UserError(f"{what} returns {held if isinstance(built, dict) else type(built).__name__}, not an nn.Module")


def _module(what: str, name: str) -> ModuleType:
    with _somebody_elses(what, "importing it"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"{what}: there is no module {error.name!r} on Python's path: run from the folder that holds it, put "
                "it on PYTHONPATH, or name the file: py:path/to/file.py:function"
            ) from None


def _file(what: str, name: str) -> ModuleType:
    found = workspace.file(name)
    if found is None:
        raise UserError(f"{what}: there is no file {name} below {Path.cwd()}; its code is needed to build the model")
    path = found.resolve()
    known = sys.modules.get(path.stem)
    if getattr(known, "__file__", None) == str(path) and known is not None:
        return known
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a file that ends in .py has both
    module = importlib.util.module_from_spec(spec)
    with _somebody_elses(what, "importing it"), _first_on_path(str(path.parent)):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    """What lies beside the file can be imported from it."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _refuse_arguments(what: str, factory: Callable[..., Any]) -> None:
    try:
        inspect.signature(factory).bind()
    except TypeError:
        raise UserError(
            f"{what} takes arguments {inspect.signature(factory)}: it is called without any; write a function that "
            "calls it with yours and returns the model, and name that"
        ) from None
    except ValueError:
        pass  # a callable that does not tell: calling it will


@contextmanager
def _somebody_elses(what: str, doing: str) -> Iterator[None]:
    """Turn whatever somebody else's code raises into one message that names the line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        raise UserError(f"{what}: {doing} raised {said(error)}{at}; mend it and try again") from None


def said(error: BaseException) -> str:
    """An error in one line, shortened."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}" if text else type(error).__name__


@contextmanager
def _patience(what: str) -> Iterator[None]:
    """Stop a function that takes more than PATIENCE, where the system can (not on Windows, nor beside the main thread);
    say that it is at work meanwhile.
    """

    def give_up(number: int, frame: FrameType | None) -> None:
        raise UserError(
            f"{what} has not returned a model after {PATIENCE} s: a function that builds one takes seconds; "
            "train or download elsewhere, save the weights, and pass them with --weights"
        )

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = threading.Timer(10, print, [f"{what}: building its model (up to {PATIENCE} s) ..."], {"file": sys.stderr})
    waiting.daemon = True
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _timm(name: str, classes: int, channels: int, pretrained: bool) -> Origin:
    what = f"timm:{name}"
    timm = _library(what, "timm")
    if name not in timm.list_models():
        raise UserError(f"{what}: timm has no such model{_near(name, timm.list_models())}")
    with _building(what, pretrained):
        module = timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels)
    data = timm.data.resolve_data_config(model=module)
    crop = data["input_size"][-1]
    moments = Moments(tuple(data["mean"]), tuple(data["std"]))
    return Origin(module, Expected(int(crop / data["crop_pct"]), crop, data["interpolation"], moments))


def _torchvision(name: str, classes: int, channels: int, pretrained: bool) -> Origin:
    what = f"torchvision:{name}"
    zoo = _library(what, "torchvision.models")
    known = zoo.list_models(module=zoo)
    if name not in known:
        raise UserError(f"{what}: torchvision has no such classifier{_near(name, known)}")
    weights = zoo.get_model_weights(name).DEFAULT
    if pretrained and classes != len(weights.meta["categories"]):
        raise UserError(
            f"{what}: its own weights know {len(weights.meta['categories'])} classes, not {classes}: name them in "
            "their order with --classes FILE (one a line), or pass weights of your own with --weights"
        )
    with _building(what, pretrained):
        module = zoo.get_model(name, weights=weights if pretrained else None, num_classes=classes)
    preset = weights.transforms()
    moments = Moments(tuple(preset.mean), tuple(preset.std))
    return Origin(module, Expected(preset.resize_size[0], preset.crop_size[0], preset.interpolation.value, moments))


def _library(what: str, name: str) -> ModuleType:
    """A package of models, both of which import torchvision."""
    package = name.partition(".")[0]
    try:
        vision.torchvision()
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{what} needs {package}, which is not installed here: pip install {package}") from None


@contextmanager
def _building(what: str, pretrained: bool) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a library's own faults, and those of its network
        remedy = "pass the weights as a file: --weights FILE" if pretrained else "try another model"
        doing = "its own weights could not be had" if pretrained else "it could not be built"
        raise UserError(f"{what}: {doing} ({said(error)}); {remedy}") from None


def _torchscript(name: str, classes: int, channels: int, pretrained: bool) -> Origin:
    what = f"ts:{name}"
    path = workspace.file(name)
    if path is None:
        raise UserError(f"{what}: there is no file {name} below {Path.cwd()}")
    try:
        return Origin(torch.jit.load(path, map_location="cpu"))
    except Exception as error:  # torch raises a different type for each kind of damage
        raise UserError(
            f"{what} is no TorchScript that this torch ({torch.__version__}) can load ({said(error)}); where it was "
            "made, export it again with torch.jit.script or torch.jit.trace of a torch no newer than this one"
        ) from None


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 3, 0.6)
    return f"; do you mean {' or '.join(close)}?" if close else ""


ORIGINS: dict[str, Callable[[str, int, int, bool], Origin]] = {
    "py": _python,
    "timm": _timm,
    "torchvision": _torchvision,
    "ts": _torchscript,
}
