"""Intervals against published tables and scipy's own t-test."""

import json

import pytest
from scipy import stats

from uml_core.statistics import Gain, gain_shown, mean_interval, paired_gain


def test_interval_is_the_paired_t_interval():
    a = [61.0, 63.5, 60.2, 64.1, 62.0]
    b = [58.9, 59.7, 60.0, 61.0, 58.8]
    gain = paired_gain(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert gain.mean == pytest.approx(2.48)
    assert gain.ci95 == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_quantile_agrees_with_the_printed_table():
    # n = 5: t(0.975, 4) = 2.776; values 0 and 2 around 1 with standard deviation 1.
    gain = mean_interval([0.0, 2.0, 1.0, 1.0 - 0.5**0.5, 1.0 + 0.5**0.5])
    assert gain.half_width == pytest.approx(2.776 * (3 / 4) ** 0.5 / 5**0.5, rel=1e-3)


def test_pairing_removes_what_the_seeds_share():
    base = [10.0, 50.0, 90.0]
    shifted = [12.0, 52.1, 91.9]
    assert paired_gain(shifted, base).half_width < 0.3
    assert mean_interval(shifted).half_width > 50


def test_level_widens_the_interval():
    values = [1.0, 2.0, 4.0]
    assert mean_interval(values, 0.99).half_width > mean_interval(values, 0.95).half_width


def test_one_seed_has_a_mean_and_no_interval():
    gain = paired_gain([3.0], [1.0])
    assert gain == Gain(2.0, None)
    assert gain.half_width is None
    assert json.loads(json.dumps(gain.to_json())) == {"mean": 2.0, "ci95": None}


def test_json_round_trip():
    gain = paired_gain([3.0, 5.0], [1.0, 2.0])
    assert Gain.from_json(json.loads(json.dumps(gain.to_json()))) == gain
    assert Gain.from_json(Gain(1.0, None).to_json()) == Gain(1.0, None)


@pytest.mark.parametrize(
    ("gain", "over_control", "shown"),
    [
        (Gain(3, (1, 5)), Gain(2, (0.1, 4)), True),
        (Gain(3, (1, 5)), Gain(2, (-0.1, 4)), False),
        (Gain(3, (0, 5)), Gain(2, (0.1, 4)), False),
        (Gain(3, None), Gain(2, (0.1, 4)), False),
    ],
)
def test_a_gain_is_shown_only_where_both_intervals_lie_above_zero(gain, over_control, shown):
    assert gain_shown(gain, over_control) is shown


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_gain([1.0, 2.0], [1.0]),
        lambda: mean_interval([]),
        lambda: mean_interval([1.0, float("nan")]),
        lambda: mean_interval([1.0, 2.0], level=95),
    ],
)
def test_wrong_values_are_refused(call):
    with pytest.raises(ValueError):
        call()
