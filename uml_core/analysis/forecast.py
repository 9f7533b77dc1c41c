"""Will auxiliary data help? A forecast from features alone, before any training.

In an independent study the gain of unpaired training went with shared class geometry: Caltech
101 (rank correlation 0.42, zero-shot accuracy 0.49 with aligned features) gained 5 to 6 points
at one shot; Flowers (0.10 and 0.03) and digits gained nothing. Three data sets make a rule of
thumb, not a law, and the sentence says so. How the rule has fared since stands in track_record.py:
shared geometry alone does not make a gain.

The features of a forecast must exist before training: `Modality.coarse` of each kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from uml_core.analysis.bootstrap import (
    Estimate,
    bootstrap_mean,
    percentile,
    permutation_null,
    permutation_p,
    proportion,
    resample,
    subsample,
)
from uml_core.analysis.prototypes import class_means
from uml_core.analysis.rank import EffectiveRank, effective_rank
from uml_core.errors import UserError

THRESHOLD = 0.2  # of the rank correlation: between the data sets that gained and those that did not
MAX_CLASSES = 300  # the matrices are quadratic in the classes
_RANK_SAMPLES = 2000
LIKELY, UNLIKELY, OPEN = "likely", "unlikely", "open"


@dataclass(frozen=True)
class Forecast:
    """What the features say before training.

    geometry         Spearman correlation of the two class-similarity matrices, interval over
                     classes; None with fewer than three classes in common
    p_value          one-sided Mantel permutation test of the same
    classes          classes of the geometry, at most `MAX_CLASSES`
    zero_shot        percent of target samples nearest to their class's auxiliary mean, interval
                     over samples; None without a shared space
    chance           percent expected of random classes
    target_rank, auxiliary_rank   effective rank of the features
    verdict          "likely", "unlikely" or "open"
    sentence         the same in words
    """

    geometry: Estimate | None
    p_value: float | None
    classes: int
    zero_shot: Estimate | None
    chance: float
    target_rank: EffectiveRank
    auxiliary_rank: EffectiveRank
    verdict: str
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Plain types, field by field."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Forecast:
        """The inverse of `to_json`."""

        def estimate(value: Mapping[str, float] | None) -> Estimate | None:
            return None if value is None else Estimate(**value)

        def rank(value: Mapping[str, Any]) -> EffectiveRank:
            return EffectiveRank(**{**value, "rank": Estimate(**value["rank"])})

        estimates = {name: estimate(data[name]) for name in ("geometry", "zero_shot")}
        ranks = {name: rank(data[name]) for name in ("target_rank", "auxiliary_rank")}
        return cls(**{**data, **estimates, **ranks})


@dataclass(frozen=True)
class HitRate:
    """How forecasts fared: share of decided ones that were right, exact interval; None if none."""

    right: Estimate | None
    decided: int
    open: int


def forecast(
    target: np.ndarray,
    target_labels: np.ndarray,
    auxiliary: np.ndarray,
    auxiliary_labels: np.ndarray,
    shared_space: bool = False,
    names: tuple[str, str] = ("target", "auxiliary"),
    seed: int = 0,
) -> Forecast:
    """Forecast from labelled training features: target (N, D), auxiliary (M, E), labels (N,), (M,).

    Labels are indices of one list of classes, rows labelled below 0 are left out. The verdict is
    "likely" when the geometry is at least `THRESHOLD` with p < 0.05, "unlikely" when its whole
    interval is below `THRESHOLD`, else "open". Class means of few samples are noisy, which pulls
    the correlation towards zero. Reads no test data. Raises UserError for a shared space of
    unequal widths or without a class in common.
    """
    target, auxiliary = np.asarray(target, np.float64), np.asarray(auxiliary, np.float64)
    target_labels, auxiliary_labels = np.asarray(target_labels), np.asarray(auxiliary_labels)
    if shared_space and target.shape[1] != auxiliary.shape[1]:
        raise UserError(
            f"a shared space needs equal widths; {names[0]} has {target.shape[1]} features and "
            f"{names[1]} {auxiliary.shape[1]}"
        )
    num_classes = 1 + int(max(target_labels.max(initial=-1), auxiliary_labels.max(initial=-1)))
    target_means, target_counts = class_means(target, target_labels, num_classes)
    auxiliary_means, auxiliary_counts = class_means(auxiliary, auxiliary_labels, num_classes)
    common = np.flatnonzero((target_counts > 0) & (auxiliary_counts > 0))
    if len(common) == 0:
        raise UserError(f"{names[0]} and {names[1]} have no class in common")
    zero_shot = None
    if shared_space:
        zero_shot = _zero_shot(target, target_labels, auxiliary_means[common], common, seed)
    chance = 100.0 / len(common)
    common = common[subsample(len(common), MAX_CLASSES, seed)]
    geometry, p_value = None, None
    if len(common) >= 3:
        geometry, p_value = shared_geometry(
            target_means[common], auxiliary_means[common], seed=seed
        )
    verdict = _verdict(geometry, p_value)
    return Forecast(
        geometry=geometry,
        p_value=p_value,
        classes=len(common),
        zero_shot=zero_shot,
        chance=chance,
        target_rank=effective_rank(target, seed=seed, max_samples=_RANK_SAMPLES),
        auxiliary_rank=effective_rank(auxiliary, seed=seed, max_samples=_RANK_SAMPLES),
        verdict=verdict,
        sentence=_sentence(verdict, geometry, p_value, len(common), zero_shot, chance, names),
    )


def shared_geometry(
    x: np.ndarray, y: np.ndarray, permutations: int = 999, repeats: int = 200, seed: int = 0
) -> tuple[Estimate, float]:
    """Spearman correlation of the class-similarity matrices of class means x (C, D), y (C, E).

    Similarity is the cosine of centred class means. The p value is Mantel's: classes of one side
    renamed at random. The interval is a bootstrap over classes in which pairs of one class with
    itself are left out. Raises UserError for unpaired rows or fewer than three classes.
    """
    from scipy.stats import rankdata  # a second to import, for processes that forecast nothing

    if len(x) != len(y) or len(x) < 3:
        raise UserError(f"class geometry needs the same three or more classes: {len(x)}, {len(y)}")
    a, b = _similarity(x), _similarity(y)
    i, j = np.triu_indices(len(a), 1)
    ranks = np.zeros_like(b)
    ranks[i, j] = ranks[j, i] = rankdata(b[i, j])
    own = rankdata(a[i, j])
    value = _correlation(own, ranks[i, j])
    null = permutation_null(
        lambda order: _correlation(own, ranks[order[i], order[j]]), len(a), permutations, seed
    )
    draws = []
    for drawn in resample(len(a), repeats, seed):
        rows, columns = drawn[i], drawn[j]
        kept = rows != columns
        rows, columns = rows[kept], columns[kept]
        draws.append(_correlation(rankdata(a[rows, columns]), rankdata(b[rows, columns])))
    return percentile(value, np.array(draws)), permutation_p(value, null)


def together(verdicts: Iterable[str]) -> str:
    """One verdict on several auxiliary modalities: one that helps is enough."""
    verdicts = set(verdicts)
    if LIKELY in verdicts:
        return LIKELY
    return UNLIKELY if verdicts == {UNLIKELY} else OPEN


def hit_rate(verdicts: Sequence[str], gained: Sequence[bool]) -> HitRate:
    """Compare verdicts with whether a gain was then claimed; "open" verdicts count as neither."""
    decided = [(v, g) for v, g in zip(verdicts, gained, strict=True) if v != OPEN]
    right = sum((v == LIKELY) == bool(g) for v, g in decided)
    estimate = proportion(right, len(decided)) if decided else None
    return HitRate(estimate, len(decided), len(verdicts) - len(decided))


def _similarity(means: np.ndarray) -> np.ndarray:
    centred = means - means.mean(0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(norms > 0, norms, 1.0)
    return unit @ unit.T


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two vectors; 0 where one is constant or empty."""
    if len(a) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def _zero_shot(
    x: np.ndarray, labels: np.ndarray, prototypes: np.ndarray, classes: np.ndarray, seed: int
) -> Estimate:
    kept = np.isin(labels, classes)
    norms = np.linalg.norm(prototypes, axis=1, keepdims=True)
    predicted = classes[(x[kept] @ (prototypes / np.where(norms > 0, norms, 1.0)).T).argmax(1)]
    return bootstrap_mean(100.0 * (predicted == labels[kept]), seed=seed)


def _verdict(geometry: Estimate | None, p_value: float | None) -> str:
    if geometry is None or p_value is None:
        return OPEN
    if geometry.value >= THRESHOLD and p_value < 0.05:
        return LIKELY
    return UNLIKELY if geometry.high < THRESHOLD else OPEN


def _sentence(
    verdict: str,
    geometry: Estimate | None,
    p_value: float | None,
    classes: int,
    zero_shot: Estimate | None,
    chance: float,
    names: tuple[str, str],
) -> str:
    target, auxiliary = names
    start = {
        LIKELY: f"{auxiliary} is likely to help {target}",
        UNLIKELY: f"{auxiliary} is unlikely to help {target}",
        OPEN: f"Whether {auxiliary} helps {target} is open",
    }[verdict]
    if geometry is None:
        reason = f"{classes} classes in common have no geometry to compare"
    else:
        reason = f"rank correlation of class similarities {geometry}, p = {p_value:.3g}, "
        reason += f"{classes} classes"
    if zero_shot is not None:
        reason += f"; nearest {auxiliary} class mean right for {zero_shot} % of the {target} "
        reason += f"samples, chance {chance:.3g} %"
    return f"{start}: {reason}. A rule of thumb from three data sets, not a result."
