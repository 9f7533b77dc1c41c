"""Functional margins: values by hand, signs, and the geometry they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from uml_core.analysis.margins import functional_margins
from uml_core.errors import UserError


def test_margins_by_hand():
    head = np.array([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0]])
    features = np.array([[1.0, 0.0], [1.0, 3.0], [0.0, 1.0]])
    found = functional_margins(features, np.array([0, 0, 1]), head)
    # Sample 0: rival 1 (score 0): 2 / |(2, -2)|. Sample 1: scores 2, 6, -2: (2 - 6) / |(2, -2)|.
    # Sample 2: rivals 0 and 2 both score 0, |w_1 - w_0| = 2 sqrt 2.
    root = 2 * np.sqrt(2)
    np.testing.assert_allclose(found.margins, [2 / root, -4 / root, 2 / root])
    assert found.mean.value == pytest.approx(0.0, abs=1e-12)
    assert found.mean.low < 0 < found.mean.high
    assert found.positive_share.value == pytest.approx(2 / 3)


def test_margin_is_the_distance_to_the_boundary():
    rng = np.random.default_rng(0)
    head, features = rng.standard_normal((2, 6)), rng.standard_normal((40, 6))
    margins = functional_margins(features, np.zeros(40, int), head).margins
    normal = (head[0] - head[1]) / np.linalg.norm(head[0] - head[1])
    moved = features - margins[:, None] * normal
    np.testing.assert_allclose(moved @ head[0], moved @ head[1], atol=1e-12)


def test_margins_ignore_head_scale_and_follow_feature_scale():
    rng = np.random.default_rng(1)
    head, x, y = rng.standard_normal((4, 5)), rng.standard_normal((30, 5)), np.arange(30) % 4
    base = functional_margins(x, y, head).margins
    np.testing.assert_allclose(functional_margins(x, y, 7 * head).margins, base)
    np.testing.assert_allclose(functional_margins(3 * x, y, head).margins, 3 * base)


def test_equal_rows_give_zero_and_bad_labels_are_refused():
    x = np.ones((2, 3))
    assert functional_margins(x, np.array([0, 1]), np.ones((2, 3))).margins.tolist() == [0, 0]
    with pytest.raises(UserError, match=r"in \[0, 2\)"):
        functional_margins(x, np.array([0, 2]), np.ones((2, 3)))
    with pytest.raises(UserError, match="two classes"):
        functional_margins(x, np.array([0, 0]), np.ones((1, 3)))
