import numpy as np

from uml_core.few_shot import few_shot_curve
from uml_core.probes import few_shot_split, linear_probe
from uml_core.statistics import mean_interval

RNG = np.random.default_rng(4)
MEANS = RNG.normal(size=(3, 6)) * 1.5


def draw(per_class: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.repeat([0, 1, 2], per_class)
    return MEANS[y] + RNG.normal(size=(len(y), 6)), y


def test_every_draw_is_the_probe_of_its_split():
    pool, test = draw(30), draw(50)
    curve = few_shot_curve(
        pool, test, shots=(2, 8), split_seeds=(1, 5), grid=(0.1, 1.0), modality="x"
    )
    assert [point.shots for point in curve.points] == [2, 8] and not curve.left_out
    for point in curve.points:
        expected = []
        for seed in (1, 5):
            train, val = few_shot_split(pool[1], point.shots, seed, modality="x")
            parts = (pool[0][train], pool[1][train], pool[0][val], pool[1][val])
            expected.append(linear_probe(*parts, *test, grid=(0.1, 1.0)).test_accuracy)
        assert point.accuracies == expected
        assert point.mean == mean_interval(expected)


def test_more_labels_help_and_draws_differ():
    curve = few_shot_curve(draw(40), draw(200), modality="x")
    means = [point.mean.mean for point in curve.points]
    assert [point.shots for point in curve.points] == [1, 2, 4, 8, 16]
    assert means[-1] > means[0] + 5
    assert len(set(curve.points[0].accuracies)) > 1 and len(curve.points[0].accuracies) == 5


def test_what_cannot_be_drawn_is_left_out_with_its_class():
    x, y = draw(9)
    curve = few_shot_curve(
        (x, y), draw(20), shots=(4, 8), classes=["ant", "bee", "cow"], modality="x"
    )
    assert [point.shots for point in curve.points] == [4]
    assert curve.left_out[8].startswith("class 'ant' has 9 samples")
    assert curve.left_out[8].endswith("(and 2 more)")


def test_samples_without_a_label_are_never_drawn():
    x, y = draw(12)
    x = np.vstack([x, np.full((40, 6), np.nan)])
    y = np.concatenate([y, np.full(40, -1)])
    assert few_shot_curve((x, y), draw(20), shots=(8,), modality="x").points[0].mean.mean > 50
