"""Two classes and the boundary between them, seen in the plane that shows both (paper F.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import Estimate, bootstrap_mean, percentile, resample
from uml_core.errors import UserError


@dataclass(frozen=True)
class DecisionPlane:
    """Samples of classes a and b in two directions of feature space.

    points    (N, 2) dot products with the axes; the boundary is the line points[:, 0] = 0 and
              positive values are decided for a (the head has no bias)
    labels    (N,) a or b
    classes   (a, b)
    axes      (2, D) orthonormal: (w_a - w_b) normalised; the difference of the class means
              without its part along the first, zero where nothing is left of it
    accuracy  share of samples on their class's side, in [0, 1]
    gap       difference of the class means along the first axis, in feature units
    """

    points: np.ndarray
    labels: np.ndarray
    classes: tuple[int, int]
    axes: np.ndarray
    accuracy: Estimate
    gap: Estimate


def decision_plane(
    features: np.ndarray,
    labels: np.ndarray,
    head: np.ndarray,
    a: int,
    b: int,
    repeats: int = 1000,
    seed: int = 0,
) -> DecisionPlane:
    """The plane of features (N, D), labels (N,), head (C, D) for classes a and b (paper F.2).

    Intervals are bootstraps over samples, for the gap within each class. Raises UserError when a
    class has no sample or the head does not tell the two apart.
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    head = np.asarray(head, np.float64)
    for c in (a, b):
        if not 0 <= c < len(head) or not (labels == c).any():
            raise UserError(f"decision plane: class {c} has no sample or no row in the head")
    normal = head[a] - head[b]
    if not np.linalg.norm(normal) > 0:
        raise UserError(f"decision plane: the head's rows of classes {a} and {b} are equal")
    first = normal / np.linalg.norm(normal)
    kept = np.isin(labels, (a, b))
    features, labels = features[kept], labels[kept]
    between = features[labels == a].mean(0) - features[labels == b].mean(0)
    rest = between - (between @ first) * first
    size = np.linalg.norm(rest)
    second = rest / size if size > 1e-9 * np.linalg.norm(between) else np.zeros_like(rest)
    axes = np.stack([first, second])
    points = features @ axes.T
    sides = np.where(labels == a, 1.0, -1.0)
    draws = [
        _gap(points[rows, 0], labels[rows], a, b)
        for rows in resample(len(labels), repeats, seed, labels)
    ]
    return DecisionPlane(
        points=points,
        labels=labels,
        classes=(a, b),
        axes=axes,
        accuracy=bootstrap_mean(points[:, 0] * sides > 0, repeats, seed),
        gap=percentile(_gap(points[:, 0], labels, a, b), np.array(draws)),
    )


def _gap(values: np.ndarray, labels: np.ndarray, a: int, b: int) -> float:
    return float(values[labels == a].mean() - values[labels == b].mean())
