"""Where the paper's statements fail as written (section 1.3 of our notes on its theory).

Each check states the paper's claim in its literal form, so ``expected`` is False: the smallest
problem we know refutes it. ``note`` says what is true instead; those corrected forms are checked
in `statements`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from uml_core.theory.exchange import best_budget
from uml_core.theory.fisher import (
    Samples,
    dirvar,
    estimator_covariance,
    fisher_information,
    pseudo_inverse,
    relative_fall,
    schur,
)
from uml_core.theory.instances import EXACT, STRICT, Check, Size, x_samples, y_samples
from uml_core.theory.measured import MAX_SCORE, REPEATS, covariance_scores, first, simulate

Rng = np.random.Generator


def unweighted_noise(rng: Rng, instances: int) -> Check:
    """Theorem 1 for the paper's own estimator: the plain sum of squared residuals."""
    size = Size(3, 1, 1, 5, 5, 4)
    x, y = first(x_samples(rng, 1, size)), first(y_samples(rng, 1, size))
    x, y = Samples(x.shared, x.private[..., :0], 0.3), Samples(y.shared, y.private[..., :0], 3.0)
    cov = {e: estimator_covariance(x, y, e) for e in ("x_only", "joint", "weighted")}
    errors = simulate(rng, x, y, "joint", REPEATS)
    fall = float(relative_fall(cov["x_only"], cov["joint"]))
    return Check(
        "CX1-unweighted-noise",
        "Adding Y's squared residuals to X's lowers the variance, however noisy Y is",
        False,
        fall > STRICT,
        {
            "noise_x": 0.3,
            "noise_y": 3.0,
            "x_only_variance": float(np.trace(cov["x_only"])),
            "joint_unweighted_variance": float(np.trace(cov["joint"])),
            "joint_unweighted_variance_measured": float((errors**2).mean(1).sum()),
            "joint_weighted_variance": float(np.trace(cov["weighted"])),
            "smallest_relative_fall": fall,
        },
        "Theorem 1 needs residuals weighted by 1/s^2 (or equal noise).",
    )


def private_confound(rng: Rng, instances: int) -> Check:
    """Theorem 1 with private parameters unknown: B_y,j = B_c,j, every B_c,j of full rank."""
    size = Size(4, 2, 4, 6, 6, 5)
    x, y = first(x_samples(rng, 1, size)), first(y_samples(rng, 1, size))
    y = Samples(y.shared, y.shared, y.noise)
    info_y = fisher_information(y)
    before = estimator_covariance(x, y, "x_only")
    fall = float(relative_fall(before, estimator_covariance(x, y, "weighted")))
    return Check(
        "CX2-private-confound",
        "One Y sample that sees every shared direction lowers the variance (private unknown)",
        False,
        fall > EXACT,
        {
            "smallest_rise_of_block_information": float(np.linalg.eigvalsh(info_y.cc)[0]),
            "rise_of_real_information": float(np.abs(schur(info_y)).max()),
            "largest_relative_change_of_variance": abs(fall),
        },
        "Y's private part must not mimic its shared part: the Schur complement S_Y must be > 0.",
    )


def joint_range(rng: Rng, instances: int) -> Check:
    """Corollary 2 and Theorem 2(2) without the range condition on M_XY."""
    m_x, m_y = np.zeros((2, 2)), np.diag([1.0, 0.0])
    v = np.array([1.0, 1.0])
    joint = float(dirvar(m_x + m_y, v))
    return Check(
        "CX3-range",
        "X knows nothing along v, Y knows something: with Y the variance along v is finite",
        False,
        bool(np.isfinite(joint)),
        {
            "information_x": float(v @ m_x @ v),
            "information_y": float(v @ m_y @ v),
            "x_only_variance": float(dirvar(m_x, v)),
            "joint_variance": joint,
        },
        "All of v must lie in range(M_XY), not only a part of it.",
    )


def lemma_2_kernel(rng: Rng, instances: int) -> Check:
    """Lemma 2 as a strict order on the whole space."""
    m, n = np.diag([1.0, 2.0, 0.0]), np.diag([2.0, 3.0, 0.0])
    gap = np.linalg.eigvalsh(pseudo_inverse(m) - pseudo_inverse(n))
    return Check(
        "CX4-lemma2-kernel",
        "If both leave the same directions unseen, more information is strictly better in all",
        False,
        bool(gap[0] > STRICT),
        {"smallest_gap": float(gap[0]), "smallest_gap_off_kernel": float(gap[1])},
        "Strict on the complement of the common kernel only (L2).",
    )


def missing_noise(rng: Rng, instances: int) -> Check:
    """Corollary 1 with informations as printed, without 1/s^2."""
    one = np.ones((1, 1, 1))
    x, y = Samples(one, one[..., :0], 1.0), Samples(one, one[..., :0], 2.0)
    a = b = 1.0  # A'A and B'B: what the paper calls the information
    before = float(estimator_covariance(x, y, "x_only")[0, 0])
    weighted = float(estimator_covariance(x, y, "weighted")[0, 0]) / before
    joint = float(estimator_covariance(x, y, "joint")[0, 0]) / before
    printed = a / (a + b)
    return Check(
        "CX5-missing-noise",
        "The variance shrinks by a / (a + b) with a, b from the designs alone (no noise)",
        False,
        min(abs(weighted - printed), abs(joint - printed)) < EXACT,
        {
            "noise_x": 1.0,
            "noise_y": 2.0,
            "printed_factor": printed,
            "real_factor_weighted": weighted,
            "real_factor_unweighted": joint,
        },
        "a = v'Av / s_x^2 and b = v'Bv / s_y^2 (C1).",
    )


