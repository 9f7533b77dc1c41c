"""Fisher information of the linear-Gaussian model: who knows what about the shared parameters.

Source: paper, section 3.1 and appendix C. One fixed unknown vector theta = [theta_c, theta_x,
theta_y] is observed through known designs,

    X_i = A_c,i theta_c + A_x,i theta_x + noise of standard deviation s_x     (Eq 1)
    Y_j = B_c,j theta_c + B_y,j theta_y + noise of standard deviation s_y     (Eq 2)

and nothing is paired. The paper leaves the factor 1/s^2 out and treats theta_x, theta_y as known
where it reads variances off the shared block; here the noise is always in, and both cases exist:
`Information.cc` (private parameters known) and `schur` (private parameters estimated too).

Every function takes leading batch axes ``...``; designs, observations and parameters may be in any
units, informations are then in 1/units^2 of the parameters and variances in units^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

Array = np.ndarray
Estimator = Literal["x_only", "joint", "weighted"]

RANK_TOLERANCE = 1e-10  # eigenvalues below this share of the largest count as zero
RANGE_TOLERANCE = 1e-8  # a direction with a larger share of its length outside is not in the range


@dataclass(frozen=True)
class Samples:
    """The known designs of one modality's samples.

    ``shared`` (..., N, m, d_c) and ``private`` (..., N, m, d_p): N samples of m numbers each;
    ``noise``: standard deviation of each number, scalar or (...). ``private`` may be 0 wide.
    """

    shared: Array
    private: Array
    noise: ArrayLike

    def __post_init__(self) -> None:
        if self.shared.shape[:-1] != self.private.shape[:-1]:
            raise ValueError(
                f"shared {self.shared.shape} and private {self.private.shape} must agree in all "
                "axes but the last: the same samples, seen by two parameter blocks"
            )
        if np.any(np.asarray(self.noise) <= 0):
            raise ValueError("noise is a standard deviation and must be positive")


@dataclass(frozen=True)
class Information:
    """Fisher information of one modality about (theta_c, its private theta), in blocks.

    ``cc`` (..., d_c, d_c), ``cp`` (..., d_c, d_p), ``pp`` (..., d_p, d_p). Sums over samples;
    ``scaled(1 / N)`` gives the per-sample average.
    """

    cc: Array
    cp: Array
    pp: Array

    def scaled(self, factor: ArrayLike) -> Information:
        """``factor`` (...) times the information: that of ``factor`` times as many such samples."""
        f = np.asarray(factor, float)[..., None, None]
        return Information(self.cc * f, self.cp * f, self.pp * f)


def fisher_information(samples: Samples) -> Information:
    """Information of one modality: sums of A'A / s^2 (App C; 1/s^2 is missing in the paper)."""
    precision = np.asarray(samples.noise, float)[..., None, None] ** -2

    def gram(left: Array, right: Array) -> Array:
        return precision * (_t(_rows(left)) @ _rows(right))

    c, p = samples.shared, samples.private
    return Information(gram(c, c), gram(c, p), gram(p, p))


def joint_information(x: Information, y: Information) -> Array:
    """I_X + I_Y over [theta_c, theta_x, theta_y], (..., d, d): independent data sets add up."""
    c, dx, dy = x.cc.shape[-1], x.pp.shape[-1], y.pp.shape[-1]
    full = np.zeros((*x.cc.shape[:-2], c + dx + dy, c + dx + dy))
    full[..., :c, :c] = x.cc + y.cc
    full[..., :c, c : c + dx], full[..., c : c + dx, :c] = x.cp, _t(x.cp)
    full[..., :c, c + dx :], full[..., c + dx :, :c] = y.cp, _t(y.cp)
    full[..., c : c + dx, c : c + dx], full[..., c + dx :, c + dx :] = x.pp, y.pp
    return full


def schur(info: Information) -> Array:
    """Information about theta_c when the private parameters are unknown, (..., d_c, d_c).

    S = I_cc - I_cp I_pp^+ I_pc. Private blocks do not overlap, so S_XY = S_X + S_Y.
    """
    return info.cc - info.cp @ pseudo_inverse(info.pp) @ _t(info.cp)


def _rows(design: Array) -> Array:
    """(..., N, m, d) -> (..., N*m, d): one row per observed number."""
    *batch, count, numbers, width = design.shape
    return design.reshape(*batch, count * numbers, width)


def _t(matrix: Array) -> Array:
    return np.swapaxes(matrix, -1, -2)


