"""Linear probes of what a self-supervised model holds: on X, on Y, and on both side by side.

The paper's code scores the target's mean-pooled outputs, the auxiliary's, and the two concatenated
(paper B.4.1, section 5). Pairs serve the measurement only: training never sees which samples
belong together.

Shape legend: N samples, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from uml_core.evaluation import embeddings
from uml_core.learner import UnpairedLearner
from uml_core.modalities.base import Batch
from uml_core.probes import GRID_C, ProbeResult, linear_probe

SPLITS = ("train", "val", "test")
Parts = tuple[Sequence[Batch], Sequence[Batch], Sequence[Batch]]  # train, val, test


class Features(NamedTuple):
    """Frozen features of one split: x (N, D), labels y (N,) int64 (-1 = none), N sample keys."""

    x: np.ndarray
    y: np.ndarray
    keys: Sequence[str]


@dataclass(frozen=True)
class Views:
    """What `probe_views` measured.

    results   "image", "text", "image+text" -> its probe, C chosen on validation
    left_out  views that could not be measured -> why, as a sentence without its full stop
    """

    results: dict[str, ProbeResult]
    left_out: dict[str, str]


def probe_views(
    learner: UnpairedLearner,
    target: str,
    parts: Mapping[str, Parts],
    grid: Sequence[float] = GRID_C,
) -> Views:
    """Probes each modality's mean-pooled outputs, and the target's joined to each other one's.

    parts  modality -> its (train, val, test) batches with labels and keys, the target among them;
           an auxiliary takes part where it has labels and a test split. For a joint view its
           batches hold the samples that belong to the target's, under the same keys
    grid   values of C, of which validation picks one per view

    Raises what `linear_probe` raises for a single view.
    """
    features: dict[str, dict[str, Features]] = {}
    for name, splits in parts.items():
        extracted = [_features(learner, name, batches) for batches in splits]
        features[name] = dict(zip(SPLITS, extracted, strict=True))
    return probe_features(target, features, grid)


def probe_features(
    target: str, features: Mapping[str, Mapping[str, Features]], grid: Sequence[float] = GRID_C
) -> Views:
    """`probe_views` on features that are already there: modality -> split -> features."""
    results, left_out = {}, {}
    for name in [target, *(n for n in features if n != target)]:
        results[name] = _probe([features[name][split] for split in SPLITS], grid)
        if name == target:
            continue
        view = f"{target}+{name}"
        joined = [paired(features[target][split], features[name][split]) for split in SPLITS]
        why = next((x for x in joined if isinstance(x, str)), None)
        if why is None:
            results[view] = _probe([x for x in joined if isinstance(x, Features)], grid)
        else:
            left_out[view] = why
    return Views(results, left_out)


def paired(a: Features, b: Features) -> Features | str:
    """Features of `a` and `b` side by side for the keys that both hold, in the order of `a`.

    Equal keys alone mean nothing, for many sets are simply numbered: pairs must agree in every
    label, and most samples of `a` must have one. Otherwise returns why these are no pairs.
    """
    place = {key: row for row, key in enumerate(b.keys)}
    rows = np.array([row for row, key in enumerate(a.keys) if key in place], dtype=np.int64)
    if not len(rows):
        return "no key of one modality occurs in the other"
    others = np.array([place[a.keys[row]] for row in rows])
    differ = int((a.y[rows] != b.y[others]).sum())
    if differ:
        return f"{differ} of {len(rows)} equal keys have different labels, so they are no pairs"
    if 2 * len(rows) < len(a.keys):
        return f"only {len(rows)} of {len(a.keys)} samples have a partner"
    x = np.concatenate([a.x[rows], b.x[others]], axis=1)
    return Features(x, a.y[rows], [a.keys[row] for row in rows])


def _features(learner: UnpairedLearner, name: str, batches: Sequence[Batch]) -> Features:
    x, y = embeddings(learner, name, batches)
    return Features(x, y, [key for batch in batches for key in batch.keys])


def _probe(splits: Sequence[Features], grid: Sequence[float]) -> ProbeResult:
    """A probe on the labelled samples of each split."""
    train, val, test = [(x[y >= 0], y[y >= 0]) for x, y, _ in splits]
    return linear_probe(*train, *val, *test, grid=grid)
