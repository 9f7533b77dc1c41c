import dataclasses

import pytest
import torch
from gaussians import accuracy, world

from uml_core.controls import PermutedLabels, derangement
from uml_core.errors import UserError
from uml_core.heads.problem import Labelled, unit
from uml_core.heads.rules import best_scale
from uml_core.modalities.base import Batch
from uml_core.probes import few_shot_split


def test_draws_are_those_of_the_other_jobs():
    problem, _, _ = world()
    draw = problem.draw(8, (3, 5))
    at = problem.samples
    for i, seed in enumerate(draw.seeds):
        train, _ = few_shot_split(problem.pool.y.numpy(), 8, seed, 0, problem.classes, modality="x")
        val, _ = few_shot_split(problem.val.y.numpy(), 4, seed, 0, problem.classes, modality="x")
        assert torch.equal(at.x[draw.train[i]], problem.pool.x[train])
        assert torch.equal(at.x[draw.val[i]], problem.val.x[val])
    without = dataclasses.replace(problem, val=None)
    train, val = few_shot_split(problem.pool.y.numpy(), 8, 3, None, problem.classes, modality="x")
    drawn = without.draw(8, (3,))
    assert drawn.train[0].tolist() == train.tolist() and drawn.val[0].tolist() == val.tolist()
    assert drawn.merged().train.shape[1] == 8 * (8 + 4)


def test_a_seed_draws_few_of_the_auxiliary_as_the_other_jobs_do():
    problem, _, _ = world()
    few = dataclasses.replace(problem, auxiliary_shots=("t", 2))
    y = problem.auxiliary.y
    rows, _ = few_shot_split(y.numpy(), 2, 7, 0, problem.classes, modality="t")
    expected = Labelled(problem.auxiliary.x[rows], y[rows]).means(8)
    torch.testing.assert_close(few.auxiliary_means((3, 7))[1], expected)


def test_vectors_stand_about_the_mean_of_class_means():
    problem, _, _ = world()
    draw = problem.draw(2, (0, 1))
    v = draw.vectors
    x = problem.pool.x[draw.train[1]]
    centre = problem.pool.x[draw.train[1]].mean(0)  # balanced: the mean of all
    torch.testing.assert_close(v.centre[1], centre)
    torch.testing.assert_close(v.z[1], unit(x - centre))
    first = v.z[1][v.y[1] == 0].mean(0)
    torch.testing.assert_close(v.prototypes[1, 0], first - v.z[1].mean(0))


def test_permuted_means_are_those_of_permuted_labels():
    problem, _, _ = world()
    found = problem.auxiliary_means((4,), "permuted")[0]
    view = PermutedLabels(problem.num_classes, 4)
    y = view(Batch(problem.auxiliary.x, problem.auxiliary.y), 0).y
    torch.testing.assert_close(found, Labelled(problem.auxiliary.x, y).means(problem.num_classes))
    assert derangement(problem.num_classes, 4)[0] != 0


def test_dimensions_that_only_the_target_fills():
    problem, _, _ = world()
    assert not problem.unshared().any()  # another space
    empty = torch.zeros(len(problem.auxiliary), 24)
    empty[:, :10] = problem.auxiliary.x
    shared = dataclasses.replace(problem, auxiliary=Labelled(empty, problem.auxiliary.y))
    mask = shared.unshared()
    assert mask.tolist() == [False] * 10 + [True] * 14
    alone = shared.on(mask)
    assert alone.auxiliary is None
    torch.testing.assert_close(alone.test.x, problem.test.x[:, 10:])


def test_the_best_scale_is_found():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4000, 5, generator=generator, dtype=torch.float64)
    factors = torch.tensor([0.3, 2.0, 40.0], dtype=torch.float64)
    odds = torch.softmax(logits, -1)
    y = torch.multinomial(odds.flatten(0, 1), 1, generator=generator).view(3, 4000)
    found, nll = best_scale(logits / factors[:, None, None], y)
    torch.testing.assert_close(found, factors, rtol=0.08, atol=0)
    around = [
        torch.nn.functional.cross_entropy(logits[0] * found[0] / 0.3 * f, y[0])
        for f in (0.99, 1.01)
    ]
    assert nll[0] <= min(around)


def test_what_cannot_be_used_is_said():
    with pytest.raises(UserError, match=r"\(N, D\)"):
        Labelled(torch.zeros(3), torch.zeros(3))
    with pytest.raises(UserError, match="finite"):
        Labelled(torch.full((1, 2), torch.nan), torch.zeros(1, dtype=torch.int64))
    problem, _, _ = world()
    with pytest.raises(UserError, match="class 0"):
        problem.draw(31, (0,))
    with pytest.raises(UserError, match="auxiliary"):
        dataclasses.replace(problem, auxiliary=None).auxiliary_means((0,))


def test_accuracy_of_a_perfect_rule():
    problem, _, _ = world(noise=0.01)
    from uml_core.heads.linear import prototypes

    assert accuracy(prototypes(problem.draw(1, (0,)).vectors), problem).min() == 100
