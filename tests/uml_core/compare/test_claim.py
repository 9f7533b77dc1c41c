"""Intervals cover new seeds and new samples; claims hold against everything at once."""

from __future__ import annotations

import numpy as np
import pytest

from uml_core.compare import claim


def crossed(rng: np.random.Generator, s: int, i: int, seed: float, item: float, rest: float):
    """D (S, I) of mean zero with crossed random effects of these spreads."""
    d = rng.normal(size=(s, 1)) * seed + rng.normal(size=(1, i)) * item
    return d + rng.normal(size=(s, i)) * rest


def test_a_difference_worked_by_hand():
    a = np.array([[1, 1, 0, 1], [1, 0, 0, 1]])
    b = np.array([[0, 1, 0, 0], [0, 0, 1, 1]])
    # D: [1 0 0 1], [1 0 -1 0]; rows 0.5, 0; columns 1, 0, -0.5, 0.5; mean 0.25
    found = claim.difference(a, b)
    assert found.gain.mean == pytest.approx(25)
    seeds, items = 1e4 * 0.125 / 2, 1e4 * (1.25 / 3) / 4
    residual = 1e4 * (8 * 0.0625) / 3 / 8
    assert found.seeds == pytest.approx(seeds) and found.items == pytest.approx(items)
    assert found.residual == pytest.approx(residual)
    v = seeds + items - residual
    df = v**2 / (seeds**2 / 1 + items**2 / 3 + residual**2 / 3)
    assert found.df == pytest.approx(df)
    assert found.gain.ci95 is not None and sum(found.gain.ci95) == pytest.approx(50)


@pytest.mark.parametrize(
    ("s", "i", "seed", "item", "rest"),
    [
        (5, 200, 0.02, 0.3, 0.3),
        (5, 200, 0.1, 0.3, 0.3),
        (10, 400, 0.02, 0.4, 0.2),
        (10, 100, 0.0, 0.4, 0.4),
        (20, 300, 0.05, 0.05, 0.5),
    ],
)
def test_coverage_of_crossed_effects(s, i, seed, item, rest):
    rng = np.random.default_rng(0)
    inside, repeats = 0, 2500
    for _ in range(repeats):
        d = crossed(rng, s, i, seed, item, rest)
        low, high = claim.difference(d, np.zeros_like(d)).gain.ci95
        inside += low <= 0 <= high
    assert inside / repeats == pytest.approx(0.95, abs=0.02)


def test_seeds_alone_would_not_cover_new_samples():
    """The fault that the crossed interval mends: one test set for all seeds."""
    from uml_core.statistics import paired_gain

    rng = np.random.default_rng(1)
    wrong = crossed_wrong = 0
    for _ in range(600):
        d = crossed(rng, 5, 300, 0.01, 0.3, 0.3)
        low, high = paired_gain(d.mean(1), np.zeros(5)).ci95
        wrong += not low <= 0 <= high
        low, high = claim.difference(d, np.zeros_like(d)).gain.ci95
        crossed_wrong += not low <= 0 <= high
    assert wrong / 600 > 0.15 and crossed_wrong / 600 < 0.08


def test_nothing_varies_and_one_seed():
    same = np.ones((4, 9))
    found = claim.difference(same, same)
    assert found.gain.mean == 0 and found.p == 1 and not found.gain.above_zero
    one = claim.difference(np.ones((1, 5)), np.zeros((1, 5)))
    assert one.gain.mean == 100 and one.gain.ci95 is None and one.p == 1
    with pytest.raises(ValueError, match="equal"):
        claim.difference(np.ones((2, 5)), np.ones((2, 4)))


def test_p_and_interval_agree():
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.05, 0.1, 0.2):
        a = crossed(rng, 6, 80, 0.05, 0.3, 0.3) + shift
        found = claim.difference(a, np.zeros_like(a))
        low, high = found.gain.ci95
        assert (found.p < 0.05) == (low > 0 or high < 0)


def test_macro_counts_every_class_alike():
    labels = np.array([0] * 90 + [1] * 10)
    a, b = np.zeros((3, 100)), np.zeros((3, 100))
    a[:, 90:] = 1  # right on the rare class only
    assert claim.macro(a, labels).tolist() == [50, 50, 50]
    gain = claim.macro_difference(a, b, labels)
    assert gain.mean == 50 and gain.ci95 == pytest.approx((50, 50))
    rng = np.random.default_rng(3)
    noisy = rng.random((5, 100)) < 0.5
    gain = claim.macro_difference(noisy, rng.random((5, 100)) < 0.5, labels)
    assert gain.ci95[0] < gain.mean < gain.ci95[1]
    assert claim.macro_difference(a[:1], b[:1], labels).ci95 is None


def test_the_macro_interval_covers():
    rng, labels = np.random.default_rng(4), np.repeat(np.arange(10), 20)
    inside = 0
    for _ in range(300):
        d = crossed(rng, 10, 200, 0.03, 0.3, 0.3)
        low, high = claim.macro_difference(d, np.zeros_like(d), labels, draws=400).ci95
        inside += low <= 0 <= high
    assert inside / 300 > 0.92


def test_holm():
    assert claim.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert claim.holm([0.5]) == [0.5] and claim.holm([]) == []


def test_one_arm_that_is_not_beaten_takes_the_claim_away():
    rng = np.random.default_rng(5)
    base = rng.random((10, 400)) < 0.5
    better = base | (rng.random((10, 400)) < 0.2)
    hits = {"uml": better, "unimodal": base, "logistic": base, "permuted": base}
    sure = claim.evidence("uml", ["unimodal", "logistic", "permuted"], hits)
    assert claim.decide([sure]) == [(sure.p, True)] and sure.p < 1e-3
    hits["logistic"] = better
    lost = claim.evidence("uml", ["unimodal", "logistic", "permuted"], hits)
    assert lost.weakest == "logistic" and lost.p == 1
    (p, first), (_, second) = claim.decide([sure, lost])
    assert first and p == pytest.approx(2 * sure.p) and not second
    with pytest.raises(ValueError, match="at least one"):
        claim.evidence("uml", [], hits)


def test_correctness_is_kept_as_bits():
    hits = np.random.default_rng(6).random((3, 13)) < 0.5
    packed = claim.pack(hits)
    assert len(packed["bits"]) <= 8 and (claim.unpack(packed) == hits).all()
