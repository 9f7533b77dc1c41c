"""Effective rank: how many directions a representation really uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from uml_core.analysis.bootstrap import Estimate, resample, spread, subsample
from uml_core.errors import UserError

MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class EffectiveRank:
    """Effective rank in directions, between 1 and min(samples - 1, D)."""

    rank: Estimate
    samples: int
    dimensions: int


def effective_rank(
    features: np.ndarray, repeats: int = 50, seed: int = 0, max_samples: int = MAX_SAMPLES
) -> EffectiveRank:
    """exp(entropy) of the normalised singular values of centred features (N, D).

    Roy and Vetterli 2007. Equal variance along r directions gives r. The interval is the
    spread of a bootstrap over samples (copies of rows lower the rank; see `bootstrap.spread`).
    The value grows with N until N exceeds D many times: compare at equal `samples`. Raises
    UserError for fewer than two samples or constant features.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"effective rank needs features (N, D) with N >= 2, not {features.shape}")
    features = features[subsample(len(features), max_samples, seed)]
    value = _entropy_rank(features)
    if value == 0:
        raise UserError("effective rank: all features are constant over the samples")
    draws = [_entropy_rank(features[rows]) for rows in resample(len(features), repeats, seed)]
    return EffectiveRank(spread(value, np.array(draws)), *features.shape)


def _entropy_rank(features: np.ndarray) -> float:
    """exp(entropy) of the singular values; 0 where all are zero."""
    centred = features - features.mean(0)
    tall = centred.shape[0] >= centred.shape[1]
    gram = centred.T @ centred if tall else centred @ centred.T
    singular = np.sqrt(np.maximum(linalg.eigvalsh(gram), 0))
    if singular.max() <= 1e-12 * max(float(np.abs(features).max()), 1e-300):
        return 0.0
    p = singular / singular.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))
