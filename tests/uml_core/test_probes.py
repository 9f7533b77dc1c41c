"""Probes: choices are made on validation, splits are nested, shifted sets name what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from uml_core.errors import RunError, UserError
from uml_core.probes import (
    KnnProbe,
    accuracy,
    few_shot_split,
    fit_knn_probe,
    fit_linear_probe,
    knn_probe,
    linear_probe,
    per_class,
    predict,
)


def blobs(n: int, classes: int = 3, dim: int = 8, noise: float = 1.0, seed: int = 0):
    centres = 2 * np.random.default_rng(99).standard_normal((classes, dim))
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return centres[y] + noise * rng.standard_normal((n, dim)), y


def test_accuracy_and_per_class_by_hand():
    y, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0])
    assert accuracy(y, predicted) == pytest.approx(60.0)
    found = per_class(y, predicted)
    assert (found[0].samples, found[0].recall, found[0].precision) == (
        3,
        pytest.approx(200 / 3),
        pytest.approx(200 / 3),
    )
    assert (found[1].recall, found[1].precision) == (100.0, 50.0)
    assert (found[2].recall, found[2].precision) == (0.0, None)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_probe_separates_blobs_and_not_noise(probe):
    result = probe(*blobs(90), *blobs(60, seed=1), *blobs(300, seed=2))
    assert result.test_accuracy > 95
    assert set(result.per_class) == {0, 1, 2}
    mean_recall = np.mean([c.recall for c in result.per_class.values()])
    assert mean_recall == pytest.approx(result.test_accuracy)  # balanced classes
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    noise = probe(*(a for _ in range(3) for a in (rng.standard_normal((300, 8)), y)))
    assert 22 < noise.test_accuracy < 45


def test_linear_probe_is_invariant_to_scale_and_shift_of_features():
    sets = [blobs(60, noise=2.5, seed=s) for s in range(3)]
    plain = linear_probe(*(a for s in sets for a in s))
    factor, shift = np.logspace(-3, 3, 8), np.arange(8) * 10.0
    moved = linear_probe(*(a for x, y in sets for a in (x * factor + shift, y)))
    assert moved == plain


def test_standardisation_reads_the_training_set_only():
    (train_x, train_y), (val_x, val_y) = blobs(60), blobs(60, seed=1)
    probe, _ = fit_linear_probe(train_x, train_y, val_x, val_y)
    np.testing.assert_allclose(probe.mean, train_x.mean(0))
    np.testing.assert_allclose(probe.scale, train_x.std(0))
    # A test set is scored sample by sample: its other samples cannot matter.
    np.testing.assert_allclose(probe.scores(val_x[:1]), probe.scores(val_x)[:1])


def test_constant_features_are_harmless():
    (train_x, train_y), (val_x, val_y) = blobs(60), blobs(60, seed=1)
    train_x[:, 3] = 1e4 + 1e-5 * train_x[:, 0]  # rounding noise is not a feature
    val_x[:, 3] = 1e4 + 1
    assert linear_probe(train_x, train_y, val_x, val_y).val_accuracy > 95


def test_two_classes_have_two_columns_and_match_many_class_form():
    (x, y), (val_x, val_y) = blobs(60, classes=2), blobs(40, classes=2, seed=1)
    probe, val_accuracy = fit_linear_probe(x, y, val_x, val_y)
    assert probe.scores(val_x).shape == (40, 2)
    assert accuracy(val_y, predict(probe, val_x)) == val_accuracy > 95


def test_c_is_chosen_on_validation_and_ties_take_the_strongest_penalty():
    # One true feature among 60 of noise and no separation: only a strong penalty generalises.
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100, 61)), np.arange(100) % 2
    val_x, val_y = rng.standard_normal((400, 61)), np.arange(400) % 2
    x[:, 0] += 1.5 * y
    val_x[:, 0] += 1.5 * val_y
    each = {c: linear_probe(x, y, val_x, val_y, grid=[c]).val_accuracy for c in (1e-3, 1.0, 1e3)}
    chosen = linear_probe(x, y, val_x, val_y, grid=[1e3, 1.0, 1e-3])
    assert chosen.val_accuracy == pytest.approx(max(each.values()), abs=0.5)
    assert chosen.val_accuracy > each[1e3] + 1
    easy = linear_probe(*blobs(60, noise=0.01), *blobs(60, noise=0.01), grid=[1.0, 0.1, 10.0])
    assert easy.val_accuracy == 100 and easy.chosen == {"C": 0.1}


def test_knn_votes_by_hand():
    train = np.array([[1.0, 0.0], [0.1, 1.0], [0.0, 1.0]])
    probe = KnnProbe(
        train / np.linalg.norm(train, axis=1, keepdims=True),
        np.array([0, 1, 1]),
        np.array([5, 7]),
        k=3,
    )
    assert predict(probe, np.array([[10.0, 0.0]])) == [7]  # two votes beat the nearest
    pair = KnnProbe(probe.train_x[:2], np.array([0, 1]), np.array([5, 7]), k=2)
    # One vote each: the larger cosine similarity decides, and length plays no part.
    assert predict(pair, np.array([[10.0, 0.0], [0.1, 0.2]])).tolist() == [5, 7]


def test_knn_chooses_k_on_validation():
    (x, y), (val_x, val_y) = blobs(300, noise=4.0), blobs(300, noise=4.0, seed=1)
    one = knn_probe(x, y, val_x, val_y, grid=[1])
    chosen = knn_probe(x, y, val_x, val_y)
    assert chosen.val_accuracy > one.val_accuracy and chosen.chosen["k"] > 1
    assert fit_knn_probe(x[:4], y[:4], val_x, val_y)[0].k <= 4
    with pytest.raises(UserError, match="no k"):
        knn_probe(x[:4], y[:4], val_x, val_y, grid=[7])


def test_unusable_inputs_are_named():
    x, y = blobs(30)
    broken = x.copy()
    broken[4] = np.nan
    with pytest.raises(RunError, match="val: 1 of 30"):
        linear_probe(x, y, broken, y)
    with pytest.raises(UserError, match="train: 30 of 30 samples have no label"):
        knn_probe(x, y * 0 - 1, x, y)
    with pytest.raises(UserError, match="two classes"):
        linear_probe(x, y * 0, x, y)
    with pytest.raises(UserError, match=r"\(N, D\)"):
        linear_probe(x, y[:-1], x, y)


LABELS = np.random.default_rng(3).permutation(np.repeat([0, 1, 2, -1], [40, 25, 60, 10]))


def test_few_shot_subsets_are_nested_and_val_is_disjoint_from_all():
    splits = {k: few_shot_split(LABELS, k, seed=5, modality="x") for k in (1, 2, 4, 8, 16)}
    for k, (train, val) in splits.items():
        assert np.bincount(LABELS[train]).tolist() == [k] * 3
        assert np.bincount(LABELS[val]).tolist() == [min(4, k)] * 3
        assert set(splits.get(k // 2, ([], []))[0]) <= set(train)
        assert not set(val) & set(splits[16][0])
    again = few_shot_split(LABELS, 8, seed=5, modality="x")
    assert [a.tolist() for a in again] == [a.tolist() for a in splits[8]]
    assert few_shot_split(LABELS, 8, seed=6, modality="x")[0].tolist() != again[0].tolist()


def test_a_class_is_drawn_independently_of_the_others_and_of_other_modalities():
    rows = LABELS == 1
    alone = few_shot_split(np.where(rows, LABELS, -1), 4, seed=0, modality="x")[0]
    assert set(alone) <= set(few_shot_split(LABELS, 4, seed=0, modality="x")[0])
    other = few_shot_split(LABELS, 8, seed=0, modality="y")[0]
    assert other.tolist() != few_shot_split(LABELS, 8, seed=0, modality="x")[0].tolist()
    first, second = few_shot_split(np.repeat([0, 1], 40), 20, seed=0, modality="x")[0].reshape(
        2, 20
    )
    assert first.tolist() != (second - 40).tolist()  # and classes do not share one draw


def test_all_shots_keep_a_tenth_of_each_class():
    train, val = few_shot_split(LABELS, None, seed=0, modality="x")
    assert np.bincount(LABELS[val]).tolist() == [4, 3, 6]  # 2.5 rounds up
    assert sorted([*train, *val]) == np.flatnonzero(LABELS >= 0).tolist()
    tiny = few_shot_split(np.array([0, 0, 1, 1, 1]), None, seed=0, modality="x")
    assert [len(a) for a in tiny] == [3, 2]
    train, val = few_shot_split(LABELS, 3, seed=0, modality="x", val_per_class=0)
    assert (len(train), len(val)) == (9, 0)


def test_too_few_samples_name_every_class_with_counts():
    labels = np.array([0] * 9 + [1] * 30 + [2] * 5)
    with pytest.raises(UserError) as error:
        few_shot_split(labels, 8, 0, classes=["cat", "dog", "emu", "fox"], modality="x")
    assert len(error.value.problems) == 3
    assert "'cat' has 9 samples but 8 for training and 4" in error.value.problems[0]
    assert "'emu' has 5" in error.value.problems[1]
    assert "'fox' has 0" in error.value.problems[2]
    with pytest.raises(UserError, match="at least 1"):
        few_shot_split(labels, 0, 0, modality="x")
    with pytest.raises(UserError, match="label 2 occurs but there are 2"):
        few_shot_split(labels, 1, 0, classes=["cat", "dog"], modality="x")
    with pytest.raises(UserError, match="no labelled"):
        few_shot_split(np.full(4, -1), 1, 0, modality="x")
