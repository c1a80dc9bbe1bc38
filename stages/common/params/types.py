"""The types of params.yaml's values: what each one allows, said in the words of its error."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

OWN = "own"  # the weights that a model comes with
FROM_DATA = "data"  # the normalisation by the training images' own moments
SMALLEST, LARGEST = 8, 512  # pixels a side that images may have
TORCHVISION = "torchvision:"  # before the name of one of torchvision's sets


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> BeforeValidator:
    """A float between two bounds, which may be written as a fraction (8/255)."""
    bounds = f"{'above' if open_low else 'from'} {low:g}"
    if high < math.inf:
        bounds += f" {'to below' if open_high else 'to'} {high:g}"
    allowed = f"a number {bounds}, such as 0.05 or 8/255"

    def check(value: object) -> float:
        try:
            found = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else value
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(allowed) from None
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise ValueError(allowed)
        if found < low or found > high or (open_low and found == low) or (open_high and found == high):
            raise ValueError(allowed)
        return float(found)

    return BeforeValidator(check)


def integer(low: int, high: int | None = None) -> BeforeValidator:
    """A whole number between two bounds, both included."""
    allowed = f"a whole number from {low}" + ("" if high is None else f" to {high}")

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ValueError(allowed)
        return value

    return BeforeValidator(check)


def _name(value: object) -> object:
    return str(value) if type(value) is int else value  # to YAML the class "8" is a number


def _ascending(value: list[float]) -> list[float]:
    if len(set(value)) != len(value):
        raise ValueError("each number may stand in the list once")
    return sorted(value)


def each_once(what: str) -> Callable[[list[Any]], list[Any]]:
    def check(value: list[Any]) -> list[Any]:
        if len(set(value)) != len(value):
            raise ValueError(f"a list in which each {what} stands once")
        return value

    return check


def set_name(entry: str) -> str:
    """What the OOD set is called that an entry of extra_sets means: a set's own name, or the last folder of a path."""
    return PurePosixPath(entry.removeprefix(TORCHVISION)).name


Eps = Annotated[float, number(0, 1)]
Epsilons = Annotated[list[Eps], Field(min_length=1), AfterValidator(_ascending)]
EpsL2 = Annotated[float, number(0, SMALLEST, open_low=True)]  # the smallest image, grey, can change by no more
Radii = Annotated[list[Annotated[float, number(0, SMALLEST)]], Field(min_length=1), AfterValidator(_ascending)]
Positive = Annotated[float, number(0, open_low=True)]
NotNegative = Annotated[float, number(0)]
Share = Annotated[float, number(0, 1)]
OpenShare = Annotated[float, number(0, 1, open_low=True, open_high=True)]
ShareAboveZero = Annotated[float, number(0, 1, open_low=True)]
ShareBelowOne = Annotated[float, number(0, 1, open_high=True)]
Count = Annotated[int, integer(1)]
ImageSize = Annotated[int, integer(SMALLEST, LARGEST)]
Name = Annotated[str, BeforeValidator(_name), Field(min_length=1)]
Names = Annotated[list[Name], Field(min_length=1), AfterValidator(each_once("name"))]
