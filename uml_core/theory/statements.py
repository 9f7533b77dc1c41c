"""Lemmas, theorems and corollaries of the paper (section 3.1, appendix C.3) checked by number.

Each function draws ``instances`` random problems per size, evaluates both sides of the statement
and reports the smallest margin (for ">") or the largest error (for "=") over all of them. Where
the paper's wording is too wide, the corrected condition is checked here and the wide one fails in
`counterexamples`. Noise levels differ between X and Y in every instance.
"""

from __future__ import annotations

import numpy as np

from uml_core.theory.fisher import (
    Array,
    dirvar,
    estimator_covariance,
    fisher_information,
    pseudo_inverse,
    range_projector,
    relative_fall,
    schur,
)
from uml_core.theory.instances import (
    EXACT,
    SIZES,
    STRICT,
    Check,
    Samples,
    Size,
    highest,
    lowest,
    quadratic,
    random_basis,
    random_spd,
    x_samples,
    y_samples,
)

Rng = np.random.Generator


def _t(matrix: Array) -> Array:
    return np.swapaxes(matrix, -1, -2)


def _apply(matrix: Array, v: Array) -> Array:
    return np.einsum("...ij,...j->...i", matrix, v)


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def lemma_1(rng: Rng, instances: int) -> Check:
    """M < N => N^-1 < M^-1."""
    margins = []
    for size in SIZES:
        m = random_spd(rng, instances, size.c)
        n = m + random_spd(rng, instances, size.c)
        margins.append(relative_fall(np.linalg.inv(m), np.linalg.inv(n)))
    return Check(
        "L1",
        "More information in every direction means less variance in every direction",
        True,
        lowest(*margins) > STRICT,
        {"instances": len(SIZES) * instances, "smallest_relative_fall": lowest(*margins)},
    )


def lemma_2(rng: Rng, instances: int) -> Check:
    """M <= N of equal kernel: N^+ < M^+ on the complement of the kernel, equality on it."""
    margins, kernels = [], []
    for size in SIZES:
        rank = size.c - 1
        basis = random_basis(rng, instances, size.c)
        seen, kernel = basis[..., :rank], basis[..., rank:]
        small = random_spd(rng, instances, rank)
        m = seen @ small @ _t(seen)
        n = seen @ (small + random_spd(rng, instances, rank)) @ _t(seen)
        m_plus, n_plus = pseudo_inverse(m), pseudo_inverse(n)
        margins.append(relative_fall(_t(seen) @ m_plus @ seen, _t(seen) @ n_plus @ seen))
        kernels.append(np.abs(_t(kernel) @ (m_plus - n_plus) @ kernel))
    return Check(
        "L2",
        "The same where both leave the same directions unseen, on the other directions",
        True,
        lowest(*margins) > STRICT and highest(*kernels) < EXACT,
        {
            "instances": len(SIZES) * instances,
            "smallest_relative_fall": lowest(*margins),
            "largest_change_on_kernel": highest(*kernels),
        },
        "Strict on the complement of the common kernel only; see CX4.",
    )


def lemma_3(rng: Rng, instances: int) -> Check:
    """M <= N: v'M^-1 v >= v'N^-1 v, strict iff (N - M) M^-1 v != 0, and M v is strict."""
    strict, blind, built, hidden = [], [], [], []
    for size in SIZES:
        m = random_spd(rng, instances, size.c)
        added = random_spd(rng, instances, size.c, rank=size.c - 1)
        m_inv, n_inv = np.linalg.inv(m), np.linalg.inv(m + added)

        def fall(v: Array, m_inv: Array = m_inv, n_inv: Array = n_inv) -> Array:
            return 1 - quadratic(n_inv, v) / quadratic(m_inv, v)

        v = rng.normal(size=(instances, size.c))
        strict.append(fall(v))  # a generic v has (N - M) M^-1 v != 0
        kernel = np.linalg.eigh(added)[1][..., 0]
        unmoved = _apply(m, kernel)  # (N - M) M^-1 v = 0 although v'Mv < v'Nv
        blind.append(np.abs(fall(unmoved)))
        hidden.append(quadratic(added, _unit(unmoved)))
        built.append(fall(_apply(m, v)))
    numbers = {
        "instances": len(SIZES) * instances,
        "smallest_fall_predicted_strict": lowest(*strict),
        "largest_fall_predicted_zero": highest(*blind),
        "mean_information_gain_predicted_zero": float(np.mean(np.concatenate(hidden))),
        "smallest_fall_constructed": lowest(*built),
    }
    holds = lowest(*strict) > STRICT and highest(*blind) < EXACT and lowest(*built) > STRICT
    return Check(
        "L3",
        "Variance falls along v exactly if the new data moves what v depends on",
        True,
        holds,
        numbers,
        "More information along v alone (v'Mv < v'Nv) does not yet lower the variance of v.",
    )


