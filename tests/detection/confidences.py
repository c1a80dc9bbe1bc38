"""Confidences of ID and of OOD images to measure: the easy cases, and those that a formula may trip over."""

import numpy as np
from hypothesis import strategies as st

tied_scores = st.lists(st.integers(-5, 5), min_size=1, max_size=40)


def gaussians(id_size=300, ood_size=150, *, shift=1.0, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(shift, 1, id_size), random.normal(0, 1, ood_size)


SATURATED = np.r_[np.ones(50), np.linspace(0.2, 1, 50)].astype(np.float32)
CASES = {
    "plain": gaussians(),
    "rounded": tuple(side.round(1) for side in gaussians()),
    "saturated": (SATURATED, SATURATED[20:] - np.linspace(0, 0.3, 80, dtype=np.float32).clip(0.1) + 0.1),
    "reversed": gaussians(shift=-2.0),
    "constant": (np.zeros(20), np.zeros(10)),
    "separated": (np.arange(10, 20), np.arange(10)),
    "one and one": ([1.0], [0.0]),
    "one tied": ([1.0], [1.0]),
    "one ID": ([0.5], np.arange(9) / 8),
    "one OOD": (np.arange(40) / 39, [0.5]),
    "20 ID": (np.arange(20), [0.0, 1.0, 1.5, 30]),
}
FAULTY = [
    ([], [1.0], "no ID scores"),
    ([1.0], [], "no OOD scores"),
    ([1.0, np.nan], [1.0], "1 of 2 ID scores are not finite"),
    ([1.0], [np.inf, -np.inf], "2 of 2 OOD scores are not finite"),
    ([[1.0]], [1.0], "shape"),
]
