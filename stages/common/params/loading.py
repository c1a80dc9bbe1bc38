"""Reads params.yaml, which is YAML 1.2 as DVC reads it, and says in one line for each fault what is wrong with it.

Two doors: `load` for what comes before there are data, `load_prepared` for what comes after.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.origin_names import CUSTOM
from stages.common.params import faults, schema

DATA = artifacts.METRICS / "data.json"  # what prepare says of the sets that it has written


class ChosenModel(NamedTuple):
    """The name of a section of `models`, the section, and where the model comes from if it is somebody else's."""

    name: str
    section: schema.Architecture
    factory: str | None


class Params(schema.Keys):
    """The file's keys, and what follows from the switches in it."""

    @property
    def data(self) -> schema.Data:
        """datasets.<dataset>, the section of the chosen data set."""
        section: schema.Data = getattr(self.datasets, self.dataset)
        return section

    @property
    def eps(self) -> float:
        """The budget in pixels of [0, 1]: the file's eps, or where that is empty the chosen data set's own."""
        return self.data.eps if self.eps_or_none is None else self.eps_or_none

    def trained(self, which: str) -> schema.Trained:
        """train_<which>, the section of the `standard` or the `robust` training."""
        section: schema.Trained = getattr(self, f"train_{which}")
        return section

    def trained_budget(self, which: str) -> float:
        """The budget that train_<which> grows to, in pixels of [0, 1]: 0 for `standard`; for `robust` eps, unless that
        is more than a model can learn to withstand.
        """
        return 0.0 if which == "standard" else min(self.eps, self.data.train_robust.largest_budget)

    def model_of(self, which: str) -> ChosenModel:
        """What train_<which> trains or adopts: its own `model`, else model.name. Somebody else's is called custom."""
        asked = self.trained(which).model or self.model.name
        name = asked if asked in schema.Models.model_fields else CUSTOM
        factory = self.models.custom.factory if asked == CUSTOM else asked
        return ChosenModel(name, getattr(self.models, name), factory if name == CUSTOM else None)


def load(path: str | Path = "params.yaml", *, overrides: Mapping[str, Any] | None = None) -> Params:
    """Read and check the whole of `path`, with the values of `overrides` in place of the file's.

    `overrides` maps dotted keys to values: {"models.whitened_cnn.widths": [8, 16]}.
    Raises UserError with one line per fault: the key, the value that it has and what is allowed.
    """
    path = Path(path)
    content = _read(path)
    for key, value in (overrides or {}).items():
        _put(content, key, value)
    try:
        params = Params.model_validate(content)
        found = faults.found_in(params)
    except ValidationError as error:
        found = [_explain(fault) for fault in error.errors()]
    faults.refuse(found, path)
    return params


class _Sizes(BaseModel):
    train: int


class _Prepared(BaseModel):
    """What is asked of DATA: a small part of what prepare writes there."""

    dataset: str
    classes: list[str]
    sizes: _Sizes


def load_prepared() -> Params:
    """`load`, and the same of what can be said only beside the data: a target that is no class of theirs is known
    before an hour of training, whichever stage comes first.

    Raises UserError as `load` does, and where prepare has not run on the data set of params.yaml.
    """
    params = load()
    try:
        prepared = _Prepared.model_validate_json(DATA.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{DATA} is missing: prepare makes it, and data/prepared; run `dvc repro`") from None
    except ValidationError:
        raise UserError(f"{DATA} is damaged; delete it and run `dvc repro`") from None
    if prepared.dataset != params.dataset:
        raise UserError(f"data/prepared is of {prepared.dataset}, params.yaml is for {params.dataset}; run `dvc repro`")
    faults.refuse(faults.found_in_data(params, prepared.classes, prepared.sizes.train))
    return params


def _read(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the top folder of the project") from None
    except (YAMLError, ValueError, LookupError, RecursionError) as error:  # ruamel lets faults of a tag through
        reason = " ".join(str(error).split()).partition(" To suppress this check")[0]
        raise UserError(f"{path} is not YAML: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys")
    return content


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for name in sections:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise UserError(f"{key}: {name} has no keys of its own")
    content[last] = value


def _explain(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("function-"))
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "extra_forbidden":
        return f"{key} = {_shown(fault['input'])}: unknown key; look for a misspelling"
    plain = {
        "too_short": "a list of at least one value",
        "list_type": "a list",
        "bool_type": "true or false",
        "model_type": "a section with keys of its own",
    }
    allowed = plain.get(fault["type"], fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key} = {_shown(fault['input'])}: allowed is {allowed}"


def _shown(value: object) -> str:
    """A value as it was given, the middle left out of a long one: aliases make small files of gigabytes."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 200
    short.maxlist = short.maxdict = 10
    short.maxlevel = 3
    return short.repr(value)
