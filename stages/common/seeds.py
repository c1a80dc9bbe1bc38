"""Seeds that are made of others: what is drawn for one purpose depends on no other."""

import zlib

import numpy as np


def seed_of(*parts: int | str) -> int:
    """One seed for these numbers, at least 0, and names, in [0, 2^32): other parts, or another order, give another."""
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