def _spectrum(matrix: Array, scale: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Eigenvalues, eigenvectors and which of them are not zero relative to ``scale``."""
    values, vectors = np.linalg.eigh((matrix + _t(matrix)) / 2)
    size = (
        values.max(-1, initial=0.0)
        if scale is None
        else np.broadcast_to(np.asarray(scale, float), values.shape[:-1])
    )
    return values, vectors, values > RANK_TOLERANCE * size[..., None]


def pseudo_inverse(matrix: Array, scale: ArrayLike | None = None) -> Array:
    """Moore-Penrose inverse of a positive semidefinite matrix, (..., d, d).

    ``scale``: the size of a number that is not zero (default: the largest eigenvalue). Needed for
    differences such as Schur complements, whose own largest eigenvalue may be rounding error.
    """
    values, vectors, kept = _spectrum(matrix, scale)
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=kept)
    return (vectors * inverse[..., None, :]) @ _t(vectors)


def dirvar(information: Array, v: Array, scale: ArrayLike | None = None) -> Array:
    """Variance of the best unbiased estimate of v'theta: v'M^+v if v is in range(M), else inf.

    ``information`` (..., d, d) positive semidefinite, ``v`` (..., d); returns (...). ``scale`` as
    in `pseudo_inverse`. A direction with a part outside the range cannot be estimated at all.
    """
    values, vectors, kept = _spectrum(information, scale)
    parts = np.einsum("...ij,...i->...j", vectors, v) ** 2
    outside = np.where(kept, 0.0, parts).sum(-1)
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=kept)
    variance = (parts * inverse).sum(-1)
    return np.where(outside > RANGE_TOLERANCE**2 * parts.sum(-1), np.inf, variance)


def range_projector(matrix: Array, scale: ArrayLike | None = None) -> Array:
    """Orthogonal projector onto the range of a positive semidefinite matrix, (..., d, d)."""
    _, vectors, kept = _spectrum(matrix, scale)
    return (vectors * kept[..., None, :]) @ _t(vectors)


def stack_rows(x: Samples, y: Samples | None) -> tuple[Array, Array]:
    """One linear system for unbatched samples: rows (R, d) over [c, x, y] and noise std (R,)."""
    c, dx = x.shared.shape[-1], x.private.shape[-1]
    dy = 0 if y is None else y.private.shape[-1]
    blocks, noise = [], []
    for samples, start in ((x, c), (y, c + dx)):
        if samples is None:
            continue
        shared, private = _rows(samples.shared), _rows(samples.private)
        rows = np.zeros((len(shared), c + dx + dy))
        rows[:, :c] = shared
        rows[:, start : start + private.shape[-1]] = private
        blocks.append(rows)
        noise.append(np.full(len(shared), float(np.asarray(samples.noise))))
    return np.concatenate(blocks), np.concatenate(noise)


def least_squares(
    x: Samples, y: Samples, observed_x: Array, observed_y: Array, estimator: Estimator
) -> Array:
    """Estimates from R repeats of the noise: observed_x (N_x*m, R), observed_y (N_y*n, R).

    Returns [theta_c, theta_x, theta_y], (d, R), without theta_y for ``x_only``.

    ``x_only`` uses X; ``joint`` minimises the plain sum of squared residuals (the paper's
    theta_XY); ``weighted`` divides each residual by its noise (the maximum-likelihood estimate).
    Shortest solution where the system leaves a direction open.
    """
    if estimator == "x_only":
        rows, _ = stack_rows(x, None)
        return linalg.lstsq(rows, observed_x)[0]
    rows, noise = stack_rows(x, y)
    observed = np.concatenate([observed_x, observed_y])
    if estimator == "weighted":
        rows, observed = rows / noise[:, None], observed / noise[:, None]
    return linalg.lstsq(rows, observed)[0]


def estimator_covariance(x: Samples, y: Samples, estimator: Estimator) -> Array:
    """Covariance of `least_squares`' theta_c, (..., d_c, d_c), private parameters estimated too.

    The sandwich H^+ J H^+: H the curvature of the loss that is minimised, J the covariance of its
    gradient. For ``weighted`` H = J and it is the inverse Fisher information. Valid along
    identified directions only; `dirvar` says which these are.
    """
    info_x, info_y = fisher_information(x), fisher_information(y)
    if estimator == "x_only":
        info_y = info_y.scaled(0.0)
    if estimator == "weighted":
        curvature = gradient = joint_information(info_x, info_y)
    else:
        var_x, var_y = (np.asarray(s.noise, float) ** 2 for s in (x, y))
        # Without weights the loss has no 1/s^2 (curvature), but its gradient still has the noise.
        curvature = joint_information(info_x.scaled(var_x), info_y.scaled(var_y))
        gradient = joint_information(info_x.scaled(var_x**2), info_y.scaled(var_y**2))
    bread = pseudo_inverse(curvature)
    c = info_x.cc.shape[-1]
    return (bread @ gradient @ bread)[..., :c, :c]


def relative_fall(before: Array, after: Array) -> Array:
    """Smallest relative fall of the variance over all directions, (...): 1 - max_v after/before.

    ``before`` (..., d, d) positive definite, ``after`` (..., d, d). Above 0 means after < before in
    the Loewner order; below 0 means that the variance of some direction rises.
    """
    half = np.linalg.inv(np.linalg.cholesky(before))
    return 1 - np.linalg.eigvalsh(half @ after @ _t(half))[..., -1]