def block_covariance(rng: Rng, instances: int) -> Check:
    """Cov(theta_c) = inverse of the shared block, while the private parameters are estimated."""
    size = Size(3, 2, 2, 4, 4, 4)
    x, y = first(x_samples(rng, 1, size)), first(y_samples(rng, 1, size))
    # Private columns that resemble shared ones: knowing them or not makes a difference.
    x = replace(x, private=x.shared[..., :2] + 0.5 * x.private)
    y = replace(y, private=y.shared[..., :2] + 0.5 * y.private)
    errors = simulate(rng, x, y, "weighted", REPEATS)[: size.c]
    info = fisher_information(x).cc + fisher_information(y).cc
    real = schur(fisher_information(x)) + schur(fisher_information(y))
    scores = covariance_scores(errors, np.linalg.inv(info))
    return Check(
        "CX6-block-covariance",
        "The inverse of the shared block is the covariance of the shared estimate",
        False,
        float(np.abs(scores).max()) < MAX_SCORE,
        {
            "claimed_variance": float(np.trace(np.linalg.inv(info))),
            "measured_variance": float((errors**2).mean(1).sum()),
            "schur_variance": float(np.trace(np.linalg.inv(real))),
            "largest_score": float(np.abs(scores).max()),
            "allowed_score": MAX_SCORE,
        },
        "It is with known private parameters; otherwise invert the Schur complement (MC).",
    )


def mixed_direction(rng: Rng, instances: int) -> Check:
    """Corollary 3 and Theorem 2(2) inside range(M_X), for the real variance and M_X singular."""
    v, w = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    m_x, m_y = np.outer(v, v), np.outer(w, w)  # X measures theta_1, Y only theta_1 + theta_2
    before, after = float(dirvar(m_x, v)), float(dirvar(m_x + m_y, v))
    compressed = 1 / float(v @ (m_x + m_y) @ v)
    return Check(
        "CX7-mixed-direction",
        "Y seeing an eigen-direction lowers its variance, even if X does not see all",
        False,
        after < before * (1 - EXACT),
        {
            "x_only_variance": before,
            "joint_variance": after,
            "compressed_joint_variance": compressed,
            "information_y_along_v": float(v @ m_y @ v),
        },
        "Y measures v mixed with a direction nobody knows. Needs M_X > 0 or P_S M_Y P_S-perp = 0.",
    )


def pseudo_inverse_order(rng: Rng, instances: int) -> Check:
    """Theorem 1's proof reads the covariance off the pseudo-inverse although M_X is singular."""
    m_x, m_y = np.diag([1.0, 0.0]), np.eye(2)
    gap = float(np.linalg.eigvalsh(pseudo_inverse(m_x) - pseudo_inverse(m_x + m_y))[0])
    return Check(
        "CX8-pseudo-inverse",
        "The pseudo-inverse is the covariance and shrinks with Y, also where X sees too little",
        False,
        gap > STRICT,
        {
            "x_only_pseudo_inverse_along_unseen": 0.0,
            "joint_variance_along_unseen": float(pseudo_inverse(m_x + m_y)[1, 1]),
            "x_only_variance_along_unseen": float(dirvar(m_x, np.array([0.0, 1.0]))),
            "smallest_gap": gap,
        },
        "A pseudo-inverse is 0 along unseen directions, where the variance is infinite (dirvar).",
    )


def invisible_direction(rng: Rng, instances: int) -> Check:
    """The reading of Theorem 3: an advantage of Y somewhere makes Y samples pay for X."""
    x = Samples(np.array([[[1.0, 0.0]]]), np.zeros((1, 1, 0)), 1.0)
    y = Samples(np.array([[[0.0, 5.0]]]), np.zeros((1, 1, 0)), 1.0)
    info_x, info_y = fisher_information(x), fisher_information(y)
    advantage = float(np.linalg.eigvalsh(info_y.cc - info_x.cc)[-1])
    best = best_budget(info_x, info_y, info_x.cc, total=20)
    return Check(
        "CX9-invisible-direction",
        "Where Y beats X along some direction, spending samples on Y helps to model X",
        False,
        best.error < best.x_only_error * (1 - EXACT),
        {
            "advantage_of_y_along_v": advantage,
            "best_share_of_y": best.n_y / best.total,
            "x_only_error": best.x_only_error,
            "error_with_half_y": float(best.errors[10]),
        },
        "Theorem 3's direction is one X never shows; ask `best_budget` what matters for X.",
    )


COUNTEREXAMPLES = (
    unweighted_noise,
    private_confound,
    joint_range,
    lemma_2_kernel,
    missing_noise,
    block_covariance,
    mixed_direction,
    pseudo_inverse_order,
    invisible_direction,
)
