"""Effective rank: closed forms and an interval that covers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group

from uml_core.analysis.rank import effective_rank
from uml_core.errors import UserError


def with_singular_values(values: list[float], n: int = 50, d: int = 8) -> np.ndarray:
    """(n, d) centred features with exactly these singular values."""
    rng = np.random.default_rng(0)
    left = rng.standard_normal((n, len(values)))
    left, _ = np.linalg.qr(left - left.mean(0))
    return left * values @ ortho_group.rvs(d, random_state=0)[: len(values)] + 3.0


@pytest.mark.parametrize(
    "singular, expected",
    [
        ([2.0], 1.0),
        ([5.0] * 4, 4.0),
        ([2.0, 1.0, 1.0], np.exp(0.5 * np.log(2) + 2 * 0.25 * np.log(4))),
    ],
)
def test_closed_forms(singular, expected):
    found = effective_rank(with_singular_values(singular), repeats=5)
    assert found.rank.value == pytest.approx(expected, rel=1e-6)
    assert (found.samples, found.dimensions) == (50, 8)
    padded = np.pad(with_singular_values(singular), ((0, 0), (0, 2)))  # dead features
    assert effective_rank(padded, repeats=5).rank.value == pytest.approx(expected, rel=1e-6)


def test_more_features_than_samples_and_subsample():
    wide = np.random.default_rng(0).standard_normal((10, 40))
    singular = np.linalg.svd(wide - wide.mean(0), compute_uv=False)
    p = singular[:9] / singular[:9].sum()
    found = effective_rank(wide, repeats=3)
    assert found.rank.value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert effective_rank(wide.T, repeats=3, max_samples=20).samples == 20


def test_interval_covers_other_samples_of_the_size():
    scale = np.linspace(1, 0.1, 16)
    found = [
        effective_rank(np.random.default_rng(s).standard_normal((150, 16)) * scale, seed=s).rank
        for s in range(100)
    ]
    mean = np.mean([f.value for f in found])
    assert np.mean([f.low <= mean <= f.high for f in found]) >= 0.9
    deviation = np.std([f.value for f in found])
    assert np.mean([f.high - f.low for f in found]) < 2 * 1.96 * 1.6 * deviation


def test_constant_features_are_refused():
    with pytest.raises(UserError, match="constant"):
        effective_rank(np.full((1001, 3), 0.1))
    with pytest.raises(UserError, match="N >= 2"):
        effective_rank(np.ones((1, 3)))
