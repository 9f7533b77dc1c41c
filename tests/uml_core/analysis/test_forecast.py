"""The forecast: shared geometry is found, absent geometry is not, and doubt is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import ortho_group, spearmanr

from uml_core.analysis.forecast import Forecast, forecast, hit_rate, shared_geometry, together
from uml_core.errors import UserError

CLASSES, DIM = 30, 12
RNG = np.random.default_rng(0)
MEANS = RNG.standard_normal((CLASSES, DIM))
OTHER = RNG.standard_normal((CLASSES, DIM))


def samples(means: np.ndarray, per_class: int = 5, noise: float = 0.3, seed: int = 1):
    y = np.repeat(np.arange(len(means)), per_class)
    rng = np.random.default_rng(seed)
    return means[y] + noise * rng.standard_normal((len(y), means.shape[1])) + 2.0, y


def test_geometry_is_the_rank_correlation_of_centred_cosines():
    def cosines(m):
        m = m - m.mean(0)
        m = m / np.linalg.norm(m, axis=1, keepdims=True)
        return (m @ m.T)[np.triu_indices(len(m), 1)]

    mixed = MEANS + OTHER
    found, p_value = shared_geometry(MEANS, mixed)
    assert found.value == pytest.approx(spearmanr(cosines(MEANS), cosines(mixed))[0])
    assert found.low < found.value < found.high and p_value == 0.001
    rotated, _ = shared_geometry(MEANS, 3 * MEANS @ ortho_group.rvs(DIM, random_state=0) + 7)
    assert rotated.value == pytest.approx(1)


def test_mantel_renames_classes_on_both_sides_of_a_pair():
    # Corners of a square: 8 of the 24 ways to rename them keep every similarity.
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    found, p_value = shared_geometry(square, square, permutations=2000)
    assert found.value == pytest.approx(1) and p_value == pytest.approx(1 / 3, abs=0.04)


def test_mantel_p_value_is_calibrated_where_a_pairwise_test_is_not():
    # Pairs of classes are dependent: p values over independent means must still be uniform.
    p_values = []
    for seed in range(60):
        a, b = np.random.default_rng(seed).standard_normal((2, 8, 3))
        p_values.append(shared_geometry(a, b, permutations=99, repeats=2, seed=seed)[1])
    assert np.mean(np.array(p_values) <= 0.1) <= 0.2
    assert 0.38 <= np.mean(p_values) <= 0.62


def test_shared_classes_are_likely_to_help_and_others_not():
    rotation = ortho_group.rvs(DIM, random_state=0)
    yes = forecast(*samples(MEANS), *samples(MEANS @ rotation, seed=2), names=("image", "text"))
    assert yes.verdict == "likely" and yes.geometry.low > 0.5 and yes.p_value == 0.001
    assert yes.zero_shot is None
    assert yes.sentence.startswith("text is likely to help image: rank correlation")
    assert "rule of thumb" in yes.sentence
    no = forecast(*samples(MEANS), *samples(OTHER, seed=2))
    assert no.verdict == "unlikely" and no.geometry.high < 0.2 and no.p_value > 0.05
    assert 1 < yes.target_rank.rank.value <= DIM


def test_few_classes_leave_it_open():
    few = forecast(*samples(MEANS[:4]), *samples(OTHER[:4], seed=2))
    assert few.verdict == "open" and few.geometry.high - few.geometry.low > 0.3
    three = forecast(*samples(MEANS[:3], noise=0), *samples(MEANS[:3], noise=0))
    assert three.verdict == "open" and three.geometry.value == pytest.approx(1)
    assert three.p_value == pytest.approx(1 / 6, abs=0.05)  # 1 of 6 ways: chance is not ruled out
    two = forecast(*samples(MEANS[:2]), *samples(MEANS[:2], seed=2))
    assert two.verdict == "open" and two.geometry is None and two.p_value is None
    assert "2 classes in common have no geometry" in two.sentence


def test_zero_shot_in_a_shared_space():
    x, y = samples(MEANS, noise=0.01)
    x -= x.mean(0)
    own = forecast(x, y, x, y, shared_space=True)
    assert own.zero_shot.value == 100 and own.chance == pytest.approx(100 / CLASSES)
    moved = forecast(x, y, x, (y + 1) % CLASSES, shared_space=True)
    assert moved.zero_shot.value < 10
    assert "chance 3.33 %" in own.sentence
    with pytest.raises(UserError, match="equal widths"):
        forecast(x, y, x[:, :3], y, shared_space=True)


def test_only_common_labelled_classes_count():
    x, y = samples(MEANS, noise=0.01)
    text, labels = samples(MEANS, noise=0.01, seed=2)
    x, text = x - 2, text - 2
    kept = labels != 7
    found = forecast(x, np.where(y == 3, -1, y), text[kept], labels[kept], shared_space=True)
    assert found.classes == CLASSES - 2
    assert found.zero_shot.value == 100
    with pytest.raises(UserError, match="no class in common"):
        forecast(x[y == 0], y[y == 0], text[labels == 1], labels[labels == 1])


def test_hit_rate_counts_decided_verdicts():
    found = hit_rate(
        ["likely", "likely", "unlikely", "open", "unlikely"], [True, False, False, True, False]
    )
    assert (found.right.value, found.decided, found.open) == (0.75, 4, 1)
    assert found.right.low == pytest.approx(0.194, abs=1e-3)  # Clopper-Pearson of 3 in 4
    assert hit_rate(["open"], [True]).right is None


def test_one_auxiliary_that_helps_is_enough():
    assert together(["open", "likely", "unlikely"]) == "likely"
    assert together(["unlikely", "unlikely"]) == "unlikely"
    assert together(["unlikely", "open"]) == together([]) == "open"


@pytest.mark.parametrize("classes", [CLASSES, 2])
def test_a_forecast_survives_json(classes):
    x, y = samples(MEANS[:classes])
    found = forecast(x, y, x, y, shared_space=classes > 2)
    plain = json.loads(json.dumps(found.to_json()))
    assert Forecast.from_json(plain) == found
