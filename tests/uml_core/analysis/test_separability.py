"""Silhouette and Davies-Bouldin: equal to scikit-learn, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import davies_bouldin_score, silhouette_samples

from uml_core.analysis.separability import _silhouettes, separability
from uml_core.errors import UserError


def blobs(n: int, distance: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 4
    return distance * np.eye(4, 6)[y] + rng.standard_normal((n, 6)), y


def test_values_are_those_of_scikit_learn():
    x, y = blobs(60, 2.0)
    y = np.where(np.arange(60) == 59, 9, y)  # one class with a single sample
    found = separability(x, y, repeats=5)
    np.testing.assert_allclose(found.silhouettes, silhouette_samples(x, y), atol=1e-12)
    assert found.silhouette.value == pytest.approx(found.silhouettes.mean())
    assert found.davies_bouldin.value == pytest.approx(davies_bouldin_score(x, y))


def test_four_points_by_hand():
    x, y = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([0, 0, 1, 1])
    found = separability(x, y, repeats=5)
    # a = 1; b = 10.5 for the outer points and 9.5 for the inner ones.
    assert found.silhouette.value == pytest.approx((2 * 9.5 / 10.5 + 2 * 8.5 / 9.5) / 4)
    assert found.davies_bouldin.value == pytest.approx((0.5 + 0.5) / 10)


def test_copies_of_a_sample_are_not_its_own_neighbours():
    line = np.array([0.0, 1.0, 3.0, 10.0, 11.0])
    copies = np.array([2.0, 1.0, 1.0, 1.0, 3.0])
    found = _silhouettes(np.abs(line[:, None] - line), np.array([0, 0, 0, 1, 1]), copies)
    # Sample 0, twice: a = (1 + 3) / 2, b = (10 + 3 * 11) / 4. Sample 1: a = (2 * 1 + 2) / 3.
    assert found[0] == pytest.approx(1 - 2 / (43 / 4))
    assert found[1] == pytest.approx(1 - (4 / 3) / (39 / 4))
    # Sample 3: a = 1, b = (2 * 10 + 9 + 7) / 4.
    assert found[3] == pytest.approx(1 - 1 / 9)


def test_wider_classes_score_worse():
    near, far = (
        separability(*blobs(200, 2.0), repeats=20),
        separability(*blobs(200, 6.0), repeats=20),
    )
    assert far.silhouette.low > near.silhouette.high
    assert far.davies_bouldin.high < near.davies_bouldin.low


def test_intervals_cover_other_samples_of_the_size():
    found = [separability(*blobs(80, 2.0, seed), repeats=15, seed=seed) for seed in range(40)]
    for name in ("silhouette", "davies_bouldin"):
        estimates = [getattr(f, name) for f in found]
        mean = np.mean([e.value for e in estimates])
        assert 0.88 <= np.mean([e.low <= mean <= e.high for e in estimates]) <= 1.0
        width = np.mean([e.high - e.low for e in estimates]) / (2 * 1.96)
        assert width == pytest.approx(np.std([e.value for e in estimates]), rel=0.3)


def test_subsample_is_stated_and_bad_labels_refused():
    x, y = blobs(100, 2.0)
    found = separability(x, y, repeats=3, max_samples=40)
    assert len(found.rows) == len(found.silhouettes) == 40
    with pytest.raises(UserError, match="1 classes"):
        separability(x, y * 0)
    with pytest.raises(UserError, match="4 classes and 4 samples"):
        separability(x[:4], y[:4])
