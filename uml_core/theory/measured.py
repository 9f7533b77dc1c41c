"""Formulas against simulated data: Monte Carlo, exchange rate and budget.

The simulations repeat least squares with fresh noise and never touch the covariance formulas, so
agreement confirms the formulas and disagreement in `counterexamples` refutes a claim.
"""

from __future__ import annotations

import numpy as np

from uml_core.theory.exchange import PrincipalExchange, best_budget, principal_exchange
from uml_core.theory.fisher import (
    Array,
    Estimator,
    Samples,
    dirvar,
    estimator_covariance,
    fisher_information,
    joint_information,
    least_squares,
    pseudo_inverse,
    stack_rows,
)
from uml_core.theory.instances import (
    EXACT,
    SIZES,
    Check,
    Size,
    random_spd,
    x_samples,
    y_samples,
)

Rng = np.random.Generator
ESTIMATORS: tuple[Estimator, ...] = ("x_only", "joint", "weighted")
REPEATS = 20_000
# The largest of a few hundred standard normal scores exceeds 5 about once in 10 000 runs.
MAX_SCORE = 5.0


def first(samples: Samples) -> Samples:
    """The first instance of a batch."""
    return Samples(
        samples.shared[0],
        samples.private[0],
        float(np.asarray(samples.noise, float).reshape(-1)[0]),
    )


def simulate(rng: Rng, x: Samples, y: Samples, estimator: Estimator, repeats: int) -> Array:
    """Errors of all estimated parameters over repeats with fresh noise, (d, repeats).

    The true theta is drawn once and stays fixed, as in the model.
    """
    rows, noise = stack_rows(x, y)
    theta = rng.normal(size=(rows.shape[1],))
    observed = (rows @ theta)[:, None] + noise[:, None] * rng.normal(size=(len(noise), repeats))
    count_x = x.shared.shape[0] * x.shared.shape[1]
    estimate = least_squares(x, y, observed[:count_x], observed[count_x:], estimator)
    return estimate - theta[: len(estimate), None]


def covariance_scores(errors: Array, covariance: Array) -> Array:
    """Standard normal scores of mean and covariance of ``errors`` (d, R) against a formula (d, d).

    For Gaussian errors Var(mean of e_i e_j) = (C_ii C_jj + C_ij^2) / R exactly.
    """
    repeats = errors.shape[1]
    variance = np.diag(covariance)
    spread = np.sqrt((np.outer(variance, variance) + covariance**2) / repeats)
    scores = (errors @ errors.T / repeats - covariance) / spread
    bias = errors.mean(1) / np.sqrt(variance / repeats)
    return np.concatenate([scores[np.triu_indices(len(covariance))], bias])


