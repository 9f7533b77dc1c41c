"""Intervals cover what they claim to cover; p values are exact under the null."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from uml_core.analysis.bootstrap import (
    bootstrap_mean,
    independent_difference,
    mean_difference,
    percentile,
    permutation_null,
    permutation_p,
    proportion,
    resample,
    spread,
    subsample,
    t_interval,
)
from uml_core.errors import UserError


def test_bootstrap_mean_covers_the_truth_in_about_95_of_100():
    hits = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).exponential(2.0, 80)
        estimate = bootstrap_mean(sample, repeats=200, seed=seed)
        hits += estimate.low <= 2.0 <= estimate.high
    assert 0.88 <= hits / 200 <= 0.985


def test_percentile_and_spread_by_hand():
    draws = np.arange(101.0)
    found = percentile(50.0, draws)
    assert (found.low, found.high) == pytest.approx((2.5, 97.5))
    found = spread(7.0, np.array([1.0, 3.0, 5.0]))  # standard deviation 2, draws off the value
    assert found.low == pytest.approx(7 - 2 * stats.norm.ppf(0.975))
    assert found.high == pytest.approx(7 + 2 * stats.norm.ppf(0.975))


def test_pairing_narrows_a_difference():
    rng = np.random.default_rng(0)
    hard = 10 * rng.standard_normal(300)
    before, after = hard + rng.standard_normal(300), hard + 0.5 + rng.standard_normal(300)
    paired = mean_difference(after, before)
    assert 0 < paired.low < 0.5 < paired.high
    assert paired.high - paired.low < (bootstrap_mean(after).high - bootstrap_mean(after).low) / 3
    with pytest.raises(UserError, match="differ in shape"):
        mean_difference(after, before[1:])


def test_t_interval_matches_scipy():
    values = np.array([1.0, 2.0, 4.0, 4.5, 7.0])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = t_interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((3.7, low, high))
    with pytest.raises(UserError, match="two seeds"):
        t_interval(np.ones(1))


def test_proportion_is_exact_at_the_ends():
    none = proportion(0, 10)
    assert none.low == 0 and none.high == pytest.approx(1 - 0.025 ** (1 / 10))


def test_permutation_p_by_hand_and_never_zero():
    assert permutation_p(5.0, np.array([1.0, 5.0, 6.0, 2.0])) == 3 / 5
    assert permutation_p(9.0, np.zeros(99)) == 1 / 100


def test_permutation_p_is_uniform_under_the_null():
    rng = np.random.default_rng(1)
    p_values = []
    for seed in range(200):
        x, y = rng.standard_normal((2, 15))
        null = permutation_null(lambda order, x=x, y=y: float(x @ y[order]), 15, 39, seed)
        p_values.append(permutation_p(float(x @ y), null))
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.10
    assert 0.42 <= np.mean(p_values) <= 0.58


def test_resample_keeps_strata_and_subsample_is_exact():
    strata = np.array([0] * 7 + [1] * 2 + [2])
    for rows in resample(10, 20, seed=0, strata=strata):
        assert np.bincount(strata[rows]).tolist() == [7, 2, 1]
    assert subsample(5, 5, 0).tolist() == [0, 1, 2, 3, 4]
    rows = subsample(1000, 10, 0)
    assert len(set(subsample(11, 10, 0))) == len(rows) == 10 and (np.diff(rows) > 0).all()
    assert rows.tolist() == subsample(1000, 10, 0).tolist() != subsample(1000, 10, 1).tolist()


def test_a_difference_of_independent_means_has_the_spread_of_both():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 2, 400), rng.normal(1, 1, 100)
    found = independent_difference(a, b)
    assert found.value == pytest.approx(a.mean() - b.mean())
    half = 1.96 * np.sqrt(a.var() / 400 + b.var() / 100)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    with pytest.raises(UserError, match="difference"):
        independent_difference(a, b[:0])


def test_draws_of_a_large_set_are_not_held_together():
    draws = resample(10**6, 10**6, seed=0)
    assert next(draws).shape == next(draws).shape == (10**6,)
