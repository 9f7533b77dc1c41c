"""Random streams of the embedded worlds and the array types they share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def stream(seed: int, *path: int) -> np.random.Generator:
    """A generator of its own for every (seed, path), statistically independent of all others."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=path))


def uniform(
    rng: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]
) -> Floats:
    """32-bit uniforms of the given shape between low and high."""
    return np.float32(low) + np.float32(high - low) * rng.random(shape, dtype=np.float32)
