"""The checks come out as expected, and a broken formula makes them fail."""

from dataclasses import replace

import numpy as np
import pytest

from uml_core.theory import counterexamples, exchange, fisher, measured, statements
from uml_core.theory.checks import run_checks
from uml_core.theory.fisher import Information

HOLD = {
    "L1",
    "L2",
    "L3",
    "T1",
    "T1-Schur",
    "T2",
    "T3",
    "C1",
    "C2",
    "C3",
    "MC",
    "exchange",
    "budget",
}
FAIL = {
    "CX1-unweighted-noise",
    "CX2-private-confound",
    "CX3-range",
    "CX4-lemma2-kernel",
    "CX5-missing-noise",
    "CX6-block-covariance",
    "CX7-mixed-direction",
    "CX8-pseudo-inverse",
    "CX9-invisible-direction",
}


@pytest.fixture(scope="module")
def checks():
    return {check.id: check for check in run_checks(seed=1, instances=20)}


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measured, "REPEATS", 4000)


def test_every_statement_holds_and_every_counterexample_fails(checks):
    assert {check.id for check in checks.values() if check.holds} == HOLD
    assert {check.id for check in checks.values() if not check.holds} == FAIL
    assert all(check.as_expected for check in checks.values())


def test_checks_repeat_and_depend_on_the_seed():
    def margin(seed):
        return statements.theorem_1(np.random.default_rng(seed), 20).numbers

    assert margin(3) == margin(3) != margin(4)


def test_counterexamples_hold_their_closed_forms(checks):
    cx5 = checks["CX5-missing-noise"].numbers
    assert cx5["printed_factor"] == 0.5
    assert cx5["real_factor_weighted"] == pytest.approx(0.8)
    assert cx5["real_factor_unweighted"] == pytest.approx(1.25)
    cx7 = checks["CX7-mixed-direction"].numbers
    assert (cx7["x_only_variance"], cx7["joint_variance"]) == pytest.approx((1.0, 1.0))
    assert cx7["compressed_joint_variance"] == 0.5
    assert np.isinf(checks["CX3-range"].numbers["joint_variance"])
    cx4 = checks["CX4-lemma2-kernel"].numbers
    assert cx4["smallest_gap"] == pytest.approx(0.0, abs=1e-15)
    assert cx4["smallest_gap_off_kernel"] == pytest.approx(1 / 2 - 1 / 3)
    cx9 = checks["CX9-invisible-direction"].numbers
    assert (cx9["x_only_error"], cx9["error_with_half_y"]) == pytest.approx((1 / 20, 1 / 10))
    cx2 = checks["CX2-private-confound"].numbers
    assert cx2["smallest_rise_of_block_information"] > 1 > 1e9 * cx2["rise_of_real_information"]


def test_corollary_1_ratio_is_exact(checks):
    assert checks["C1"].numbers["largest_relative_error"] < 1e-12


def test_monte_carlo_refutes_information_without_noise_scales(rng, monkeypatch, quick):
    assert measured.monte_carlo(rng, 20).holds
    original = fisher.fisher_information
    monkeypatch.setattr(
        fisher,
        "fisher_information",
        lambda samples: original(samples).scaled(np.asarray(samples.noise) ** 2),
    )
    assert not measured.monte_carlo(rng, 20).holds


def test_monte_carlo_refutes_the_weighted_formula_for_the_unweighted_estimator(
    rng, monkeypatch, quick
):
    original = measured.estimator_covariance
    monkeypatch.setattr(
        measured, "estimator_covariance", lambda x, y, estimator: original(x, y, "weighted")
    )
    assert not measured.monte_carlo(rng, 20).holds


def test_monte_carlo_refutes_known_private_parameters(rng, monkeypatch, quick):
    original = fisher.joint_information

    def private_known(x, y):
        return original(
            Information(x.cc, 0 * x.cp, x.pp),
            Information(y.cc, 0 * y.cp, y.pp),
        )

    monkeypatch.setattr(fisher, "joint_information", private_known)
    assert not measured.monte_carlo(rng, 20).holds


def test_range_test_is_what_makes_unseen_directions_infinite(rng, monkeypatch):
    def quadratic_form(information, v, scale=None):
        return np.einsum("...i,...ij,...j->...", v, fisher.pseudo_inverse(information), v)

    for module in (statements, counterexamples):
        monkeypatch.setattr(module, "dirvar", quadratic_form)
    assert not statements.theorem_1(rng, 20).holds
    assert not statements.theorem_2(rng, 20).holds
    assert not statements.corollary_2(rng, 20).holds
    assert counterexamples.joint_range(rng, 20).holds  # the claim as written seems true


def test_block_instead_of_schur_breaks_the_schur_checks(rng, monkeypatch):
    for module in (statements, counterexamples):
        monkeypatch.setattr(module, "schur", lambda info: info.cc)
    assert not statements.theorem_1_schur(rng, 20).holds


def test_weights_are_what_saves_theorem_1_from_noisy_y(rng, monkeypatch):
    original = counterexamples.estimator_covariance
    monkeypatch.setattr(
        counterexamples,
        "estimator_covariance",
        lambda x, y, estimator: original(x, y, "weighted" if estimator == "joint" else estimator),
    )
    assert counterexamples.unweighted_noise(rng, 20).holds


def test_corollary_1_refutes_a_wrong_factor(rng, monkeypatch):
    original = statements.dirvar
    monkeypatch.setattr(statements, "dirvar", lambda m, v: original(m, v) ** 1.001)
    assert not statements.corollary_1(rng, 20).holds


def test_exchange_refutes_inverted_rates(rng, monkeypatch):
    original = exchange.principal_exchange

    def inverted(per_x, per_y):
        found = original(per_x, per_y)
        return exchange.PrincipalExchange(1 / found.rates, found.directions, found.share)

    monkeypatch.setattr(measured, "principal_exchange", inverted)
    assert not measured.exchange(rng, 20).holds


@pytest.mark.parametrize("shift", [-3, 3])
def test_a_split_beside_the_best_is_recognised(rng, shift):
    x, y = measured._weak_x(rng, noisy_y=False)
    per_x, per_y = fisher.fisher_information(x), fisher.fisher_information(y)
    own = fisher.fisher_information(replace(x, noise=1.0))
    weight = np.block([[own.cc, own.cp], [own.cp.T, own.pp]])
    best = exchange.best_budget(per_x, per_y, weight, 60).n_y
    assert best > 3
    assert measured._worth_crosses(x, y, weight, best, 60)
    assert not measured._worth_crosses(x, y, weight, best + shift, 60)


def test_budget_refutes_a_split_that_is_not_best(rng, monkeypatch):
    original = exchange.best_budget

    def two_y_too_many_where_there_is_any(per_x, per_y, target, total):
        best = original(per_x, per_y, target, total)
        n_y = best.n_y + 2 * (best.n_y > 0)
        return exchange.Budget(total, total - n_y, n_y, best.errors)

    monkeypatch.setattr(measured, "best_budget", two_y_too_many_where_there_is_any)
    assert not measured.budget(rng, 20).holds


def test_budget_simulation_refutes_a_wrong_error(rng, monkeypatch):
    original = exchange.reconstruction_error
    monkeypatch.setattr(
        exchange, "reconstruction_error", lambda info, target: 1.3 * original(info, target)
    )
    assert not measured.budget(rng, 20).holds
