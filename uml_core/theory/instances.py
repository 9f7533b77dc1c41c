"""What a numerical check is, and the random instances the checks run on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from uml_core.theory.fisher import Array, Samples

EXACT = 1e-9  # relative error up to which two numbers count as equal (float64, conditioned data)
STRICT = 1e-12  # relative margin above which an inequality is strict: rounding stays below 1e-13


@dataclass(frozen=True)
class Check:
    """One statement and whether numbers bear it out.

    ``expected`` is False for a counter-example: there the statement is the paper's claim as
    written, and it must fail. ``note`` says what is true instead, or under which condition.
    """

    id: str
    statement: str
    expected: bool
    holds: bool
    numbers: dict[str, float | int] = field(default_factory=dict)
    note: str = ""

    @property
    def as_expected(self) -> bool:
        """True if the finding is the expected one."""
        return self.holds == self.expected


@dataclass(frozen=True)
class Size:
    """Widths of theta_c, theta_x, theta_y, of an observation of X and Y, and samples of each."""

    c: int
    x: int
    y: int
    m: int
    n: int
    count: int


SIZES = (Size(2, 1, 2, 3, 4, 4), Size(4, 2, 3, 5, 8, 5), Size(10, 5, 5, 14, 16, 4))


def random_noise(rng: np.random.Generator, batch: int) -> Array:
    """Noise standard deviations between 0.2 and 2, (batch,)."""
    return np.exp(rng.uniform(np.log(0.2), np.log(2.0), batch))


def random_basis(rng: np.random.Generator, batch: int, d: int) -> Array:
    """Random orthonormal bases, (batch, d, d), columns."""
    return np.linalg.qr(rng.normal(size=(batch, d, d)))[0]


def x_samples(rng: np.random.Generator, batch: int, size: Size, rank: int | None = None) -> Samples:
    """Random X designs; with ``rank`` they see that many directions of theta_c only."""
    return _samples(rng, batch, size.count, size.m, size.c, size.x, rank)


def y_samples(rng: np.random.Generator, batch: int, size: Size, rank: int | None = None) -> Samples:
    """Random Y designs; with ``rank`` they see that many directions of theta_c only."""
    return _samples(rng, batch, size.count, size.n, size.c, size.y, rank)


def _samples(
    rng: np.random.Generator, batch: int, count: int, rows: int, c: int, p: int, rank: int | None
) -> Samples:
    shared = rng.normal(size=(batch, count, rows, c))
    if rank is not None:
        seen = random_basis(rng, batch, c)[..., :rank]
        shared = shared @ (seen @ np.swapaxes(seen, -1, -2))[:, None]
    private = rng.normal(size=(batch, count, rows, p))
    return Samples(shared, private, random_noise(rng, batch))


def random_spd(rng: np.random.Generator, batch: int, d: int, rank: int | None = None) -> Array:
    """Random positive (semi)definite matrices of the given rank, (batch, d, d).

    Eigenvalues lie between 0.2 and 5: well conditioned, so that a margin near rounding error
    means that the statement fails and not that the instance is extreme.
    """
    rank = d if rank is None else rank
    basis = random_basis(rng, batch, d)[..., :rank]
    values = np.exp(rng.uniform(np.log(0.2), np.log(5.0), (batch, rank)))
    return (basis * values[:, None, :]) @ np.swapaxes(basis, -1, -2)


def quadratic(matrix: Array, v: Array) -> Array:
    """v' M v over batches, (...)."""
    return np.einsum("...i,...ij,...j->...", v, matrix, v)


def lowest(*margins: Array) -> float:
    """Smallest value over all arrays, of any shape."""
    return float(min(np.min(m) for m in margins))


def highest(*errors: Array) -> float:
    """Largest value over all arrays, of any shape."""
    return float(max(np.max(e) for e in errors))
