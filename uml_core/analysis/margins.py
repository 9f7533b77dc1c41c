"""Functional margin of a linear head: how far samples lie from the nearest wrong class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import Estimate, bootstrap_mean
from uml_core.errors import UserError


@dataclass(frozen=True)
class Margins:
    """Margins in the units of the features; compare arms only where features share a scale.

    margins         (N,) one per sample, negative = classified wrongly
    mean            their mean with a bootstrap interval over samples
    positive_share  share of samples with a margin above zero, likewise
    """

    margins: np.ndarray
    mean: Estimate
    positive_share: Estimate


def functional_margins(
    features: np.ndarray, labels: np.ndarray, head: np.ndarray, repeats: int = 1000, seed: int = 0
) -> Margins:
    """gamma_i = (w_y'x_i - w_j'x_i) / |w_y - w_j|, j the wrong class of largest score.

    features (N, D), labels (N,) in [0, C), head (C, D) without bias (paper F.3, Eq 5). Zero
    where w_y = w_j. For two arms on the same samples, `bootstrap.mean_difference` of their
    `margins` gives the paired interval. Raises UserError for fewer than two classes or labels
    outside the head.
    """
    features, head = np.asarray(features, np.float64), np.asarray(head, np.float64)
    labels = np.asarray(labels)
    if len(head) < 2:
        raise UserError("a margin needs a head of at least two classes")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(head):
        raise UserError(f"labels must be in [0, {len(head)}) to have a margin under this head")
    rows = np.arange(len(labels))
    scores = features @ head.T
    own = scores[rows, labels]
    scores[rows, labels] = -np.inf
    rival = scores.argmax(1)
    distance = np.linalg.norm(head[labels] - head[rival], axis=1)
    gap = own - scores[rows, rival]
    margins = np.divide(gap, distance, out=np.zeros_like(gap), where=distance > 0)
    return Margins(
        margins=margins,
        mean=bootstrap_mean(margins, repeats, seed),
        positive_share=bootstrap_mean(margins > 0, repeats, seed),
    )
