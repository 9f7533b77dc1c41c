"""CKA and mutual kNN: closed forms, invariances, and the permutation baseline."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group

from uml_core.analysis.alignment import linear_cka, mutual_knn, rbf_cka
from uml_core.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 12))
OTHER = RNG.standard_normal((200, 7))
ROTATION = ortho_group.rvs(12, random_state=0)
MEASURES = [linear_cka, rbf_cka, mutual_knn]


@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_and_scale_leave_full_alignment(measure):
    found = measure(X, 3.0 * X @ ROTATION, permutations=99)
    assert found.value == pytest.approx(1.0)
    assert found.p_value == 0.01
    assert (found.samples, found.permutations) == (200, 99)


@pytest.mark.parametrize("measure", [linear_cka, rbf_cka])
def test_a_shift_does_not_change_cka(measure):
    noisy = X[:, :7] + OTHER
    plain = measure(X, noisy, permutations=9)
    assert measure(X + 5.0, noisy - 2.0, permutations=9).value == pytest.approx(plain.value)


@pytest.mark.parametrize("measure", MEASURES)
def test_independent_data_lies_in_the_permutation_band(measure):
    found = measure(X, OTHER, permutations=199)
    assert found.p_value > 0.05 and found.value <= found.null_high * 1.05
    assert found.value == pytest.approx(found.null_mean, rel=0.35)


@pytest.mark.parametrize("measure", MEASURES)
def test_weak_agreement_is_found(measure):
    assert measure(X, X[:, :7] + 2 * OTHER, permutations=199).p_value < 0.02


def test_linear_cka_matches_the_feature_form():
    a, b = X - X.mean(0), (X[:, :7] + OTHER) - (X[:, :7] + OTHER).mean(0)
    expected = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert linear_cka(X, X[:, :7] + OTHER, permutations=9).value == pytest.approx(expected)


def test_rbf_cka_by_hand_for_three_points():
    # Distances 1, 2, 3 on a line, median 2; the other side has the order of points reversed.
    x = np.array([[0.0], [1.0], [3.0]])
    y = x[[1, 0, 2]]
    d = np.abs(x - x.T)
    kernel = np.exp(-(d**2) / (2 * 2.0**2))
    centre = np.eye(3) - 1 / 3
    k, other = centre @ kernel @ centre, centre @ kernel[np.ix_([1, 0, 2], [1, 0, 2])] @ centre
    expected = (k * other).sum() / (k * k).sum()
    assert rbf_cka(x, y, permutations=9).value == pytest.approx(expected)


def test_mutual_knn_by_hand_and_its_null():
    angles = np.deg2rad([0, 10, 25, 45])  # nearest: 0-1, 1-0, 2-1, 3-2
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    moved = np.deg2rad([0, 10, 25, 100])  # nearest of 3 is 2 again; lengths play no part
    y = np.stack([np.cos(moved), np.sin(moved)], axis=1) * [[1], [5], [2], [3]]
    assert mutual_knn(x, y, k=1, permutations=9).value == 1.0
    swapped = y[[0, 2, 1, 3]]  # nearest now: 0-2, 1-2, 2-0, 3-1: none in common
    assert mutual_knn(x, swapped, k=1, permutations=9).value == 0.0
    # Corners of a square, adjacent ones are neighbours. Of the three cycles through four corners
    # one is the square itself (overlap 1), each other shares one neighbour per corner.
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    null = mutual_knn(square, square, k=2, permutations=2000)
    assert null.null_mean == pytest.approx((1 + 0.5 + 0.5) / 3, abs=0.02)
    null = mutual_knn(X, OTHER, k=10, permutations=199)
    assert null.null_mean == pytest.approx(10 / 199, rel=0.05)


def test_subsample_is_stated_and_bad_input_refused():
    assert linear_cka(X, OTHER, permutations=9, max_samples=50).samples == 50
    with pytest.raises(UserError, match="class means"):
        linear_cka(X, OTHER[:-1])
    with pytest.raises(UserError, match="1 <= k < samples"):
        mutual_knn(X[:5], OTHER[:5], k=5)
    with pytest.raises(UserError, match="constant"):
        rbf_cka(X, np.ones_like(OTHER))
    with pytest.raises(UserError, match="constant"):
        linear_cka(X, np.ones_like(OTHER))
