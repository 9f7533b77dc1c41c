"""Decisions over frozen features: a real gain is found, noise is not, every arm must be beaten."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gaussians import world

from uml_core.compare.claim import decide
from uml_core.compare.heads import HEADS, decide_heads, shifts
from uml_core.errors import UserError
from uml_core.heads.bridge_sources import from_samples
from uml_core.heads.problem import Labelled

SEEDS = range(8)


@pytest.fixture(scope="module")
def planted():
    """(problem, bridge): what the auxiliary says carries over to the target."""
    problem, target, auxiliary = world(classes=10, noise=1.2)
    names = tuple(f"other {c}" for c in range(40))
    return problem, from_samples(target, auxiliary, names)


def test_a_planted_gain_is_claimed_over_every_arm(planted):
    problem, bridge = planted
    found = decide_heads(problem, 1, SEEDS, shifts(["map"], bridge))
    assert found.method == "text_shift:map" and found.baseline in HEADS
    over = found.evidence.over
    assert set(over) == {*HEADS, "text_shift:map_permuted", "text_shift:map_zero"}
    assert all(d.gain.mean > 0 for d in over.values())
    assert decide([found.evidence])[0][1]


def test_zero_is_the_logistic_head_itself(planted):
    problem, bridge = planted
    found = decide_heads(problem, 1, SEEDS, shifts(["map"], bridge))
    assert (found.hits["text_shift:map_zero"] == found.hits["logistic"]).all()


def test_an_auxiliary_of_noise_is_not_claimed(planted):
    problem, bridge = planted
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(problem.auxiliary.x.shape, generator=g)
    empty = dataclasses.replace(problem, auxiliary=Labelled(noise, problem.auxiliary.y))
    found = decide_heads(empty, 1, SEEDS, shifts(["map"], bridge))
    assert not decide([found.evidence])[0][1]


def test_auto_takes_the_method_that_validation_prefers(planted):
    problem, bridge = planted
    found = decide_heads(problem, 1, SEEDS, shifts(["map", "own"], bridge))
    tried = {name: found.val_nll[name] for name in ("text_shift:map", "text_shift:own")}
    assert found.method == min(tried, key=tried.get)


def test_nothing_to_decide_is_said(planted):
    with pytest.raises(UserError, match="a method and the logistic head"):
        decide_heads(planted[0], 1, SEEDS, {})
