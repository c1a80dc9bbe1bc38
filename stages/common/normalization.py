"""What is taken off pixels in [0, 1], and what they are divided by, before somebody else's model sees them."""

import math
from typing import NamedTuple


class Moments(NamedTuple):
    """Mean and standard deviation of each channel, or one of each for all; pixels are (x - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return "/".join(",".join(f"{number:.6g}" for number in side) for side in self)


NORMALIZATIONS = {
    "none": Moments((0.0,), (1.0,)),
    "imagenet": Moments((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": Moments((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "0.5/0.5": Moments((0.5,), (0.5,)),  # pixels in [-1, 1]
    "0/0.00392157": Moments((0.0,), (1 / 255,)),  # pixels in [0, 255]
}
ALLOWED = "none, imagenet, cifar10, or MEAN/STD such as 0.5/0.5 or 0.49,0.48,0.45/0.25,0.24,0.26"


def parse(text: str) -> Moments:
    """The moments of a name in NORMALIZATIONS, or of MEAN/STD with one number, or one a channel, on each side.

    Raises ValueError, with what is allowed, for any other text.
    """
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    try:
        mean, std = (tuple(float(number) for number in side.split(",")) for side in text.split("/"))
    except ValueError:
        raise ValueError(ALLOWED) from None
    if len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"{ALLOWED}: as many means as deviations, deviations above 0")
    return Moments(mean, std)
