"""`trunk_frozen` holds for exactly its steps; resume and data parallelism: test_loop.py."""

import pytest
import torch

from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit, train
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.schedule import Schedule, Warmup
from uml_core.specs import ModelSpec, TrainSpec

STEPS = 12


def make_fit(frozen, *, mode="joint", warmup=None):
    kind = KINDS["vector"]
    learner = UnpairedLearner(
        {name: kind(kind.Options(dim=5)) for name in ("x", "a")},
        ModelSpec(width=8, depth=1, heads=2, trunk_frozen=frozen),
        num_classes=3,
    )
    spec = TrainSpec(steps=STEPS, lr=0.01, lr_warmup=0, weight_decay=0.1, mode=mode)
    schedule = Schedule("x", {"a": 1.0}, STEPS, warmup)
    return Fit("fit", learner, spec, ("x", "a"), {}, schedule)


def moving_steps(fit):
    """The steps in which the trunk's weights change, and those in which the others do."""
    moves = {"trunk": [], "others": []}
    step, state = fit.step, fit.learner.state_dict()

    def watched(batches, number):
        before = {name: value.clone() for name, value in state.items()}
        step(batches, number)
        changed = {name for name, value in state.items() if not torch.equal(before[name], value)}
        trunk = {name for name in state if name.startswith("trunk.")}
        assert changed & trunk in (set(), trunk), "all of the trunk or nothing"
        moves["trunk"] += [number] if changed & trunk else []
        moves["others"] += [number] if changed - trunk else []

    fit.step = watched
    generator = torch.Generator().manual_seed(0)

    def next_batch(name):
        return 0, Batch(torch.randn(8, 5, generator=generator), torch.arange(8) % 3)

    train([fit], next_batch, fit.schedule, evaluate=lambda fit: 0.0)
    return moves


@pytest.mark.parametrize("mode", ["joint", "alternate"])
@pytest.mark.parametrize(("frozen", "first"), [(False, 0), (0, 0), (5, 5), (12, 12), (True, 12)])
def test_a_frozen_trunk_keeps_its_weights_for_exactly_its_steps(mode, frozen, first):
    """Weight decay leaves it alone too."""
    moves = moving_steps(make_fit(frozen, mode=mode))
    assert moves == {"trunk": list(range(first, STEPS)), "others": list(range(STEPS))}


def test_a_warm_up_on_another_modality_is_frozen_and_does_not_count():
    """The target-only arm thaws at the same target batch, with a warm-up of others or without."""
    moves = moving_steps(make_fit(5, warmup=Warmup("a", 3)))
    assert moves["trunk"] == list(range(3 + 5, STEPS + 3))
    assert moving_steps(make_fit(0, warmup=Warmup("a", 3)))["trunk"] == list(range(STEPS + 3))
