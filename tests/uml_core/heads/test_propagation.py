import dataclasses

import pytest
import torch
from gaussians import accuracy, world

from uml_core.errors import UserError
from uml_core.heads.aux_shift import shift_of
from uml_core.heads.bridge_sources import from_samples
from uml_core.heads.linear import logistic
from uml_core.heads.propagation import _adjacency, _spread, label_propagation, propagated

SEEDS = tuple(range(6))


@pytest.fixture(scope="module")
def made():
    problem, target, auxiliary = world(noise=0.9)
    return problem, from_samples(target, auxiliary, [str(j) for j in range(40)])


def test_clusters_are_found_from_one_label_each(made):
    problem, _ = made
    draw = problem.draw(1, SEEDS)
    gain = accuracy(label_propagation(draw, propagated(draw, rest=True)), problem) - accuracy(
        logistic(draw.vectors), problem
    )
    assert gain.mean() > 10


def test_unlabelled_samples_serve_as_the_rest_of_the_pool_does(made):
    problem, _ = made
    given = dataclasses.replace(problem, unlabelled=problem.pool.x)
    draw = given.draw(1, SEEDS)
    graph = propagated(draw)
    assert graph.nodes.sum(1).tolist() == [len(problem.pool) + 8] * len(SEEDS)
    assert accuracy(label_propagation(draw, graph), problem).mean() > 85


def test_a_shift_adds_and_a_shift_of_zero_changes_nothing(made):
    problem, bridge = made
    draw = problem.draw(1, SEEDS)
    graph = propagated(draw, rest=True)
    alone = label_propagation(draw, graph)
    zero = label_propagation(draw, graph, shift_of(draw, "map", bridge, "zero"))
    assert torch.equal(zero.rule.weight, alone.rule.weight)
    shifted = label_propagation(draw, graph, shift_of(draw, "map", bridge))
    assert (accuracy(shifted, problem) - accuracy(alone, problem)).mean() > 0


def test_validation_samples_are_no_part_of_the_graph(made):
    problem = dataclasses.replace(made[0], val=None)
    draw = problem.draw(4, (0,))
    graph = propagated(draw, rest=True)
    assert len(graph.z) == len(problem.pool) - draw.val.shape[1]
    assert (graph.labels >= 0).sum() == draw.train.shape[1]


def test_propagation_is_the_truncated_series(made):
    z = torch.nn.functional.normalize(
        torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    )
    a = _adjacency(z)
    assert abs(a - a.T).max() < 1e-6
    assert (a.toarray() > 0).sum(1).min() >= 10
    labels = torch.full((1, 40), -1)
    labels[0, 0], labels[0, 1] = 0, 1
    dense, y = torch.from_numpy(a.toarray()), torch.zeros(40, 2)
    y[0, 0] = y[1, 1] = 1
    limit = 0.05 * torch.linalg.inv(torch.eye(40) - 0.95 * dense) @ y
    limit = limit / limit.sum(0)
    torch.testing.assert_close(
        _spread(a, labels, 2)[0], limit / limit.sum(1, keepdim=True), atol=0.02, rtol=0
    )


def test_without_unlabelled_samples_it_says_so(made):
    with pytest.raises(UserError, match="unlabelled"):
        propagated(made[0].draw(1, (0,)))
