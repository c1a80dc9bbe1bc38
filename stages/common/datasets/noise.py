"""Images of nothing: the farthest OOD set of all."""

import numpy as np

from stages.common import arrays
from stages.common.datasets.account import Account
from stages.common.datasets.splits import Images
from stages.common.params import Params

COUNT = 500  # of each kind
KINDS = ("fine", "coarse", "plain")


def extra(params: Params, shape: tuple[int, ...]) -> dict[str, Images]:
    """Uniform noise, coarse noise (squares of 4 pixels) and plain colours: the farthest of all."""
    rng = np.random.default_rng([params.seed, COUNT])
    channels, height, width = shape
    images = {}
    for name, square in zip(KINDS, (1, 4, max(height, width)), strict=True):
        cells = rng.integers(0, 256, (COUNT, channels, -(-height // square), -(-width // square)), np.uint8)
        images[name] = arrays.empty((COUNT, *shape))
        for part in arrays.parts(images[name]):
            images[name][part] = cells[part].repeat(square, 2).repeat(square, 3)[:, :, :height, :width]
    return images


def look_extra(params: Params, account: Account) -> dict[str, int]:
    """What `extra` gives."""
    return dict.fromkeys(KINDS, COUNT)
