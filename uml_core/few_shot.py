"""The few-shot protocol on a frozen representation: k labelled samples per class, several draws.

k = 1, 2, 4, 8, 16 samples per class for training, min(4, k) for validation, over fixed split
seeds (paper 2.3 and 3.5). Each draw fits a linear probe whose C validation picks.

Shape legend: N samples, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uml_core.errors import UserError
from uml_core.probes import GRID_C, few_shot_split, linear_probe
from uml_core.statistics import Gain, mean_interval

SHOTS = (1, 2, 4, 8, 16)
SPLIT_SEEDS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class FewShot:
    """Test accuracies in percent at one k: one per split seed, and their mean with t interval."""

    shots: int
    accuracies: list[float]
    mean: Gain


@dataclass(frozen=True)
class FewShotCurve:
    """Every k that could be drawn; the others with the reason, as a sentence without full stop."""

    points: list[FewShot]
    left_out: dict[int, str]


def few_shot_curve(
    pool: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    shots: Sequence[int] = SHOTS,
    split_seeds: Sequence[int] = SPLIT_SEEDS,
    grid: Sequence[float] = GRID_C,
    classes: Sequence[str] | None = None,
    *,
    modality: str,
) -> FewShotCurve:
    """Linear probes from k samples per class of `pool`, each judged on all of `test`.

    pool, test   (features (N, D), labels (N,)); pool rows labelled -1 are never drawn
    modality     of the pool: names the draws
    classes      names in label order; with them, classes absent from the pool are found too

    The interval is over split seeds: it tells how much the choice of the k samples matters, not
    how another training of the model would fare. Raises UserError for fewer than two classes.
    """
    x, y = pool
    points, left_out = [], {}
    for k in shots:
        try:
            splits = [
                few_shot_split(y, k, seed, classes=classes, modality=modality)
                for seed in split_seeds
            ]
        except UserError as error:
            more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
            left_out[k] = error.problems[0] + more
            continue
        accuracies = []
        for train, val in splits:
            found = linear_probe(x[train], y[train], x[val], y[val], *test, grid=grid)
            assert found.test_accuracy is not None
            accuracies.append(found.test_accuracy)
        points.append(FewShot(k, accuracies, mean_interval(accuracies)))
    return FewShotCurve(points, left_out)
