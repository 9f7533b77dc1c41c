"""Multimodal neurons: units of the shared trunk that answer alike to both modalities.

Pairs are used here for measurement only, never for training (paper 4.5, F.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import Estimate, spread
from uml_core.errors import UserError

_REPEATS_PER_BLOCK = 64


@dataclass(frozen=True)
class UnitCorrelations:
    """Pearson r between the modalities for each of U units over the same samples.

    r, low, high  (U,) with bootstrap intervals over samples; 0 where r is undefined
    baseline      largest |r| over the units of the untrained network on the same samples
    multimodal    units whose whole interval lies beyond the baseline on one side
    largest       largest |r|, with the spread of a bootstrap over samples
    samples       number of pairs
    """

    r: np.ndarray
    low: np.ndarray
    high: np.ndarray
    baseline: float
    multimodal: np.ndarray
    largest: Estimate
    samples: int


@dataclass(frozen=True)
class Neurons:
    """All samples together and each class by itself; no entry for label -1."""

    overall: UnitCorrelations
    by_class: dict[int, UnitCorrelations]


def multimodal_neurons(
    x: np.ndarray,
    y: np.ndarray,
    untrained_x: np.ndarray,
    untrained_y: np.ndarray,
    labels: np.ndarray | None = None,
    repeats: int = 200,
    seed: int = 0,
) -> Neurons:
    """Correlate the shared trunk's units across paired samples (paper 4.5, F.1, Figs 10, 11, 40).

    x, y (N, U): mean-pooled outputs of h for the two modalities of N paired samples; the
    untrained ones (N, V) from a freshly initialised model on the same samples, or several models
    side by side. labels (N,) add the class-conditioned correlations. r is 0 where a unit is
    constant or fewer than three samples remain. Raises UserError for shapes that are not paired.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    fresh_x, fresh_y = np.asarray(untrained_x, np.float64), np.asarray(untrained_y, np.float64)
    if x.ndim != 2 or x.shape != y.shape or fresh_x.shape != fresh_y.shape:
        raise UserError(
            f"units must be paired (N, U) arrays; they are {x.shape} and {y.shape}, "
            f"untrained {fresh_x.shape} and {fresh_y.shape}"
        )
    if len(x) != len(fresh_x) or (labels is not None and len(labels) != len(x)):
        raise UserError("trained units, untrained units and labels must cover the same samples")
    by_class = {}
    if labels is not None:
        labels = np.asarray(labels)
        for c in np.unique(labels[labels >= 0]):
            k = labels == c
            by_class[int(c)] = _correlations(x[k], y[k], fresh_x[k], fresh_y[k], repeats, seed)
    return Neurons(_correlations(x, y, fresh_x, fresh_y, repeats, seed), by_class)


def _correlations(
    x: np.ndarray,
    y: np.ndarray,
    fresh_x: np.ndarray,
    fresh_y: np.ndarray,
    repeats: int,
    seed: int,
) -> UnitCorrelations:
    n = len(x)
    r = pearson(x, y, np.full((1, n), 1 / n))[0]
    baseline = float(np.abs(pearson(fresh_x, fresh_y, np.full((1, n), 1 / n))).max(initial=0.0))
    rng = np.random.default_rng(seed)
    blocks = [min(_REPEATS_PER_BLOCK, repeats - i) for i in range(0, repeats, _REPEATS_PER_BLOCK)]
    draws = np.concatenate(
        [pearson(x, y, rng.multinomial(n, np.full(n, 1 / n), size=b) / n) for b in blocks]
    )
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    multimodal = np.flatnonzero((low > baseline) | (high < -baseline))
    return UnitCorrelations(
        r=r,
        low=low,
        high=high,
        baseline=baseline,
        multimodal=multimodal,
        largest=spread(np.abs(r).max(), np.abs(draws).max(1)),
        samples=n,
    )


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, U) Pearson r per unit of x, y (N, U) under R weightings (R, N) that each sum to 1.

    0 where undefined: a constant unit, or fewer than three samples of positive weight.
    """
    x, y = x - x.mean(0), y - y.mean(0)  # moments of centred values lose no digits
    mean_x, mean_y = weights @ x, weights @ y
    var_x = weights @ x**2 - mean_x**2
    var_y = weights @ y**2 - mean_y**2
    cov = weights @ (x * y) - mean_x * mean_y
    defined = (var_x > 1e-12 * (x**2).mean(0)) & (var_y > 1e-12 * (y**2).mean(0))
    defined &= ((weights > 0).sum(1) >= 3)[:, None]
    scale = np.sqrt(np.where(defined, var_x * var_y, 1.0))
    return np.clip(np.where(defined, cov / scale, 0.0), -1.0, 1.0)
