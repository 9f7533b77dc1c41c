"""Multimodal neurons: planted units are found, undefined ones are 0, classes are separate."""

from __future__ import annotations

import numpy as np
import pytest

from uml_core.analysis.neurons import multimodal_neurons, pearson
from uml_core.errors import UserError

N, UNITS = 400, 12


def activations(seed: int):
    return np.random.default_rng(seed).standard_normal((N, UNITS))


def test_pearson_matches_numpy_far_from_zero():
    x, y = activations(0) + 1e6, 0.5 * activations(0) + activations(1) - 1e5
    expected = [np.corrcoef(x[:, u], y[:, u])[0, 1] for u in range(UNITS)]
    found = pearson(x, y, np.full((1, N), 1 / N))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    weights = np.zeros((1, N))
    weights[0, :50] = 1 / 50
    half = pearson(x, y, weights)[0]
    assert half[3] == pytest.approx(np.corrcoef(x[:50, 3], y[:50, 3])[0, 1], rel=1e-6)


def test_planted_units_and_only_they_are_multimodal():
    x, y = activations(0), activations(1)
    y[:, 4] = x[:, 4] + 0.5 * y[:, 4]  # r = 1 / sqrt(1.25)
    y[:, 9] = -x[:, 9] + y[:, 9]  # r = -1 / sqrt(2)
    found = multimodal_neurons(x, y, activations(2), activations(3)).overall
    assert found.multimodal.tolist() == [4, 9]
    assert found.r[4] == pytest.approx(1 / np.sqrt(1.25), abs=0.05)
    assert found.r[9] == pytest.approx(-1 / np.sqrt(2), abs=0.08)
    assert found.low[4] < found.r[4] < found.high[4]
    assert found.largest.value == pytest.approx(found.r[4])
    assert found.samples == N


def test_baseline_is_the_largest_untrained_correlation():
    x, y = activations(0), activations(1)
    y[:, 4] = x[:, 4] + 0.5 * y[:, 4]
    fresh_x, fresh_y = activations(2)[:, :3], activations(3)[:, :3]
    fresh_y[:, 1] = -fresh_x[:, 1] + 0.1 * fresh_y[:, 1]  # the untrained network does it better
    found = multimodal_neurons(x, y, fresh_x, fresh_y).overall
    assert found.baseline == pytest.approx(1 / np.sqrt(1.01), abs=0.01)
    assert found.multimodal.tolist() == []


def test_intervals_cover_the_true_correlation():
    x, y = np.random.default_rng(5).standard_normal((2, 150, 200))
    y = 0.6 * x + 0.8 * y  # r = 0.6 in every unit
    found = multimodal_neurons(x, y, x[:, :1], y[:, :1], repeats=200).overall
    assert 0.88 <= np.mean((found.low <= 0.6) & (found.high >= 0.6)) <= 0.99


def test_correlation_within_classes():
    labels = np.arange(N) % 2
    labels[:10] = -1
    x, y = activations(0), activations(1)
    y[labels == 1, 2] = x[labels == 1, 2]
    y[labels == 0, 2] = -x[labels == 0, 2]
    found = multimodal_neurons(x, y, activations(2), activations(3), labels)
    assert set(found.by_class) == {0, 1}
    assert found.by_class[1].r[2] == pytest.approx(1) and found.by_class[1].samples == 195
    assert found.by_class[0].r[2] == pytest.approx(-1)
    assert abs(found.overall.r[2]) < 0.2


def test_undefined_correlations_are_zero():
    x, y = (np.tile(activations(s), (3, 1))[:1001] for s in (0, 1))
    fresh = activations(2)[:1].repeat(1001, 0)
    x[:, 0], y[:, 2] = 0.1, 0.1  # constant, with a mean that is not exact in binary
    x[:, 1] = y[:, 1] = np.arange(1001) == 7  # constant in most bootstrap draws
    with np.errstate(all="raise"):
        found = multimodal_neurons(x, y, fresh, fresh).overall
    assert found.baseline == 0
    for unit in (0, 2):
        assert (found.r[unit], found.low[unit], found.high[unit]) == (0, 0, 0)
    assert found.r[1] == pytest.approx(1) and found.low[1] == 0
    two = multimodal_neurons(x[:2], y[:2], x[:2], y[:2]).overall
    assert not two.r.any() and two.baseline == 0


def test_unpaired_shapes_are_refused():
    x = activations(0)
    with pytest.raises(UserError, match="paired"):
        multimodal_neurons(x, x[:-1], x, x)
    with pytest.raises(UserError, match="same samples"):
        multimodal_neurons(x, x, x[:-1], x[:-1])
    with pytest.raises(UserError, match="same samples"):
        multimodal_neurons(x, x, x, x, labels=np.zeros(3))
