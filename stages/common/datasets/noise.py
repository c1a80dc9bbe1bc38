"""Images of nothing: the farthest OOD set of all."""

import numpy as np

from stages.common.datasets.splits import Images
from stages.common.params import Params

COUNT = 500  # of each kind


def extra(params: Params, shape: tuple[int, ...]) -> dict[str, Images]:
    """Uniform noise, coarse noise (squares of 4 pixels) and plain colours: the farthest of all."""
    rng = np.random.default_rng([params.seed, COUNT])
    channels, height, width = shape
    images = {}
    for name, square in (("fine", 1), ("coarse", 4), ("plain", max(height, width))):
        cells = rng.integers(0, 256, (COUNT, channels, -(-height // square), -(-width // square)), np.uint8)
        images[name] = np.repeat(np.repeat(cells, square, 2), square, 3)[:, :, :height, :width]
    return images
