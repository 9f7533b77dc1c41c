"""Resampling that every analysis shares: bootstrap intervals, permutation p values, subsamples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from uml_core.errors import UserError

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval, all in the unit of the value."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} (95 % interval {self.low:.3g} to {self.high:.3g})"


def resample(
    n: int, repeats: int, seed: int, strata: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """`repeats` draws of (n,) rows with replacement; within each of the (n,) `strata` if given.

    One draw is held at a time: all of a large test set's together would fill the memory.
    """
    rng = np.random.default_rng(seed)
    groups = [] if strata is None else [np.flatnonzero(strata == s) for s in np.unique(strata)]
    for _ in range(repeats):
        if strata is None:
            yield rng.integers(0, n, n)
        else:
            drawn = [group[rng.integers(0, len(group), len(group))] for group in groups]
            yield np.concatenate(drawn)


def percentile(value: float, draws: np.ndarray) -> Estimate:
    """Percentile bootstrap: the middle 95 % of the (repeats,) draws. For means and correlations."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def spread(value: float, draws: np.ndarray) -> Estimate:
    """Normal bootstrap: value +- z times the standard deviation of the draws.

    For statistics that copies of samples push to one side (ranks, scatter): the draws lie off
    the value, but their spread still tells how far another sample of this size would lie. The
    interval is therefore for the statistic at this sample size, and arms compare at equal size.
    """
    half = ndtri((1 + LEVEL) / 2) * float(np.std(draws, ddof=1))
    return Estimate(float(value), float(value - half), float(value + half))


def bootstrap_mean(values: np.ndarray, repeats: int = 1000, seed: int = 0) -> Estimate:
    """Mean of independent values (N,) with its percentile interval."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise UserError(f"a mean needs values of shape (N,) with N >= 1, not {values.shape}")
    draws = [values[rows].mean() for rows in resample(len(values), repeats, seed)]
    return percentile(values.mean(), np.array(draws))


def mean_difference(
    after: np.ndarray, before: np.ndarray, repeats: int = 1000, seed: int = 0
) -> Estimate:
    """Mean of after - before over the same N samples: both (N,), row i the same sample.

    Pairing removes what makes a sample hard for both, so two arms are told apart with far
    fewer samples than from two separate intervals.
    """
    after, before = np.asarray(after, np.float64), np.asarray(before, np.float64)
    if after.shape != before.shape:
        raise UserError(f"paired values differ in shape: {after.shape} and {before.shape}")
    return bootstrap_mean(after - before, repeats, seed)


def independent_difference(
    a: np.ndarray, b: np.ndarray, repeats: int = 1000, seed: int = 0
) -> Estimate:
    """Mean of a (N,) minus mean of b (M,), two samples drawn independently of each other."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or b.ndim != 1 or len(a) == 0 or len(b) == 0:
        raise UserError(f"a difference needs values (N,) and (M,), not {a.shape} and {b.shape}")
    left, right = resample(len(a), repeats, seed), resample(len(b), repeats, seed + 1)
    draws = [a[i].mean() - b[j].mean() for i, j in zip(left, right, strict=True)]
    return percentile(a.mean() - b.mean(), np.array(draws))


def t_interval(values: np.ndarray) -> Estimate:
    """Mean of (S,) independent values, e.g. one per seed, with its t interval (S - 1 df)."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise UserError("an interval over seeds needs at least two seeds")
    half = stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / len(values) ** 0.5
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def proportion(hits: int, total: int) -> Estimate:
    """Share hits / total with its exact (Clopper-Pearson) interval, as fractions."""
    if total < 1:
        raise UserError("a share needs at least one case")
    from scipy.stats import binomtest  # a second to import, for processes that analyse nothing

    interval = binomtest(hits, total).proportion_ci(LEVEL, method="exact")
    return Estimate(hits / total, float(interval.low), float(interval.high))


def permutation_p(value: float, null: np.ndarray) -> float:
    """One-sided p value, (1 + #{null >= value}) / (1 + R): never zero, exact under the null."""
    tolerance = 1e-12 * max(abs(value), 1.0)  # equal up to rounding counts as reached
    return float((1 + np.sum(np.asarray(null) >= value - tolerance)) / (1 + len(null)))


def permutation_null(
    statistic: Callable[[np.ndarray], float], n: int, repeats: int, seed: int
) -> np.ndarray:
    """(repeats,) values of `statistic(order)` for uniform random orders of n items."""
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.permutation(n)) for _ in range(repeats)])


def subsample(n: int, limit: int, seed: int) -> np.ndarray:
    """min(n, limit) rows of n, sorted, drawn without replacement; all rows when they fit."""
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))
