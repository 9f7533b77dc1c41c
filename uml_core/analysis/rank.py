"""Effective rank: how many directions a representation really uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from uml_core.analysis.bootstrap import Estimate, spread, subsample
from uml_core.errors import UserError

MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class EffectiveRank:
    """Effective rank in directions, between 1 and min(samples - 1, D)."""

    rank: Estimate
    samples: int
    dimensions: int


def effective_rank(
    features: np.ndarray, repeats: int = 200, seed: int = 0, max_samples: int = MAX_SAMPLES
) -> EffectiveRank:
    """exp(entropy) of the normalised singular values of centred features (N, D).

    Roy and Vetterli 2007. Equal variance along r directions gives r. The interval is the spread
    of a bootstrap over samples in which the principal directions stay and the variance along
    each is drawn again: first-order exact, and one decomposition instead of one per draw. The
    value grows with N until N exceeds D many times: compare at equal `samples`. Raises UserError
    for fewer than two samples or constant features.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"effective rank needs features (N, D) with N >= 2, not {features.shape}")
    features = features[subsample(len(features), max_samples, seed)]
    n = len(features)
    scores = _principal_scores(features)
    if scores is None:
        raise UserError("effective rank: all features are constant over the samples")
    value = _entropy_rank((scores**2).mean(0))
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=repeats) / n
    draws = np.array([_entropy_rank(v) for v in weights @ scores**2])
    return EffectiveRank(spread(value, draws), *features.shape)


def _principal_scores(features: np.ndarray) -> np.ndarray | None:
    """(N, min(N, D)) centred features along their principal directions; None when constant."""
    centred = features - features.mean(0)
    if np.abs(centred).max() <= 1e-12 * np.abs(features).max():
        return None
    if centred.shape[0] >= centred.shape[1]:
        return centred @ linalg.eigh(centred.T @ centred)[1]
    squares, left = linalg.eigh(centred @ centred.T)
    return left * np.sqrt(np.maximum(squares, 0))


def _entropy_rank(variances: np.ndarray) -> float:
    """exp(entropy) of the normalised square roots; 0 where all variances are zero."""
    singular = np.sqrt(np.maximum(variances, 0))
    p = singular[singular > 0] / max(singular.sum(), np.finfo(float).tiny)
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0
