import numpy as np
import pytest
import torch
from gaussians import accuracy, world
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from uml_core.heads.bridge_sources import from_samples
from uml_core.heads.linear import (
    clap,
    free_logistic,
    lda,
    logistic,
    prototypes,
    without_validation,
)
from uml_core.heads.problem import Labelled, Problem, unit


def test_lda_without_shrinkage_decides_as_sklearn():
    problem, _, _ = world(noise=1.0)
    v = problem.draw(16, (0,)).vectors
    found = lda(v, shrinkage=(1e-3,))
    model = LinearDiscriminantAnalysis(solver="lsqr").fit(v.z[0].numpy(), v.y[0].numpy())
    expected = model.predict(unit(problem.test.x - v.centre[0]).numpy())
    assert np.mean(found.predict(problem.test.x)[0].numpy() == expected) > 0.98


def test_lda_at_one_sample_or_full_shrinkage_is_the_nearest_mean():
    problem, _, _ = world()
    few, many = problem.draw(1, (0, 1)).vectors, problem.draw(8, (0, 1)).vectors
    a, b = lda(few, shrinkage=(0.3,)).rule.weight, lda(few, shrinkage=(1.0,)).rule.weight
    torch.testing.assert_close(unit(a), unit(b), atol=1e-4, rtol=0)
    full = lda(many, shrinkage=(1.0,)).rule.weight[0]
    torch.testing.assert_close(unit(full), unit(many.prototypes[0]), atol=1e-4, rtol=0)


def test_the_banks_covariance_helps_where_noise_has_a_shape():
    g = torch.Generator().manual_seed(1)
    stretch = torch.linspace(0.02, 3, 24)
    means = torch.randn(40, 24, generator=g)

    def of(first, last, count):
        y = torch.arange(last - first).repeat_interleave(count)
        return Labelled(means[first + y] + torch.randn(len(y), 24, generator=g) * stretch, y)

    names = tuple(map(str, range(10)))
    problem = Problem("x", of(0, 10, 20), of(0, 10, 50), names, val=of(0, 10, 4))
    texts = Labelled(torch.randn(30, 5, generator=g), torch.arange(30))
    bank = from_samples(of(10, 40, 30), texts, tuple(map(str, range(30))))
    v = problem.draw(1, range(8)).vectors
    gain = accuracy(lda(v, bank.covariance), problem) - accuracy(lda(v), problem)
    assert gain.mean() > 10


def test_a_penalty_is_chosen_on_validation():
    problem, _, _ = world(noise=1.5)
    v = problem.draw(4, (0, 1, 2)).vectors
    grid = (1e-1, 1e-5)
    found = logistic(v, grid)
    alone = [logistic(v, (penalty,)).val_nll for penalty in grid]
    torch.testing.assert_close(found.val_nll, torch.stack(alone).amin(0), atol=1e-3, rtol=0)
    at = torch.stack(alone).argmin(0).tolist()
    assert [c["penalty"] for c in found.chosen] == [grid[i] for i in at]


def test_without_validation_all_samples_train():
    problem, _, _ = world(noise=1.5)
    draw = problem.draw(1, range(10))
    free = without_validation(draw, free_logistic)
    assert free.val_nll.isnan().all()
    assert (accuracy(free, problem) - accuracy(logistic(draw.vectors), problem)).mean() > 3
    two = problem.draw(1, (0,)).merged().vectors
    nearest = without_validation(problem.draw(1, (0,)), prototypes)
    torch.testing.assert_close(unit(nearest.rule.weight), unit(two.prototypes))


@pytest.mark.parametrize("good", [True, False])
def test_clap_follows_rows_that_explain_the_samples(good):
    problem, _, _ = world(noise=1.5)
    draw = problem.draw(1, range(6))
    true = unit(problem.test.means(8) - problem.test.x.mean(0)).expand(6, -1, -1)
    rows = true if good else true.roll(1, 1)
    gain = accuracy(clap(draw.vectors, rows), problem) - accuracy(
        free_logistic(draw.vectors), problem
    )
    assert gain.mean() > 5 if good else gain.mean() > -5
