"""What a certificate of a model promises, and whether an attack was seen to break it."""

import json
from pathlib import Path
from typing import NamedTuple

from stages.common.errors import UserError


class Certificate(NamedTuple):
    """How many images were looked at, how many an attack was seen to break within the radius that is certain of them
    (`contradicted`), and up to how many may be by the luck of the noise (`by_chance`).
    """

    images: int
    contradicted: int
    by_chance: int


def read(path: Path, model: str) -> Certificate | None:
    """What the stage certify found of `model`, or None where it certified nothing of it. Raises UserError where `path`,
    its metrics, is missing.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: an earlier stage makes it; run `dvc repro certify`")
    found = json.loads(path.read_text(encoding="utf-8")).get(model, {})
    return Certificate(*(found[field] for field in Certificate._fields)) if found else None
