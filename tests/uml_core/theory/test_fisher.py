"""Fisher information, variances and estimators against closed forms and autograd."""

import numpy as np
import pytest
import torch

from uml_core.theory.fisher import (
    Samples,
    dirvar,
    estimator_covariance,
    fisher_information,
    joint_information,
    least_squares,
    pseudo_inverse,
    range_projector,
    relative_fall,
    schur,
    stack_rows,
)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def samples(rng, count=3, numbers=4, shared=3, private=2, noise=0.5):
    return Samples(
        rng.normal(size=(count, numbers, shared)), rng.normal(size=(count, numbers, private)), noise
    )


def scalar(design, noise):
    """One sample of one number that sees one shared parameter and nothing private."""
    return Samples(np.full((1, 1, 1), design), np.zeros((1, 1, 0)), noise)


def test_scalar_information_is_design_squared_over_noise_squared():
    assert fisher_information(scalar(2.0, 0.5)).cc == pytest.approx(16.0)


def test_information_is_the_hessian_of_the_negative_log_likelihood(rng):
    x, y = samples(rng, noise=0.7), samples(rng, numbers=5, private=1, noise=1.9)
    rows, noise = stack_rows(x, y)
    observed = torch.from_numpy(rng.normal(size=len(rows)))

    def negative_log_likelihood(theta):
        scaled = (observed - torch.from_numpy(rows) @ theta) / torch.from_numpy(noise)
        return (scaled**2).sum() / 2

    hessian = torch.autograd.functional.hessian(
        negative_log_likelihood, torch.zeros(rows.shape[1], dtype=torch.float64)
    )
    formula = joint_information(fisher_information(x), fisher_information(y))
    np.testing.assert_allclose(formula, hessian.numpy(), rtol=1e-12)


def test_joint_information_keeps_the_private_blocks_apart(rng):
    info_x = fisher_information(samples(rng, private=2))
    info_y = fisher_information(samples(rng, private=1))
    joint = joint_information(info_x, info_y)
    assert joint.shape == (6, 6)
    np.testing.assert_array_equal(joint[:3, :3], info_x.cc + info_y.cc)
    np.testing.assert_array_equal(joint[:3, 3:5], info_x.cp)
    np.testing.assert_array_equal(joint[5:, :3], info_y.cp.T)
    assert not joint[3:5, 5:].any()


def test_schur_is_the_inverse_of_the_shared_block_of_the_inverse(rng):
    info = fisher_information(samples(rng))
    full = np.block([[info.cc, info.cp], [info.cp.T, info.pp]])
    np.testing.assert_allclose(np.linalg.inv(schur(info)), np.linalg.inv(full)[:3, :3])


def test_schur_of_a_private_part_that_mimics_the_shared_part_is_zero(rng):
    design = rng.normal(size=(4, 5, 3))
    info = fisher_information(Samples(design, design, 0.3))
    assert np.linalg.eigvalsh(info.cc)[0] > 1
    assert np.abs(schur(info)).max() < 1e-11


def test_dirvar_in_the_range_is_the_quadratic_form_of_the_inverse():
    m = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert dirvar(m, np.array([1.0, 0.0])) == pytest.approx(2 / 3)
    assert dirvar(m, np.array([3.0, 0.0])) == pytest.approx(6.0)
    assert dirvar(1e-9 * m, np.array([1.0, 0.0])) == pytest.approx(2e9 / 3)


def test_dirvar_outside_the_range_is_infinite_even_for_a_small_part():
    m = np.diag([4.0, 0.0])
    assert dirvar(m, np.array([1.0, 0.0])) == pytest.approx(0.25)
    assert np.isinf(dirvar(m, np.array([0.0, 1.0])))
    assert np.isinf(dirvar(m, np.array([1.0, 1e-4])))


def test_dirvar_takes_the_size_that_counts_as_zero_from_the_caller():
    rounding = np.diag([1e-14, 2e-14])  # a Schur complement that should be 0
    v = np.array([1.0, 0.0])
    assert np.isfinite(dirvar(rounding, v))
    assert np.isinf(dirvar(rounding, v, scale=1.0))


def test_dirvar_of_padded_v_in_the_full_matrix_is_dirvar_of_the_schur_complement(rng):
    x = samples(rng)
    info = fisher_information(x)
    full = np.block([[info.cc, info.cp], [info.cp.T, info.pp]])
    v = rng.normal(size=3)
    padded = np.concatenate([v, np.zeros(2)])
    assert dirvar(full, padded) == pytest.approx(float(dirvar(schur(info), v)))


