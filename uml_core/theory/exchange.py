"""What one sample of Y is worth in samples of X, and how to split a budget between them.

Source: the paper's reading of Theorem 3 (sections 1 and 3.1) that a sample of Y can be worth more
than one more sample of X, made exact: the rate depends on the direction, and along the
`principal_exchange` directions it does not depend on how many samples there are already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from uml_core.theory.fisher import (
    RANGE_TOLERANCE,
    Array,
    Information,
    joint_information,
    pseudo_inverse,
    range_projector,
)


def exchange_rate(per_x: Array, per_y: Array, v: Array) -> Array:
    """Y samples that carry as much information along v as one X sample, (...).

    v' M_X v / v' M_Y v with ``per_x``, ``per_y`` (..., d, d) the information of ONE average sample
    (noise included) and ``v`` (..., d). Below 1 a Y sample is worth more than an X sample;
    0 = X knows nothing, inf = Y knows nothing, nan = neither does.
    """
    of_x, of_y = (np.einsum("...i,...ij,...j->...", v, m, v) for m in (per_x, per_y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return of_x / of_y


@dataclass(frozen=True)
class PrincipalExchange:
    """Directions in which X and Y can be traded independently of each other.

    ``rates`` (d,) ascending: Y samples per X sample; ``directions`` (d, d), columns v_i with
    Var(v_i'theta) = 1 / (n_x share_i + n_y (1 - share_i)); ``share`` (d,) in [0, 1], X's part.
    """

    rates: Array
    directions: Array
    share: Array

    def variance(self, n_x: float, n_y: float) -> Array:
        """Variance along each direction with n_x and n_y samples, (d,); inf if nothing sees it."""
        with np.errstate(divide="ignore"):
            return 1 / (n_x * self.share + n_y * (1 - self.share))


def principal_exchange(per_x: Array, per_y: Array) -> PrincipalExchange:
    """Exchange rate per principal direction, from per-sample informations (d, d).

    The generalised eigenvectors w of (per_x, per_x + per_y) make both matrices diagonal at once;
    along v = (per_x + per_y) w the variance depends on that direction's information only, so the
    rate v'M_X v / v'M_Y v of Corollary 1's common eigenvectors extends to any pair of matrices.
    Raises ValueError where neither modality sees some direction.
    """
    total = per_x + per_y
    if np.linalg.eigvalsh(total)[0] <= RANGE_TOLERANCE * np.linalg.norm(total):
        raise ValueError("some direction is seen by neither X nor Y: leave it out first")
    share, w = linalg.eigh(per_x, total)
    share = np.clip(share, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        rates = share / (1 - share)
    return PrincipalExchange(rates, total @ w, share)


@dataclass(frozen=True)
class Budget:
    """The best split of a budget: ``errors`` (total + 1,) is the error at n_y = 0 ... total."""

    total: int
    n_x: int
    n_y: int
    errors: Array

    @property
    def error(self) -> float:
        """Error at the best split, in squared units of X."""
        return float(self.errors[self.n_y])

    @property
    def x_only_error(self) -> float:
        """Error with every sample spent on X; inf if X alone leaves a needed direction open."""
        return float(self.errors[0])


def reconstruction_error(information: Array, target: Array) -> Array:
    """Expected squared error of X rebuilt from the estimates: tr(A Cov A'), (...).

    ``information`` (..., d, d) over [theta_c, theta_x, theta_y]; ``target`` (d_c + d_x, d_c + d_x)
    the average of [A_c A_x]'[A_c A_x] over the X samples to rebuild. The noise of X itself is not
    counted. inf where a direction that the target needs cannot be estimated.
    """
    width = target.shape[-1]
    weight = np.zeros(information.shape[-2:])
    weight[:width, :width] = target
    open_part = np.eye(len(weight)) - range_projector(information)
    missing = np.einsum("...ij,ji->...", open_part, weight)
    error = np.einsum("...ij,ji->...", pseudo_inverse(information), weight)
    return np.where(missing > RANGE_TOLERANCE * np.trace(weight), np.inf, error)


def best_budget(per_x: Information, per_y: Information, target: Array, total: int) -> Budget:
    """Split ``total`` samples into n_x + n_y so that X is rebuilt best; all splits are tried.

    ``per_x``, ``per_y``: information of one average sample; ``target`` (d_c + d_x, d_c + d_x) as
    in `reconstruction_error`. Private parameters count as unknown, so theta_x needs X samples.
    """
    n_y = np.arange(total + 1)
    information = joint_information(per_x.scaled(total - n_y), per_y.scaled(n_y))
    errors = reconstruction_error(information, target)
    best = int(np.argmin(errors))
    return Budget(total, total - best, best, errors)
