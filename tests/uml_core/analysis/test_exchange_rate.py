"""Exchange rate: planes recovered exactly, Fieller's interval, and when there is no rate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from uml_core.analysis.exchange_rate import ExchangeRate, exchange_rate, fieller
from uml_core.errors import UserError

TARGET, AUXILIARY = (1, 2, 4, 8), (0, 5, 10)


def runs(accuracy, seeds=(0, 1, 2, 3, 4), noise=0.0):
    """Columns (target shots, auxiliary shots, seeds, accuracies) of a full grid."""
    rng = np.random.default_rng(0)
    rows = [
        (i, j, s, accuracy(i, j) + noise * rng.standard_normal())
        for s in seeds
        for i in TARGET
        for j in AUXILIARY
    ]
    return tuple(zip(*reversed(rows), strict=True))  # any order will do


def test_a_plane_is_recovered_exactly():
    found = exchange_rate(*runs(lambda i, j: 40 + 3 * i + 0.25 * j), words_per_sample=15.2)
    assert found.intercept.value == pytest.approx(40)
    assert found.target_slope.value == pytest.approx(3)
    assert found.auxiliary_slope.value == pytest.approx(0.25)
    assert found.r_squared == pytest.approx(1)
    assert (found.rate.value, found.rate.low, found.rate.high) == pytest.approx((12, 12, 12))
    assert found.words_per_target.value == pytest.approx(12 * 15.2)
    np.testing.assert_allclose(found.accuracy[1], [46, 47.25, 48.5])
    assert found.target_shots.tolist() == [1, 2, 4, 8]
    assert len(found.local) == 6
    for cell in found.local:
        assert cell.rate.value == pytest.approx(12)
        assert cell.target_slope.value == pytest.approx(3)
    assert "One image sample is worth 12 text samples" in found.sentence
    assert "182.4 words" in found.sentence
    assert "explains 100 % of the grid; local rates are identifiable in 6 of 6" in found.sentence


def test_local_rates_follow_curvature():
    found = exchange_rate(*runs(lambda i, j: i**2 + j))
    rates = {(c.target_shots, c.auxiliary_shots): c.rate.value for c in found.local}
    assert rates[(1.0, 2.0), (0.0, 5.0)] == pytest.approx(3)
    assert rates[(4.0, 8.0), (5.0, 10.0)] == pytest.approx(12)
    assert found.r_squared < 0.99
    assert "median 6, from 3 to 12" in found.sentence


def test_cells_in_which_auxiliary_samples_do_harm_have_no_exchange():
    """The first five help, the next five undo it."""
    found = exchange_rate(*runs(lambda i, j: 3 * i + min(j, 10 - j)))
    assert [cell.harmful for cell in found.local] == [False, True] * 3
    assert "identifiable in 3 of 6 cells, median 3, from 3 to 3" in found.sentence
    assert found.sentence.endswith("; in 3 more auxiliary samples do harm.")


def test_local_slopes_are_those_of_the_middle_of_a_cell():
    found = exchange_rate(*runs(lambda i, j: 2 * i + j + 0.1 * i * j))
    cell = found.local[-1]  # 4 to 8 and 5 to 10
    assert cell.target_slope.value == pytest.approx(2 + 0.1 * 7.5)
    assert cell.auxiliary_slope.value == pytest.approx(1 + 0.1 * 6)
    plane = found.target_slope.value * found.target_shots[:, None]
    plane = plane + found.auxiliary_slope.value * found.auxiliary_shots
    expected = np.corrcoef(plane.ravel(), found.accuracy.ravel())[0, 1] ** 2
    assert found.r_squared == pytest.approx(expected) and expected < 0.999


def test_no_text_effect_is_not_identifiable():
    for noise in (0.0, 0.5):
        found = exchange_rate(*runs(lambda i, j: 40 + 3 * i, noise=noise), words_per_sample=15)
        assert not found.rate.identifiable and found.rate.value is None
        assert found.words_per_target.value is None
        assert found.sentence.startswith("Not identifiable: one more text sample")
        assert found.auxiliary_slope.low <= 1e-9 and found.auxiliary_slope.high >= -1e-9


def test_harmful_text_has_no_exchange():
    found = exchange_rate(*runs(lambda i, j: 40 + 3 * i - 0.5 * j, noise=0.1))
    assert found.sentence.startswith("No exchange")
    assert found.rate.high < 0


def test_fieller_ends_solve_its_definition():
    rng = np.random.default_rng(3)
    b, c = 3 + rng.standard_normal(5), 1 + 0.3 * rng.standard_normal(5)
    found = fieller(b, c)
    assert found.low < found.value < found.high
    assert found.high - found.value > found.value - found.low  # skewed, as a ratio is
    for end in (found.low, found.high):
        assert stats.ttest_1samp(b - end * c, 0).pvalue == pytest.approx(0.05)


def test_fieller_is_bounded_exactly_when_the_denominator_is_told_from_zero():
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(100):
        b, c = 1 + rng.standard_normal(4), 0.8 + 0.5 * rng.standard_normal(4)
        told = stats.ttest_1samp(c, 0).pvalue < 0.05
        assert fieller(b, c).identifiable == told
        seen.add(told)
    assert seen == {True, False}


def test_fieller_covers_the_true_rate_with_five_seeds():
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(400):
        shared = rng.standard_normal(5)
        b, c = 3 + shared + rng.standard_normal(5), 1 + 0.2 * shared
        found = fieller(b, c)
        if found.identifiable:
            covered.append(found.low <= 3 <= found.high)
    assert len(covered) > 390 and 0.92 <= np.mean(covered) <= 0.98


def test_incomplete_grids_are_listed():
    columns = [list(c) for c in runs(lambda i, j: i + j)]
    missing = [c[1:] for c in columns]
    missing[0].append(missing[0][0])
    missing[1].append(missing[1][0])
    missing[2].append(missing[2][0])
    missing[3].append(missing[3][0])
    with pytest.raises(UserError) as error:
        exchange_rate(*missing)
    assert len(error.value.problems) == 2
    assert any("has 0 runs" in p for p in error.value.problems)
    assert any("has 2 runs" in p for p in error.value.problems)
    with pytest.raises(UserError, match="at least two values"):
        exchange_rate(*runs(lambda i, j: i + j, seeds=(0,)))
    with pytest.raises(UserError, match="one entry per run"):
        exchange_rate([1], [1, 2], [0], [50.0])
    with pytest.raises(UserError, match="two seeds"):
        fieller(np.ones(1), np.ones(1))


@pytest.mark.parametrize("slope", [0.25, 0.0])
def test_a_rate_survives_json(slope):
    found = exchange_rate(*runs(lambda i, j: 3 * i + slope * j), words_per_sample=15.2)
    plain = json.loads(json.dumps(found.to_json()))
    again = ExchangeRate.from_json(plain)
    assert json.loads(json.dumps(again.to_json())) == plain
    assert (again.rate, again.local, again.sentence) == (found.rate, found.local, found.sentence)
    assert again.words_per_target == found.words_per_target
    np.testing.assert_array_equal(again.accuracy, found.accuracy)