def test_pseudo_inverse_and_projector_match_numpy_on_a_batch_of_singular_matrices(rng):
    half = rng.normal(size=(5, 4, 2))
    m = half @ np.swapaxes(half, -1, -2)
    np.testing.assert_allclose(pseudo_inverse(m), np.linalg.pinv(m), atol=1e-9)
    np.testing.assert_allclose(range_projector(m), m @ np.linalg.pinv(m), atol=1e-9)


@pytest.mark.parametrize(
    ("estimator", "variance"),
    [
        ("x_only", 0.25),
        ("joint", (0.25 + 2.25) / 4),  # the mean of two numbers of unequal noise
        ("weighted", 1 / (1 / 0.25 + 1 / 2.25)),
    ],
)
def test_estimator_variance_of_two_numbers_in_closed_form(estimator, variance):
    x, y = scalar(1.0, 0.5), scalar(1.0, 1.5)
    assert estimator_covariance(x, y, estimator)[0, 0] == pytest.approx(variance)


def test_noisy_y_hurts_the_unweighted_estimate_beyond_a_variance_ratio_of_three():
    def ratio(noise_y):
        x, y = scalar(1.0, 1.0), scalar(1.0, noise_y)
        before = estimator_covariance(x, y, "x_only")[0, 0]
        return estimator_covariance(x, y, "joint")[0, 0] / before

    assert ratio(3**0.5) == pytest.approx(1.0)
    assert ratio(1.7) < 1 < ratio(1.8)


def test_weighted_covariance_is_the_shared_block_of_the_inverse_information(rng):
    x, y = samples(rng), samples(rng, private=1, noise=2.0)
    full = joint_information(fisher_information(x), fisher_information(y))
    np.testing.assert_allclose(
        estimator_covariance(x, y, "weighted"), np.linalg.inv(full)[:3, :3], rtol=1e-9
    )


@pytest.mark.parametrize("estimator", ["x_only", "joint", "weighted"])
def test_least_squares_recovers_the_parameters_without_noise(rng, estimator):
    x, y = samples(rng), samples(rng, private=1, noise=2.0)
    rows, _ = stack_rows(x, y)
    theta = rng.normal(size=rows.shape[1])
    observed = (rows @ theta)[:, None]
    found = least_squares(x, y, observed[:12], observed[12:], estimator)[:, 0]
    np.testing.assert_allclose(found, theta[: len(found)], rtol=1e-9)
    assert len(found) == (5 if estimator == "x_only" else 6)


def test_weighted_least_squares_is_the_precision_weighted_mean():
    x, y = scalar(1.0, 1.0), scalar(1.0, 2.0)
    observed = np.array([[10.0]]), np.array([[20.0]])
    assert least_squares(x, y, *observed, "joint")[0, 0] == pytest.approx(15.0)
    assert least_squares(x, y, *observed, "weighted")[0, 0] == pytest.approx(12.0)


def test_relative_fall_is_that_of_the_worst_direction():
    assert relative_fall(np.diag([2.0, 4.0]), np.diag([1.0, 3.0])) == pytest.approx(0.25)
    assert relative_fall(np.diag([2.0, 4.0]), np.diag([1.0, 5.0])) == pytest.approx(-0.25)


def test_batches_give_what_single_instances_give(rng):
    shared, private = rng.normal(size=(6, 3, 4, 3)), rng.normal(size=(6, 3, 4, 2))
    noise = rng.uniform(0.5, 2, 6)
    batch = Samples(shared, private, noise)
    one = Samples(shared[4], private[4], noise[4])
    np.testing.assert_allclose(
        schur(fisher_information(batch))[4], schur(fisher_information(one)), rtol=1e-10
    )
    np.testing.assert_allclose(
        estimator_covariance(batch, batch, "joint")[4],
        estimator_covariance(one, one, "joint"),
        rtol=1e-10,
    )


def test_designs_that_do_not_belong_together_are_named():
    with pytest.raises(ValueError, match="must agree"):
        Samples(np.zeros((2, 3, 1)), np.zeros((1, 3, 1)), 1.0)
    with pytest.raises(ValueError, match="positive"):
        Samples(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), 0.0)
