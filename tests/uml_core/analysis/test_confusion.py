import numpy as np
import pytest

from uml_core.analysis.confusion import confusion
from uml_core.errors import UserError

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2])
CALLED = np.array([0, 0, 0, 1, 1, 1, 0, 2, 2, 2, 2, 2, 2, 2, 2, 1])


def test_counts_and_the_pair_most_often_called_each_other():
    found = confusion(LABELS, CALLED, 4)
    assert found.matrix.tolist() == [[3, 1, 0, 0], [1, 2, 1, 0], [0, 1, 7, 0], [0] * 4]
    # 0 and 1: 2 of 8; 1 and 2: 2 of 12.
    assert found.pair == (0, 1) and found.share.value == pytest.approx(0.25)
    assert 0 <= found.share.low <= 0.25 <= found.share.high <= 1


def test_equal_shares_take_the_pair_with_more_samples():
    labels = np.array([0, 1, 2, 2, 3, 3])
    called = np.array([1, 1, 2, 3, 2, 3])
    found = confusion(labels, called, 4)
    assert found.pair == (2, 3) and found.share.value == 0.5


def test_without_an_error_there_is_no_pair():
    found = confusion(LABELS, LABELS, 3)
    assert found.pair is None and found.share is None
    with pytest.raises(UserError, match=r"\[0, 2\)"):
        confusion(LABELS, LABELS, 2)
    with pytest.raises(UserError, match=r"\(N,\)"):
        confusion(LABELS, LABELS[:-1], 3)
