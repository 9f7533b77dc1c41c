"""Class prototypes: means, the heat map by hand, and the permutation band."""

from __future__ import annotations

import numpy as np
import pytest

from uml_core.analysis.prototypes import class_means, prototype_map
from uml_core.errors import UserError


def test_class_means_by_hand_with_missing_and_unlabelled():
    x = np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0], [9.0, 9.0]])
    means, counts = class_means(x, np.array([2, 2, 0, -1]), 4)
    assert means.tolist() == [[5, 5], [0, 0], [2, 1], [0, 0]]
    assert counts.tolist() == [1, 0, 2, 0]
    with pytest.raises(UserError, match="label 2 does not fit 2"):
        class_means(x, np.array([2, 2, 0, -1]), 2)


def test_heat_map_by_hand_leaves_out_classes_without_samples():
    head = np.array([[1.0, 0.0], [9.0, 9.0], [0.0, 2.0], [1.0, 1.0]])
    text = np.array([[4.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = prototype_map(head, text, np.array([0, 0, 2, 3]), repeats=50)
    assert found.classes.tolist() == [0, 2, 3]
    assert found.matrix.tolist() == [[3, 0, 1], [0, 2, 2], [3, 1, 2]]
    # Rows: (3 - 0.5) / 0.5, (2 - 1) / 1, (2 - 2) / 1.
    assert found.dominance.value == pytest.approx((5 + 1 + 0) / 3)
    assert found.hit_rate.value == pytest.approx(2 / 3)


def test_aligned_head_stands_out_and_unrelated_head_does_not():
    rng = np.random.default_rng(0)
    prototypes, labels = rng.standard_normal((20, 16)), np.repeat(np.arange(20), 5)
    text = prototypes[labels] + rng.standard_normal((100, 16)) + 4.0  # + 4: common to all classes
    own = prototype_map(prototypes, text, labels)
    assert own.p_value < 0.01 and own.dominance.low > own.null_high
    assert own.hit_rate.value > 0.9
    other = prototype_map(rng.standard_normal((20, 16)), text, labels)
    assert other.p_value > 0.05
    assert other.dominance.low < 0.5 < own.dominance.low


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="differ in width"):
        prototype_map(np.ones((3, 2)), np.ones((3, 4)), np.arange(3))
    with pytest.raises(UserError, match="at least three classes"):
        prototype_map(np.ones((3, 2)), np.ones((2, 2)), np.arange(2))
