import numpy as np
import pytest

from uml_core.errors import UserError
from uml_core.shift import label_map, shifted_test


class Identity:
    """A rule whose scores are its inputs: columns 0, 1, 2 are the training classes."""

    classes = np.array([0, 1, 2])

    def scores(self, x):
        return np.asarray(x)


OWN_X = np.array([[9, 0, 0], [9, 1, 0], [0, 9, 1], [0, 2, 1], [0, 1, 2]])
OWN_Y = np.array([0, 1, 1, 2, 2])


def test_label_map_lists_missing_and_refuses_unknown_names():
    mapped = label_map(["dog", "yeti", "cat"], ["cat", "dog", "cow"])
    assert mapped.targets.tolist() == [1, -1, 0] and mapped.missing == ("yeti",)
    names = {"puppy": "dog", "hound": "dog", "yeti": None}
    mapped = label_map(["puppy", "hound", "yeti"], ["cat", "dog"], names)
    assert mapped.targets.tolist() == [1, 1, -1] and mapped.missing == ("yeti",)
    with pytest.raises(UserError) as error:
        label_map(["puppy"], ["dog"], {"pupy": "dog", "puppy": "dgo"})
    assert "did you mean 'puppy'" in error.value.problems[0]
    assert "did you mean 'dog'" in error.value.problems[1]
    with pytest.raises(UserError, match="no class of the test set"):
        label_map(["yeti"], ["dog"])


def test_mapped_classes_alone_can_be_predicted_on_both_sides():
    mapped = label_map(["b", "z", "c"], ["a", "b", "c"])
    x = np.array([[9, 2, 1], [9, 1, 2], [0, 0, 0], [0, 1, 2], [9, 9, 9]])
    y = np.array([0, 0, 1, 2, -1])
    result = shifted_test(Identity(), x, y, mapped, OWN_X, OWN_Y)
    assert result.accuracy.value == pytest.approx(200 / 3)  # column 0 cannot win
    assert (result.samples, result.skipped, result.unlabelled) == (3, 1, 1)
    assert (result.classes, result.missing) == (2, ("z",))
    assert result.per_class[1].recall == 50.0 and result.per_class[2].recall == 100.0
    # Own samples of b and c: [9, 1, 0] is b once a is out, [0, 2, 1] is a c called b.
    assert result.own.value == 75.0 and result.own_samples == 4
    assert result.drop.value == pytest.approx(75 - 200 / 3)
    assert result.drop.low < result.drop.value < result.drop.high


def test_the_drop_of_equal_sets_is_zero_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x = np.eye(3)[y] + rng.normal(size=(400, 3))
    mapped = label_map("abc", "abc")
    result = shifted_test(Identity(), x, y, mapped, x, y)
    assert result.drop.value == 0 and result.drop.low < 0 < result.drop.high
    # The standard deviation of a difference of two independent shares.
    share = result.accuracy.value / 100
    width = 2 * 1.96 * 100 * np.sqrt(2 * share * (1 - share) / 400)
    assert result.drop.high - result.drop.low == pytest.approx(width, rel=0.1)


def test_what_cannot_be_judged_is_named():
    mapped = label_map(["b", "z", "c"], ["a", "b", "c"])
    x = np.zeros((1, 3))
    with pytest.raises(UserError, match="no test sample"):
        shifted_test(Identity(), x, np.array([1]), mapped, OWN_X, OWN_Y)
    with pytest.raises(UserError, match="label map has 3"):
        shifted_test(Identity(), x, np.array([3]), mapped, OWN_X, OWN_Y)
    with pytest.raises(UserError, match="own test set"):
        shifted_test(Identity(), x, np.array([0]), mapped, OWN_X[:1], OWN_Y[:1])
