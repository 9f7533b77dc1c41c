"""Do two representations of the same items agree? CKA and mutual kNN against shuffled pairs.

Row i of both inputs must be the same item: a paired sample (for measurement only), the mean of
class i in two modalities, or one data set under two models. Paper section 4 and the authors'
code bases use these measures to follow alignment over training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uml_core.analysis.bootstrap import permutation_null, permutation_p, subsample
from uml_core.errors import UserError

MAX_SAMPLES = 2000  # the measures are quadratic in the samples


@dataclass(frozen=True)
class Alignment:
    """One measure and its permutation baseline.

    value          in [0, 1]
    null_mean      mean over shuffled pairings: what no agreement at all gives at this size
    null_high      95 % quantile of the same
    p_value        one-sided, against the shuffled pairings
    samples        rows used (a seeded subsample of the rows given, at most `max_samples`)
    permutations   number of shuffled pairings
    """

    measure: str
    value: float
    null_mean: float
    null_high: float
    p_value: float
    samples: int
    permutations: int


def linear_cka(
    x: np.ndarray,
    y: np.ndarray,
    permutations: int = 200,
    seed: int = 0,
    max_samples: int = MAX_SAMPLES,
) -> Alignment:
    """Linear centred kernel alignment of x (N, D) and y (N, E), rows paired.

    |Y'X|_F^2 / (|X'X|_F |Y'Y|_F) with centred columns (Kornblith et al. 2019, arXiv 1905.00414).
    Invariant to rotation and one common scale of each side. Biased upwards when N is not much
    larger than D: read it against `null_mean`. Raises UserError for unpaired shapes.
    """
    x, y = _paired(x, y, max_samples, seed)
    return _cka("linear CKA", x @ x.T, y @ y.T, permutations, seed)


def rbf_cka(
    x: np.ndarray,
    y: np.ndarray,
    permutations: int = 200,
    seed: int = 0,
    max_samples: int = MAX_SAMPLES,
) -> Alignment:
    """CKA with Gaussian kernels exp(-d^2 / (2 s^2)), s the median distance of each side.

    x (N, D), y (N, E), rows paired (Kornblith et al. 2019). Errors as `linear_cka`.
    """
    x, y = _paired(x, y, max_samples, seed)
    return _cka("RBF CKA", _gaussian(x), _gaussian(y), permutations, seed)


def mutual_knn(
    x: np.ndarray,
    y: np.ndarray,
    k: int = 10,
    permutations: int = 200,
    seed: int = 0,
    max_samples: int = MAX_SAMPLES,
) -> Alignment:
    """Share of common members of the k cosine neighbours of each item in x and in y.

    x (N, D), y (N, E), rows paired (Huh et al. 2024, arXiv 2405.07987). Its value for unrelated
    representations is k / (N - 1), so values compare only at equal `samples` and k. Raises
    UserError unless 1 <= k < N.
    """
    x, y = _paired(x, y, max_samples, seed)
    n = len(x)
    if not 1 <= k < n:
        raise UserError(f"mutual kNN needs 1 <= k < samples; k is {k} with {n} samples")
    near_x, near_y = _nearest(x, k), _nearest(y, k)
    is_near_y = np.zeros((n, n), dtype=bool)
    np.put_along_axis(is_near_y, near_y, True, axis=1)

    def overlap(order: np.ndarray) -> float:
        return float(is_near_y[order[:, None], order[near_x]].mean())  # item i shows y[order[i]]

    null = permutation_null(overlap, n, permutations, seed)
    return _against("mutual kNN", overlap(np.arange(n)), null, n)


def _paired(
    x: np.ndarray, y: np.ndarray, max_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 3:
        raise UserError(
            "alignment needs paired rows (N, D) and (N, E) with N >= 3, not "
            f"{x.shape} and {y.shape}; for unpaired modalities compare their class means"
        )
    rows = subsample(len(x), max_samples, seed)
    return x[rows], y[rows]


def _cka(
    measure: str, gram_x: np.ndarray, gram_y: np.ndarray, permutations: int, seed: int
) -> Alignment:
    n = len(gram_x)
    a, b = _centred(gram_x), _centred(gram_y)
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    if scale == 0:
        raise UserError(f"{measure}: one side is constant over the samples")

    def value(order: np.ndarray) -> float:
        return float(np.vdot(a, b[np.ix_(order, order)]) / scale)

    null = permutation_null(value, n, permutations, seed)
    return _against(measure, value(np.arange(n)), null, n)


def _against(measure: str, value: float, null: np.ndarray, samples: int) -> Alignment:
    return Alignment(
        measure=measure,
        value=value,
        null_mean=float(null.mean()),
        null_high=float(np.quantile(null, 0.95)),
        p_value=permutation_p(value, null),
        samples=samples,
        permutations=len(null),
    )


def _centred(gram: np.ndarray) -> np.ndarray:
    return gram - gram.mean(0) - gram.mean(1, keepdims=True) + gram.mean()


def _gaussian(x: np.ndarray) -> np.ndarray:
    squares = (x**2).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0)
    median = np.median(distances[np.triu_indices(len(x), 1)])
    return np.exp(-distances / (2 * median)) if median > 0 else np.ones_like(distances)


def _nearest(x: np.ndarray, k: int) -> np.ndarray:
    """(N, k) indices of the k other rows of largest cosine similarity."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(norms > 0, norms, 1.0)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argpartition(-similarity, k - 1, axis=1)[:, :k]