def monte_carlo(rng: Rng, instances: int) -> Check:
    """Empirical covariance of the three estimators against the formula; privates estimated."""
    scores: list[Array] = []
    ratios: list[float] = []
    designs = max(1, min(4, instances // 50))
    for size in SIZES:
        for _ in range(designs):
            x, y = first(x_samples(rng, 1, size)), first(y_samples(rng, 1, size))
            for estimator in ESTIMATORS:
                errors = simulate(rng, x, y, estimator, REPEATS)[: size.c]
                formula = estimator_covariance(x, y, estimator)
                scores.append(covariance_scores(errors, formula))
                ratios.append(float((errors**2).mean(1).sum() / np.trace(formula)))
    return Check(
        "MC",
        "Repeated experiments scatter as the formulas say (three estimators)",
        True,
        float(np.abs(np.concatenate(scores)).max()) < MAX_SCORE,
        {
            "designs": designs * len(SIZES),
            "repeats": REPEATS,
            "compared_numbers": int(sum(map(len, scores))),
            "largest_score": float(np.abs(np.concatenate(scores)).max()),
            "allowed_score": MAX_SCORE,
            "lowest_measured_over_formula_trace": min(ratios),
            "highest_measured_over_formula_trace": max(ratios),
            **_three_traces(rng),
        },
    )


def _three_traces(rng: Rng) -> dict[str, float]:
    """Total variance of theta_c of the three estimators at s_x = 0.5, s_y = 0.3, as measured."""
    size = Size(4, 2, 2, 6, 6, 10)
    x, y = first(x_samples(rng, 1, size)), first(y_samples(rng, 1, size))
    x, y = Samples(x.shared, x.private, 0.5), Samples(y.shared, y.private, 0.3)
    numbers = {}
    for estimator in ESTIMATORS:
        errors = simulate(rng, x, y, estimator, REPEATS)[: size.c]
        numbers[f"example_{estimator}_measured"] = float((errors**2).mean(1).sum())
        formula = float(np.trace(estimator_covariance(x, y, estimator)))
        numbers[f"example_{estimator}_formula"] = formula
    return numbers


def exchange(rng: Rng, instances: int) -> Check:
    """Along a principal direction r Y samples replace one X sample, whatever is there already.

    Also: swapping an X for a Y lowers the variance exactly where r < 1, and such a direction
    exists exactly where Theorem 3's advantage (top eigenvalue of I_Y - I_X) is positive.
    """
    errors, rates, agree = [], [], []
    for index in range(instances):
        d = SIZES[index % len(SIZES)].c
        per_x, per_y = random_spd(rng, 1, d)[0], random_spd(rng, 1, d)[0]
        found = principal_exchange(per_x, per_y)
        n_x, n_y = rng.integers(2, 200, 2)
        errors.append(_trade_error(found, per_x, per_y, float(n_x), float(n_y)))
        swapped = found.variance(n_x - 1, n_y + 1) < found.variance(n_x, n_y)
        exists = np.linalg.eigvalsh(per_y - per_x)[-1] > 0
        agree.append(np.all(swapped == (found.rates < 1)) and exists == (found.rates[0] < 1))
        rates.append(found.rates)
    every = np.concatenate(rates)
    return Check(
        "exchange",
        "In each direction a fixed number of Y samples is worth one X sample, often below 1",
        True,
        max(errors) < EXACT and all(agree) and bool(every.min() < 1 < every.max()),
        {
            "instances": instances,
            "largest_relative_error": max(errors),
            "swap_predicted_right": float(np.mean(agree)),
            "lowest_rate": float(every.min()),
            "highest_rate": float(every.max()),
            "share_of_directions_below_one": float(np.mean(every < 1)),
        },
        "Exact along the principal directions of the pair (M_X, M_Y).",
    )


def _trade_error(
    found: PrincipalExchange, per_x: Array, per_y: Array, n_x: float, n_y: float
) -> float:
    """Largest relative gap between adding one X and adding ``rate`` Y, by the full variance."""
    gaps = []
    for rate, v in zip(found.rates, found.directions.T, strict=True):
        one_x = dirvar((n_x + 1) * per_x + n_y * per_y, v)
        some_y = dirvar(n_x * per_x + (n_y + rate) * per_y, v)
        gaps.append(abs(float(some_y / one_x) - 1))
    return max(gaps)


def repeated(samples: Samples, count: int) -> Samples:
    """``count`` copies of the design (1, m, d): every sample then carries equal information."""
    return Samples(
        np.repeat(samples.shared, count, axis=-3),
        np.repeat(samples.private, count, axis=-3),
        samples.noise,
    )


def budget(rng: Rng, instances: int) -> Check:
    """The split that the formula calls best is a true minimum and is best in simulation too."""
    total, designs = 60, max(2, min(12, instances // 20))
    convex, optimal, shares, savings = [], [], [], []
    scores: list[float] = []
    for index in range(designs):
        x, y = _weak_x(rng, noisy_y=index % 2 == 1)
        per_x, per_y = fisher_information(x), fisher_information(y)
        target = fisher_information(Samples(x.shared, x.private, 1.0))
        weight = np.block([[target.cc, target.cp], [target.cp.T, target.pp]])
        best = best_budget(per_x, per_y, weight, total)
        finite = best.errors[np.isfinite(best.errors)]
        convex.append(float(np.diff(finite, 2).min() / finite.max()))
        optimal.append(_worth_crosses(x, y, weight, best.n_y, total))
        shares.append(best.n_y / total)
        savings.append(1 - best.error / best.x_only_error)
        for n_y in {0, best.n_y, total // 2}:
            scores.append(_simulated_score(rng, x, y, total - n_y, n_y, weight, best.errors[n_y]))
    holds = (
        min(convex) > -EXACT
        and all(optimal)
        and max(map(abs, scores)) < MAX_SCORE
        and min(shares) == 0
        and max(shares) > 0
    )
    return Check(
        "budget",
        "There is one best split of a sample budget; simulation agrees with its error",
        True,
        holds,
        {
            "designs": designs,
            "budget": total,
            "largest_score_of_simulation": max(map(abs, scores)),
            "allowed_score": MAX_SCORE,
            "lowest_best_share_of_y": min(shares),
            "highest_best_share_of_y": max(shares),
            "largest_saving_over_x_only": max(savings),
        },
        "All X is best where Y is too noisy; never all Y: X's private part needs X.",
    )


def _weak_x(rng: Rng, noisy_y: bool) -> tuple[Samples, Samples]:
    """One design of X that sees its shared directions ever more weakly, one of Y sees all."""
    size = Size(5, 2, 2, 8, 8, 1)
    x, y = first(x_samples(rng, 1, size)), first(y_samples(rng, 1, size))
    strength = np.geomspace(1.0, 0.05, size.c)
    noise = 0.5
    return Samples(x.shared * strength, x.private, noise), Samples(
        y.shared, y.private, 60.0 if noisy_y else noise
    )


def _worth_crosses(x: Samples, y: Samples, weight: Array, n_y: int, total: int) -> bool:
    """Optimality by derivatives: one Y fewer and Y is worth more than X, one more and it is not.

    Worth of a sample = -d error / d n = tr(F^-1 W F^-1 F_1), F_1 the information it adds. At the
    border (n_y = 0) only the second half applies.
    """
    per_x, per_y = fisher_information(x), fisher_information(y)
    one_x = joint_information(per_x, per_y.scaled(0.0))
    one_y = joint_information(per_x.scaled(0.0), per_y)
    full = np.zeros_like(one_x)
    full[: len(weight), : len(weight)] = weight

    def y_worth_more(n_y: int) -> bool:
        inverse = pseudo_inverse((total - n_y) * one_x + n_y * one_y)
        sensitivity = inverse @ full @ inverse
        return bool(np.trace(sensitivity @ one_y) > np.trace(sensitivity @ one_x))

    return (n_y == 0 or y_worth_more(n_y - 1)) and not y_worth_more(n_y + 1)


def _simulated_score(
    rng: Rng, x: Samples, y: Samples, n_x: int, n_y: int, weight: Array, error: float
) -> float:
    """Score of the simulated reconstruction error of X against the formula's."""
    repeats = 2000
    many_x = repeated(x, n_x)
    errors = (
        simulate(rng, many_x, repeated(y, n_y), "weighted", repeats)[: len(weight)]
        if n_y
        else simulate(rng, many_x, repeated(y, 1), "x_only", repeats)
    )
    squared = np.einsum("ir,ij,jr->r", errors, weight, errors)
    return float((squared.mean() - error) / (squared.std(ddof=1) / np.sqrt(repeats)))


MEASURED = (monte_carlo, exchange, budget)