def _one_full_rank_y(rng: Rng, instances: int, size: Size) -> Samples:
    """Y designs of which exactly one has full column rank; the others see one direction."""
    y = y_samples(rng, instances, size)
    direction = _unit(rng.normal(size=(instances, size.count - 1, size.c)))
    y.shared[:, 1:] = (y.shared[:, 1:] @ direction[..., None]) * direction[:, :, None, :]
    return y


def theorem_1(rng: Rng, instances: int) -> Check:
    """One full-rank B_j => M_XY > M_X and Cov_XY < Cov_X; private parameters known."""
    gains, falls, rescued = [], [], []
    unseen_infinite = True
    for size in SIZES:
        m_y = fisher_information(_one_full_rank_y(rng, instances, size)).cc
        m_x = fisher_information(x_samples(rng, instances, size)).cc
        gains.append(np.linalg.eigvalsh(m_y)[..., 0] / np.linalg.eigvalsh(m_x + m_y)[..., -1])
        falls.append(relative_fall(np.linalg.inv(m_x), np.linalg.inv(m_x + m_y)))
        partial = fisher_information(x_samples(rng, instances, size, rank=size.c - 1)).cc
        v = rng.normal(size=(instances, size.c))
        unseen_infinite &= bool(np.isinf(dirvar(partial, v)).all())
        rescued.append(dirvar(partial + m_y, v))
    holds = (
        lowest(*gains) > STRICT
        and lowest(*falls) > STRICT
        and unseen_infinite
        and bool(np.isfinite(highest(*rescued)))
    )
    return Check(
        "T1",
        "One Y sample that sees every shared direction lowers the variance of all of them",
        True,
        holds,
        {
            "instances": 2 * len(SIZES) * instances,
            "smallest_relative_information_gain": lowest(*gains),
            "smallest_relative_fall": lowest(*falls),
            "unseen_by_x_infinite": int(unseen_infinite),
            "largest_joint_variance_of_unseen": highest(*rescued),
        },
        "Private parameters known, estimates weighted by 1/s^2; see T1-Schur, CX1 and CX2.",
    )


