"""How well classes separate: silhouette and Davies-Bouldin index (paper section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import Estimate, resample, spread, subsample
from uml_core.errors import UserError

MAX_SAMPLES = 2000  # silhouette is quadratic in the samples


@dataclass(frozen=True)
class Separability:
    """Both indices on the same rows, with Euclidean distances.

    silhouette       in [-1, 1], larger = better separated
    davies_bouldin   >= 0, smaller = better separated
    silhouettes      (samples,) per sample, for paired comparisons of two arms
    rows             (samples,) rows used: a seeded subsample of at most `max_samples`
    """

    silhouette: Estimate
    davies_bouldin: Estimate
    silhouettes: np.ndarray
    rows: np.ndarray


def separability(
    features: np.ndarray,
    labels: np.ndarray,
    repeats: int = 50,
    seed: int = 0,
    max_samples: int = MAX_SAMPLES,
) -> Separability:
    """Silhouette and Davies-Bouldin index of features (N, D) under labels (N,).

    Both intervals draw samples again within each class and take the spread of the index (copies
    of a sample shrink its class, see `bootstrap.spread`). Compare arms on the same rows.
    Raises UserError unless 2 <= classes < samples.
    """
    # A second to import, for processes that analyse nothing.
    from sklearn.metrics import davies_bouldin_score, pairwise_distances

    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    rows = subsample(len(features), max_samples, seed)
    features, labels = features[rows], labels[rows]
    classes, positions = np.unique(labels, return_inverse=True)
    if not 2 <= len(classes) < len(labels):
        raise UserError(
            "separability needs at least two classes and fewer classes than samples; "
            f"there are {len(classes)} classes and {len(labels)} samples"
        )
    distances = pairwise_distances(features)
    silhouettes = _silhouettes(distances, positions, np.ones(len(labels)))
    silhouette_draws, index_draws = [], []
    for drawn in resample(len(labels), repeats, seed, strata=labels):
        copies = np.bincount(drawn, minlength=len(labels)).astype(np.float64)
        values = _silhouettes(distances, positions, copies)
        silhouette_draws.append(np.average(values, weights=copies))
        index_draws.append(davies_bouldin_score(features[drawn], labels[drawn]))
    return Separability(
        silhouette=spread(float(silhouettes.mean()), np.array(silhouette_draws)),
        davies_bouldin=spread(davies_bouldin_score(features, labels), np.array(index_draws)),
        silhouettes=silhouettes,
        rows=rows,
    )


def _silhouettes(distances: np.ndarray, positions: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """(N,) silhouette of each sample when sample j occurs copies[j] times.

    scikit-learn's definition (0 for a class of one sample), which takes no weights. A sample's
    own copies are not its neighbours: at distance zero they would inflate every value.
    """
    rows = np.arange(len(positions))
    members = np.zeros((len(positions), positions.max() + 1))
    members[rows, positions] = copies
    sizes = members.sum(0)
    sums = distances @ members
    others = sizes[positions] - copies
    own = np.divide(sums[rows, positions], others, out=np.zeros(len(rows)), where=others > 0)
    means = sums / sizes
    means[rows, positions] = np.inf
    nearest = means.min(1)
    larger = np.maximum(own, nearest)
    defined = (others > 0) & (larger > 0)
    return np.divide(nearest - own, larger, out=np.zeros(len(rows)), where=defined)
