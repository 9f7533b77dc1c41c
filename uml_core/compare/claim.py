"""When may a gain be claimed? Intervals that cover new seeds *and* new test samples.

All arms of a comparison are judged on the same test samples under the same seeds. Correctness of
arm a is a matrix (S, I): seed s, test sample i, 0 or 1; the difference of two arms is paired in
both. An interval over the S accuracies alone answers for this test set only: two arms that are
equal on new pictures were told apart in 22 % of toy repetitions instead of 5 %.

A gain is claimed where the interval of method − X lies above zero for *every* X among the
target-only arms and the controls, after Holm's correction over all claims of one call. Requiring
all of them is an intersection-union test: the largest p counts, and no correction is due inside.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from uml_core.statistics import Gain

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """method − other over seeds and samples, in points.

    gain     mean and 95 % interval; no interval for one seed
    p        two-sided, of "no difference"; 1 where there is no interval
    seeds, items, residual   the parts of the variance of the mean: what more seeds, and what more
             test samples would make smaller
    df       Satterthwaite's degrees of freedom
    """

    gain: Gain
    p: float
    seeds: float
    items: float
    residual: float
    df: float


def difference(a: np.ndarray, b: np.ndarray, level: float = LEVEL) -> Difference:
    """Crossed-effects difference of two arms' correctness a, b (S, I), in points.

    With D = a − b, s²_seed the variance of its S row means, s²_item of its I column means and
    s²_resid the residual mean square of the two-way layout,
        V = s²_seed/S + s²_item/I − s²_resid/(S·I),
    and at least the larger of the first two terms. Degrees of freedom after Satterthwaite.
    Raises ValueError where the shapes differ or no sample is there.
    """
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"expected two equal (S, I) matrices, got {a.shape} and {b.shape}")
    d = 100 * (np.asarray(a, np.float64) - np.asarray(b, np.float64))
    s, i = d.shape
    mean = float(d.mean())
    if s == 1 or i == 1:
        return Difference(Gain(mean, None), 1.0, math.nan, math.nan, math.nan, math.nan)
    rows, columns = d.mean(1), d.mean(0)
    rest = d - rows[:, None] - columns[None] + mean
    seeds = float(rows.var(ddof=1)) / s
    items = float(columns.var(ddof=1)) / i
    residual = float((rest**2).sum()) / ((s - 1) * (i - 1)) / (s * i)
    variance = max(seeds + items - residual, seeds, items)
    if variance == 0:  # every pair of cells is equal: nothing varies, nothing is told apart
        p = 1.0 if mean == 0 else 0.0
        return Difference(Gain(mean, (mean, mean)), p, 0.0, 0.0, 0.0, math.inf)
    spread = seeds**2 / (s - 1) + items**2 / (i - 1) + residual**2 / ((s - 1) * (i - 1))
    df = variance**2 / spread
    half = float(stdtrit(df, (1 + level) / 2)) * math.sqrt(variance)
    p = 2 * float(stdtr(df, -abs(mean) / math.sqrt(variance)))
    return Difference(Gain(mean, (mean - half, mean + half)), p, seeds, items, residual, df)


def accuracy(hits: np.ndarray, level: float = LEVEL) -> Gain:
    """Accuracy of one arm in percent, its interval over seeds and samples; `hits` (S, I)."""
    return difference(hits, np.zeros_like(hits), level).gain


def macro(hits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(S,) accuracies in percent in which every class counts alike; `labels` (I,)."""
    classes = np.unique(labels)
    return 100 * np.stack([hits[:, labels == c].mean(1) for c in classes]).mean(0)


def macro_difference(
    a: np.ndarray, b: np.ndarray, labels: np.ndarray, draws: int = 2000, seed: int = 0
) -> Gain:
    """The difference of macro accuracies in points, its interval by the two-way bootstrap.

    Seeds, and samples within their classes, are drawn anew together (Owen 2007), so the interval
    covers both; `a`, `b` (S, I), `labels` (I,).
    """
    d = 100 * (np.asarray(a, np.float64) - np.asarray(b, np.float64))
    s = len(d)
    mean = float((macro(a, labels) - macro(b, labels)).mean())
    if s == 1:
        return Gain(mean, None)
    rng = np.random.default_rng(seed)
    seeds = rng.multinomial(s, np.full(s, 1 / s), draws) / s  # (draws, S)
    total = np.zeros(draws)
    classes = np.unique(labels)
    for c in classes:
        inside = d[:, labels == c]
        n = inside.shape[1]
        weights = rng.multinomial(n, np.full(n, 1 / n), draws) / n  # (draws, n)
        total += np.einsum("bi,bi->b", seeds @ inside, weights)
    low, high = np.quantile(total / len(classes), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gain(mean, (float(low), float(high)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values, in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = highest
    return adjusted


@dataclass(frozen=True)
class Evidence:
    """What one claim rests on: the method against everything that it must beat.

    over     arm -> difference of the method to that arm: target-only arms and controls
    p        the largest of their p-values; 1 where one of the means is not above zero
    weakest  the arm over which the method gains least by its lower bound
    """

    over: dict[str, Difference]
    p: float
    weakest: str

    def claimed(self, p_holm: float, level: float = LEVEL) -> bool:
        """The decision, with the p-value corrected over all claims of the call."""
        return p_holm <= 1 - level


def evidence(method: str, others: Sequence[str], hits: Mapping[str, np.ndarray]) -> Evidence:
    """The method against every arm in `others`; `hits`: arm -> correctness (S, I).

    Raises ValueError where there is nothing to compare with.
    """
    if not others:
        raise ValueError("a claim needs at least one target-only arm and one control")
    over = {name: difference(hits[method], hits[name]) for name in others}
    p = max(d.p if d.gain.mean > 0 else 1.0 for d in over.values())

    def low(name: str) -> float:
        gain = over[name].gain
        return gain.mean if gain.ci95 is None else gain.ci95[0]

    return Evidence(over, p, min(others, key=low))


def decide(found: Sequence[Evidence]) -> list[tuple[float, bool]]:
    """(p after Holm, claimed) of all claims of one call, in the order given."""
    return [(p, e.claimed(p)) for p, e in zip(holm([e.p for e in found]), found, strict=True)]


# ------------------------------------------------------------------------ correctness, kept


def pack(hits: np.ndarray) -> dict[str, Any]:
    """Correctness (S, I) as JSON: shape and base64 of its bits, row after row."""
    bits = np.packbits(np.asarray(hits, bool).ravel())
    return {"shape": list(hits.shape), "bits": base64.b64encode(bits.tobytes()).decode("ascii")}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `pack`: (S, I) bool."""
    s, i = packed["shape"]
    bits = np.frombuffer(base64.b64decode(packed["bits"]), np.uint8)
    return np.unpackbits(bits, count=s * i).astype(bool).reshape(s, i)
