"""Which classes are taken for each other: counts, and the pair that is mixed up most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import Estimate, bootstrap_mean
from uml_core.errors import UserError


@dataclass(frozen=True)
class Confusion:
    """Counts of a labelled test set.

    matrix  (C, C): samples of class i that were called class j
    pair    the two classes that are most often called each other, None where no two are
    share   of the pair's samples called the other one, with a bootstrap interval over samples;
            the pair was picked because it is the largest, so the share of new data tends lower
    """

    matrix: np.ndarray
    pair: tuple[int, int] | None
    share: Estimate | None


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> Confusion:
    """Counts of true labels (N,) against predicted ones (N,), both in [0, C).

    Equal shares take the pair with more samples, then the first. Raises UserError for labels
    outside the classes.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    both = np.concatenate([labels, predicted])
    if labels.shape != predicted.shape or len(labels) == 0:
        raise UserError(f"confusion needs (N,) labels twice: {labels.shape}, {predicted.shape}")
    if both.min() < 0 or both.max() >= num_classes:
        raise UserError(f"labels must be in [0, {num_classes})")
    cells = labels.astype(np.int64) * num_classes + predicted
    matrix = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    mixed = np.triu(matrix + matrix.T, 1)
    if not mixed.any():
        return Confusion(matrix, None, None)
    counts = matrix.sum(1)
    together = np.maximum(counts[:, None] + counts, 1)
    share = mixed / together
    best = np.argwhere(share == share.max())
    a, b = max(best.tolist(), key=lambda pair: together[tuple(pair)])
    rows = np.isin(labels, (a, b))
    other = np.where(labels[rows] == a, b, a)
    return Confusion(matrix, (a, b), bootstrap_mean(predicted[rows] == other))
