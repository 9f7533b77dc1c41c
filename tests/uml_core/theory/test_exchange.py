"""Exchange rates and budgets against closed forms."""

import numpy as np
import pytest

from uml_core.theory.exchange import (
    best_budget,
    exchange_rate,
    principal_exchange,
    reconstruction_error,
)
from uml_core.theory.fisher import Information, Samples, dirvar, fisher_information


def test_rate_is_x_information_over_y_information_with_noise_in_both():
    x = Samples(np.array([[[3.0, 0.0]]]), np.zeros((1, 1, 0)), 0.5)  # 9 / 0.25 = 36
    y = Samples(np.array([[[2.0, 0.0]]]), np.zeros((1, 1, 0)), 2.0)  # 4 / 4 = 1
    infos = fisher_information(x).cc, fisher_information(y).cc
    assert exchange_rate(*infos, np.array([1.0, 0.0])) == pytest.approx(36.0)
    assert np.isnan(exchange_rate(*infos, np.array([0.0, 1.0])))


def test_rate_says_who_sees_nothing():
    first, second = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
    v = np.array([1.0, 0.0])
    assert np.isinf(exchange_rate(first, second, v))
    assert exchange_rate(second, first, v) == 0


def test_principal_rates_of_diagonal_informations_are_their_ratios():
    found = principal_exchange(np.diag([1.0, 6.0, 0.0]), np.diag([4.0, 2.0, 5.0]))
    np.testing.assert_allclose(found.rates, [0.0, 0.25, 3.0], atol=1e-12)


def test_variance_along_principal_directions_is_that_of_the_whole_problem():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 4, 6))
    per_x, per_y = a @ a.T, b @ b.T  # no common eigenvectors
    found = principal_exchange(per_x, per_y)
    for index, v in enumerate(found.directions.T):
        full = float(dirvar(5 * per_x + 9 * per_y, v))
        assert found.variance(5, 9)[index] == pytest.approx(full)
        one_x = float(dirvar(6 * per_x + 9 * per_y, v))
        assert float(dirvar(5 * per_x + (9 + found.rates[index]) * per_y, v)) == pytest.approx(
            one_x
        )


def test_a_direction_nobody_sees_has_no_rate():
    with pytest.raises(ValueError, match="neither"):
        principal_exchange(np.diag([1.0, 0.0]), np.diag([2.0, 0.0]))


def one_shared_one_private(shared, private):
    """Diagonal information about one shared and (for X) one private parameter."""
    return Information(
        np.array([[shared]]),
        np.zeros((1, private)),
        np.eye(private),
    )


def test_best_budget_of_one_shared_and_one_private_parameter_in_closed_form():
    # 1 / (n_x + 4 n_y) + 1 / n_x is lowest at n_y = N (sqrt 3 - 1) / (sqrt 3 + 3)
    total = 1000
    best = best_budget(
        one_shared_one_private(1.0, 1), one_shared_one_private(4.0, 0), np.eye(2), total
    )
    assert best.n_y == pytest.approx(total * (3**0.5 - 1) / (3**0.5 + 3), abs=1)
    assert best.n_x + best.n_y == total
    assert best.x_only_error == pytest.approx(2 / total)
    n_x, n_y = best.n_x, best.n_y
    assert best.error == pytest.approx(1 / (n_x + 4 * n_y) + 1 / n_x)
    assert best.error < best.x_only_error


def test_without_private_part_the_whole_budget_goes_to_the_better_sample():
    x = one_shared_one_private(1.0, 0)
    better, worse = one_shared_one_private(1.01, 0), one_shared_one_private(0.99, 0)
    assert best_budget(x, better, np.eye(1), 50).n_y == 50
    assert best_budget(x, worse, np.eye(1), 50).n_y == 0


def test_reconstruction_error_is_infinite_only_for_what_the_target_needs():
    information = np.diag([2.0, 0.0, 5.0])  # theta_c of width 2, one of it unseen; one private of Y
    assert reconstruction_error(information, np.diag([3.0, 0.0])) == pytest.approx(1.5)
    assert np.isinf(reconstruction_error(information, np.diag([3.0, 1.0])))