def theorem_1_schur(rng: Rng, instances: int) -> Check:
    """S_Y > 0 => S_XY > S_X and the real covariance of theta_c falls; privates estimated."""
    additive, gains, falls = [], [], []
    for size in SIZES:
        x = x_samples(rng, instances, size)
        y = y_samples(rng, instances, size)
        # Half of the instances: private columns of Y that repeat each other. [B_c B_y] is then
        # rank deficient but range(B_c) still meets range(B_y) at 0 only, which is enough.
        y.private[: instances // 2] = y.private[: instances // 2, ..., :1]
        s_x, s_y = schur(fisher_information(x)), schur(fisher_information(y))
        before = estimator_covariance(x, y, "x_only")
        after = estimator_covariance(x, y, "weighted")
        predicted = np.linalg.inv(s_x + s_y)
        error = np.linalg.norm(after - predicted, axis=(-2, -1))
        additive.append(error / np.linalg.norm(predicted, axis=(-2, -1)))
        gains.append(np.linalg.eigvalsh(s_y)[..., 0] / np.linalg.eigvalsh(s_x + s_y)[..., -1])
        falls.append(relative_fall(before, after))
    return Check(
        "T1-Schur",
        "The same with private parts unknown, if Y's private part cannot mimic its shared part",
        True,
        lowest(*gains) > STRICT and lowest(*falls) > STRICT and highest(*additive) < EXACT,
        {
            "instances": len(SIZES) * instances,
            "smallest_relative_information_gain": lowest(*gains),
            "smallest_relative_fall": lowest(*falls),
            "largest_error_of_S_XY_equals_S_X_plus_S_Y": highest(*additive),
        },
        "The Schur complements add up: S_XY = S_X + S_Y; S_Y > 0 is what is needed.",
    )


def theorem_2(rng: Rng, instances: int) -> Check:
    """Directional gain: quadratic form, inf -> finite, and the iff within range(M_X)."""
    info, zero, rescued, strict, blind, built = [], [], [], [], [], []
    infinite = True
    for size in SIZES:
        rank = size.c - 1
        m_x = fisher_information(x_samples(rng, instances, size, rank=rank)).cc
        m_y = fisher_information(y_samples(rng, instances, size, rank=rank)).cc
        top = np.linalg.eigvalsh(m_y)[..., -1]
        v = _unit(rng.normal(size=(instances, size.c)))
        info.append(quadratic(m_y, v) / top)
        zero.append(np.abs(quadratic(m_y, np.linalg.eigh(m_y)[1][..., 0])) / top)
        # (2) v outside range(M_X) but inside range(M_XY), the corrected condition
        infinite &= bool(np.isinf(dirvar(m_x, v)).all())
        rescued.append(dirvar(m_x + m_y, v))
        # (2) within S = range(M_X): coordinates of S, a Y that is blind to one direction of S
        seen = np.linalg.eigh(m_x)[1][..., 1:]
        inner_x = _t(seen) @ m_x @ seen
        blind_y = random_spd(rng, instances, rank, rank=max(rank - 1, 1))
        strict_fall, blind_fall, built_fall = _falls_within_range(rng, inner_x, blind_y)
        strict.append(strict_fall)
        built.append(built_fall)
        if rank > 1:
            blind.append(blind_fall)
    holds = (
        lowest(*info) > STRICT
        and highest(*zero) < EXACT
        and infinite
        and bool(np.isfinite(highest(*rescued)))
        and lowest(*strict) > STRICT
        and highest(*blind) < EXACT
        and lowest(*built) > STRICT
    )
    return Check(
        "T2",
        "Y adds information along all it sees, and rescues directions X cannot see",
        True,
        holds,
        {
            "instances": len(SIZES) * instances,
            "smallest_information_gain_seen": lowest(*info),
            "largest_information_gain_unseen": highest(*zero),
            "largest_joint_variance_of_unseen_by_x": highest(*rescued),
            "smallest_fall_predicted_strict": lowest(*strict),
            "largest_fall_predicted_zero": highest(*blind),
            "smallest_fall_constructed": lowest(*built),
        },
        "Within range(M_X) for the compressed matrices of the theorem; see CX3 and CX7.",
    )


def _falls_within_range(rng: Rng, m: Array, added: Array) -> tuple[Array, Array, Array]:
    """Relative falls of v'M~^-1 v: generic v, v with (M~_XY - M~_X) M~_X^-1 v = 0, v = M~_X u."""
    before, after = np.linalg.inv(m), np.linalg.inv(m + added)

    def fall(v: Array) -> Array:
        return 1 - quadratic(after, v) / quadratic(before, v)

    v = rng.normal(size=m.shape[:-1])
    kernel = np.linalg.eigh(added)[1][..., 0]
    return fall(v), np.abs(fall(_apply(m, kernel))), fall(_apply(m, v))


def theorem_3(rng: Rng, instances: int) -> Check:
    """range I_Y(m) not inside range I_X(m) => v with v'I_Y v > v'I_X v = 0, as in the proof."""
    gaps, leaks, tops = [], [], []
    for size in SIZES:
        i_x = fisher_information(x_samples(rng, instances, size, rank=size.c - 1)).cc
        i_y = fisher_information(y_samples(rng, instances, size)).cc
        w = _apply(i_y, rng.normal(size=(instances, size.c)))
        v = _unit(w - _apply(range_projector(i_x), w))
        top = np.linalg.eigvalsh(i_y)[..., -1]
        gap = quadratic(i_y - i_x, v)
        gaps.append(gap / top)
        leaks.append(np.abs(quadratic(i_x, v)) / top)
        tops.append((np.linalg.eigvalsh(i_y - i_x)[..., -1] - gap) / top)
    return Check(
        "T3",
        "If Y sees something X does not, m samples of Y beat m samples of X somewhere",
        True,
        lowest(*gaps) > STRICT and highest(*leaks) < EXACT and lowest(*tops) > -EXACT,
        {
            "instances": len(SIZES) * instances,
            "smallest_advantage_of_constructed_v": lowest(*gaps),
            "largest_information_of_x_along_v": highest(*leaks),
            "smallest_excess_of_top_eigenvector": lowest(*tops),
        },
        "That direction is one X never shows: whether it matters for X is another question (CX9).",
    )


def corollary_1(rng: Rng, instances: int) -> Check:
    """v a common eigenvector: the variance along v shrinks by exactly a / (a + b)."""
    errors, ratios = [], []
    for size in SIZES:
        basis = random_basis(rng, instances, size.c)
        v, rest = basis[..., 0], basis[..., 1:]
        a, b = np.exp(rng.uniform(-2, 2, (2, instances)))

        def around(value: Array, v: Array = v, rest: Array = rest) -> Array:
            other = random_spd(rng, instances, rest.shape[-1])  # only v is shared
            return value[:, None, None] * v[:, :, None] * v[:, None, :] + rest @ other @ _t(rest)

        m_x, m_y = around(a), around(b)
        ratio = dirvar(m_x + m_y, v) / dirvar(m_x, v)
        ratios.append(ratio)
        errors.append(np.abs(ratio / (a / (a + b)) - 1))
    return Check(
        "C1",
        "Along a direction both see alike, variance shrinks by exactly a / (a + b)",
        True,
        highest(*errors) < EXACT,
        {
            "instances": len(SIZES) * instances,
            "largest_relative_error": highest(*errors),
            "smallest_factor": lowest(*ratios),
            "largest_factor": highest(*ratios),
        },
        "a and b are informations with their noise, v'Av / s^2; see CX5.",
    )


def corollary_2(rng: Rng, instances: int) -> Check:
    """v in ker M_X and in range(M_XY), v'M_Y v > 0: infinite -> finite. M_XY may be singular."""
    joint, outside = [], []
    infinite = True
    for size in SIZES:
        basis = random_basis(rng, instances, size.c)
        seen = basis[..., : size.c - 1] if size.c > 2 else basis
        x_part = basis[..., : seen.shape[-1] - 1]
        m_x = x_part @ random_spd(rng, instances, x_part.shape[-1]) @ _t(x_part)
        m_y = seen @ random_spd(rng, instances, seen.shape[-1]) @ _t(seen)
        v = seen[..., -1]  # X never sees it, Y does
        infinite &= bool(np.isinf(dirvar(m_x, v)).all())
        joint.append(dirvar(m_x + m_y, v))
        if size.c > 2:
            outside.append(dirvar(m_x + m_y, v + basis[..., -1]))
    return Check(
        "C2",
        "A direction only Y sees: impossible from X alone, finite variance with Y",
        True,
        infinite and bool(np.isfinite(highest(*joint))) and bool(np.isinf(outside).all()),
        {
            "instances": len(SIZES) * instances,
            "largest_joint_variance": highest(*joint),
            "still_infinite_outside_joint_range": int(np.isinf(outside).all()),
        },
        "Needs v in range(M_XY): the joint data must see all of v; see CX3.",
    )


def corollary_3(rng: Rng, instances: int) -> Check:
    """v eigenvector of M_X > 0, v'M_Y v > 0: X-only variance |v|^2 / l, strictly lower jointly."""
    errors, falls = [], []
    for size in SIZES:
        m_x = random_spd(rng, instances, size.c)
        values, vectors = np.linalg.eigh(m_x)
        v = 3.0 * vectors[..., 0]  # length 3: the formula has |v|^2
        b = rng.normal(size=(instances, 1, size.c))  # one Y number: rank one
        alone = dirvar(m_x, v)
        errors.append(np.abs(alone * values[..., 0] / 9 - 1))
        falls.append(1 - dirvar(m_x + _t(b) @ b, v) / alone)
    return Check(
        "C3",
        "Where X sees every direction: Y seeing an eigen-direction lowers its variance",
        True,
        highest(*errors) < EXACT and lowest(*falls) > STRICT,
        {
            "instances": len(SIZES) * instances,
            "largest_error_of_variance_formula": highest(*errors),
            "smallest_relative_fall": lowest(*falls),
        },
        "Needs X to see every direction, or Y not to mix v with unseen ones; see CX7.",
    )


STATEMENTS = (
    lemma_1,
    lemma_2,
    lemma_3,
    theorem_1,
    theorem_1_schur,
    theorem_2,
    theorem_3,
    corollary_1,
    corollary_2,
    corollary_3,
)
