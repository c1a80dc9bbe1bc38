"""What `python -m scripts.examine` is asked."""

import argparse
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stages.common import attacks, normalization, origin_names
from stages.common.normalization import Moments

LIMIT = 500  # images, unless --limit says otherwise: +-4 points at 95 %
UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command line. `eps` is in pixels of [0, 1], `budget` in seconds, `size` and `crop` in pixels."""

    model: str
    images: Path
    train: Path | None
    ood: Path | None
    weights: Path | None
    classes: Path | None
    size: int | None
    crop: int | None
    normalize: Moments | None
    target: str | None
    eps: float
    limit: int
    budget: float | None
    out: Path
    strict: bool


def parse(description: str | None, arguments: list[str] | None = None) -> Asked:
    """The command line's arguments, or those given. Ends the process with what is wrong, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.examine",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=origin_names.FORMS)
    add("--images", type=Path, required=True, metavar="DIR", help="test images, DIR/<class>/*")
    add("--train", type=Path, metavar="DIR", help="images to fit OOD detectors on; without it, half of --images")
    add("--ood", type=Path, metavar="DIR", help="images of no class: OOD detectors, and attacks on them")
    add("--weights", type=Path, metavar="FILE", help="weights: .safetensors, or .pt/.pth with a state dict in it")
    add("--classes", type=Path, metavar="FILE", help="the model's class names in its order, one a line")
    add("--size", type=_size, metavar="N", help="resize the shorter side of images to N pixels")
    add("--crop", type=_size, metavar="N", help="then cut out the central square of N pixels")
    add("--normalize", type=_moments, metavar="HOW", help=normalization.ALLOWED)
    add("--target", metavar="CLASS", help="of the targeted attack; the last class if not given")
    add("--eps", type=_budget, default=attacks.EIGHT, help="L-infinity budget in pixels of [0, 1] (8/255)")
    add("--limit", type=_count, default=LIMIT, metavar="N", help=f"at most so many images, a fair sample ({LIMIT})")
    add("--budget", type=_seconds, metavar="TIME", help="such as 90s, 10m, 2h: fewer images where that is too short")
    add("--out", type=Path, default=Path("build/examine"), metavar="DIR", help="for metrics.json and report.html")
    add("--strict", action="store_true", help="exit with 1 if a check of the audit fails")
    return Asked(**vars(parser.parse_args(arguments)))


def _size(text: str) -> int:
    return _whole(text, 1, 4096)


def _count(text: str) -> int:
    return _whole(text, 1, 10**9)


def _whole(text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a whole number from {low}")
    return int(text)


def _moments(text: str) -> Moments:
    try:
        return normalization.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is {error}") from None


def _budget(text: str) -> float:
    try:
        found = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        found = -1.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a number above 0 to 1, such as 0.03 or 8/255")
    return found


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a time such as 90s, 10m or 2h")
    return float(found[1]) * UNITS[found[2]]
