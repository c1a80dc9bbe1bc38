"""Reads params.yaml, which is YAML 1.2 as DVC reads it, and says in one line for each fault what is wrong with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common.errors import UserError
from stages.common.params import faults, schema


class Params(schema.Keys):
    """The file's keys, and two properties that follow the switches in it."""

    @property
    def data(self) -> schema.Data:
        """datasets.<dataset>, the section of the chosen data set."""
        section: schema.Data = getattr(self.datasets, self.dataset)
        return section

    @property
    def architecture(self) -> schema.Architecture:
        """models.<model.name>, the section of the chosen model."""
        section: schema.Architecture = getattr(self.models, self.model.name)
        return section


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
    except ValidationError as error:
        raise UserError("\n       ".join(f"{path}: {_explain(fault)}" for fault in error.errors())) from None
    found = faults.found_in(params)
    if found:
        raise UserError("\n       ".join(f"{path}: {fault}" for fault in found))
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
        return f"{key} = {fault['input']!r}: unknown key; look for a misspelling"
    plain = {
        "too_short": "a list of at least one value",
        "list_type": "a list",
        "bool_type": "true or false",
        "model_type": "a section with keys of its own",
    }
    allowed = plain.get(fault["type"], fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key} = {fault['input']!r}: allowed is {allowed}"
