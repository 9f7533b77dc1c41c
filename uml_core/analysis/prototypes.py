"""Class prototypes: does each row of the shared head point at its class in the other modality?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import (
    Estimate,
    bootstrap_mean,
    permutation_null,
    permutation_p,
)
from uml_core.errors import UserError


@dataclass(frozen=True)
class Prototypes:
    """Inner products of head rows with class means, and how far the diagonal stands out.

    matrix      (K, K) head row of class i with the mean of class j, K = classes with samples
    classes     (K,) their labels
    dominance   mean over rows of (diagonal - mean of the rest) / standard deviation of the rest
    null_high   95 % quantile of dominance when class means are given to classes at random
    p_value     one-sided, against the same
    hit_rate    share of rows whose largest entry is on the diagonal, in [0, 1]
    """

    matrix: np.ndarray
    classes: np.ndarray
    dominance: Estimate
    null_high: float
    p_value: float
    hit_rate: Estimate


def class_means(
    features: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """((C, D) means, (C,) counts) of features (N, D) by label (N,); zero rows where no sample.

    Rows labelled below 0 are left out. Raises UserError for labels above C - 1.
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    features, labels = features[labels >= 0], labels[labels >= 0]
    if len(labels) and labels.max() >= num_classes:
        raise UserError(f"label {labels.max()} does not fit {num_classes} classes")
    counts = np.bincount(labels, minlength=num_classes)
    order = np.argsort(labels, kind="stable")
    present = np.flatnonzero(counts)
    means = np.zeros((num_classes, features.shape[1]))
    if len(present):
        starts = np.concatenate([[0], np.cumsum(counts[present])[:-1]])
        sums = np.add.reduceat(features[order], starts, axis=0)
        means[present] = sums / counts[present, None]
    return means, counts


def prototype_map(
    head: np.ndarray,
    auxiliary: np.ndarray,
    labels: np.ndarray,
    repeats: int = 1000,
    seed: int = 0,
) -> Prototypes:
    """Heat map of head rows (C, D) against class means of auxiliary features (N, D).

    labels (N,) in [0, C); classes without auxiliary samples are left out. The features are the
    head's inputs in the auxiliary modality (paper section 4, Fig 47). Intervals are bootstraps
    over classes. Raises UserError for unequal widths or fewer than three classes.
    """
    head = np.asarray(head, np.float64)
    if head.ndim != 2 or np.ndim(auxiliary) != 2 or head.shape[1] != np.shape(auxiliary)[1]:
        raise UserError(
            f"head {head.shape} and auxiliary features {np.shape(auxiliary)} differ in width; "
            "give the features as they enter the head"
        )
    means, counts = class_means(auxiliary, labels, len(head))
    classes = np.flatnonzero(counts)
    k = len(classes)
    if k < 3:
        raise UserError(f"a prototype map needs at least three classes with samples, not {k}")
    matrix = head[classes] @ means[classes].T
    rows = _dominance(matrix)
    null = permutation_null(lambda order: _dominance(matrix[:, order]).mean(), k, repeats, seed)
    return Prototypes(
        matrix=matrix,
        classes=classes,
        dominance=bootstrap_mean(rows, repeats, seed),
        null_high=float(np.quantile(null, 0.95)),
        p_value=permutation_p(rows.mean(), null),
        hit_rate=bootstrap_mean(matrix.argmax(1) == np.arange(k), repeats, seed),
    )


def _dominance(matrix: np.ndarray) -> np.ndarray:
    """(K,) standard scores of the diagonal among the rest of its row; 0 where the rest is flat."""
    k = len(matrix)
    rest = matrix[~np.eye(k, dtype=bool)].reshape(k, k - 1)
    gap, scale = np.diag(matrix) - rest.mean(1), rest.std(1)
    return np.divide(gap, scale, out=np.zeros(k), where=scale > 0)
