import dataclasses

import pytest
import torch
from gaussians import DIMS, accuracy, world

from uml_core.errors import UserError
from uml_core.heads.aux_shift import KAPPAS, Shift, auxiliary_rows, shift_of, text_shift
from uml_core.heads.bridge_sources import from_samples
from uml_core.heads.linear import logistic, prototypes
from uml_core.heads.problem import Labelled, unit

SEEDS = tuple(range(8))


@pytest.fixture(scope="module")
def made():
    problem, target, auxiliary = world(noise=1.5)
    bridge = from_samples(target, auxiliary, [str(j) for j in range(40)])
    return problem, bridge


def shared(problem):
    """The auxiliary in the target's own space: its classes' true directions."""
    x = problem.test.means(problem.num_classes) * 3 + 1
    return dataclasses.replace(problem, auxiliary=Labelled(x, torch.arange(problem.num_classes)))


@pytest.mark.parametrize("head", [prototypes, logistic])
@pytest.mark.parametrize("rows", ["map", "own"])
def test_zero_is_the_head_without_the_auxiliary(made, head, rows):
    problem, bridge = made
    draw = problem.draw(2, SEEDS)
    plain, zero = head(draw.vectors), text_shift(draw, rows, head, bridge, "zero")
    assert torch.equal(zero.rule.weight, plain.rule.weight)
    assert torch.equal(zero.val_nll, plain.val_nll)
    assert {c["kappa"] for c in zero.chosen} == {0.0}


def test_prototypes_of_shifted_samples(made):
    """kappa at one sample per class: the rule is u(M + kappa P), about the moved mean."""
    problem, _ = made
    v = problem.draw(1, (0,)).vectors
    rows = torch.randn(1, 8, DIMS, generator=torch.Generator().manual_seed(0))
    moved = Shift(rows, torch.tensor([0.5]))(v)
    expected = unit(v.z + 0.5 * rows[:, v.y[0]])
    torch.testing.assert_close(moved.z, expected)
    assert torch.equal(moved.val_z, v.val_z)


@pytest.mark.parametrize("rows", ["shared", "map", "bank", "both"])
def test_a_gain_where_the_auxiliary_knows_and_none_from_its_permutation(made, rows):
    problem, bridge = made
    problem = shared(problem) if rows == "shared" else problem
    draw = problem.draw(1, tuple(range(20)))
    plain = logistic(draw.vectors)
    gain, control = (
        (
            accuracy(text_shift(draw, rows, logistic, bridge, c, plain), problem)
            - accuracy(plain, problem)
        ).mean()
        for c in (None, "permuted")
    )
    assert gain > 5
    assert abs(control) < 3


def test_seeds_of_kappa_zero_take_the_plain_result(made):
    problem, bridge = made
    draw = problem.draw(2, SEEDS)
    plain = logistic(draw.vectors)
    short = text_shift(draw, "map", logistic, bridge, "permuted", plain)
    whole = text_shift(draw, "map", logistic, bridge, "permuted")
    still = torch.tensor([c["kappa"] == 0 for c in short.chosen])
    assert still.any() and not still.all()
    assert torch.equal(short.rule.weight[still], plain.rule.weight[still])
    torch.testing.assert_close(short.val_nll, whole.val_nll, atol=1e-3, rtol=0)
    assert {round(c["kappa"], 5) for c in short.chosen} <= set(KAPPAS)


def test_own_leaves_the_class_out(made):
    """P_c does not depend on class c's own samples, and is the plain kernel ridge of the others."""
    problem, _ = made
    draw = problem.draw(2, (0,))
    v, means = draw.vectors, problem.auxiliary_means((0,))
    from uml_core.heads.aux_shift import _own

    p, kappa = _own(v, means)
    direction = unit(means[0] - means[0].mean(0))
    kernel = torch.exp(-4 * (1 - direction @ direction.mT))
    for c in range(problem.num_classes):
        others = [j for j in range(problem.num_classes) if j != c]
        m = v.prototypes[0, others]
        dual = torch.linalg.solve(kernel[others][:, others] + torch.eye(7), m - m.mean(0))
        torch.testing.assert_close(p[0, c], kernel[c, others] @ dual, atol=1e-4, rtol=1e-3)
    assert kappa.shape == (1,) and kappa[0] >= 0


def test_absent_auxiliary_classes_do_not_move(made):
    problem, bridge = made
    means = problem.auxiliary_means((0,)).clone()
    means[0, 3] = torch.nan
    for rows in ("map", "bank", "both"):
        p = auxiliary_rows(means, rows, DIMS, bridge)
        assert p.isfinite().all() and (p[0, 3] == 0).all() and (p[0, 2] != 0).any()
    shown = problem.auxiliary.y != 3
    part = Labelled(problem.auxiliary.x[shown], problem.auxiliary.y[shown])
    draw = dataclasses.replace(problem, auxiliary=part).draw(1, (0,))
    assert shift_of(draw, "own").rows.isfinite().all()


def test_what_is_missing_is_said(made):
    problem, _ = made
    draw = problem.draw(1, (0,))
    with pytest.raises(UserError, match="uml bridge"):
        text_shift(draw, "map")
    with pytest.raises(UserError, match="no space"):
        text_shift(draw, "shared")
