"""The decision plane: axes by hand, orthonormality, and the boundary at zero."""

from __future__ import annotations

import numpy as np
import pytest

from uml_core.analysis.decision_plane import decision_plane
from uml_core.errors import UserError


def test_axes_and_points_by_hand():
    head = np.array([[9.0, 9.0, 9.0], [2.0, 0.0, 0.0], [-2.0, 0.0, 0.0]])
    x = np.array([[1.0, 4.0, 7.0], [3.0, 4.0, 7.0], [-2.0, 0.0, 7.0], [5.0, 5.0, 5.0]])
    found = decision_plane(x, np.array([1, 1, 2, 0]), head, 1, 2)
    np.testing.assert_allclose(found.axes, [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(found.points, [[1, 4], [3, 4], [-2, 0]])
    assert found.labels.tolist() == [1, 1, 2]
    assert found.accuracy.value == 1.0 and found.gap.value == pytest.approx(4.0)


def test_axes_are_orthonormal_and_decide_as_the_head_does():
    rng = np.random.default_rng(0)
    head, y = rng.standard_normal((3, 10)), np.arange(200) % 2
    x = rng.standard_normal((200, 10)) + 0.5 * head[y] + 100.0  # far from the origin
    found = decision_plane(x, y, head, 0, 1)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(2), atol=1e-12)
    right = (x @ head[0] > x @ head[1]) == (y == 0)
    assert found.accuracy.value == pytest.approx(right.mean())
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    first = found.points[:, 0]
    error = np.sqrt(first[y == 0].var() / 100 + first[y == 1].var() / 100)
    assert found.gap.high - found.gap.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    # Exchanging the classes mirrors both axes.
    np.testing.assert_allclose(decision_plane(x, y, head, 1, 0).axes, -found.axes)


def test_degenerate_cases():
    head = np.array([[1.0, 0.0], [-1.0, 0.0]])
    on_axis = decision_plane(np.array([[1.0, 3.0], [-1.0, 3.0]]), np.array([0, 1]), head, 0, 1)
    assert on_axis.axes[1].tolist() == [0, 0]
    assert on_axis.gap.low == on_axis.gap.high == 2.0  # no draw loses a class of one sample
    with pytest.raises(UserError, match="class 1 has no sample"):
        decision_plane(np.ones((2, 2)), np.array([0, 0]), head, 0, 1)
    with pytest.raises(UserError, match="are equal"):
        decision_plane(np.ones((2, 2)), np.array([0, 1]), np.ones((2, 2)), 0, 1)
