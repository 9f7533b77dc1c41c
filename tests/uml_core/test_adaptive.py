"""The learned ratio: its budget, its direction, its determinism and its state."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from uml_core import recipe
from uml_core.adaptive import PROBE_BATCHES, Adaptive, shared_gradient
from uml_core.arms import applicable, build_fit
from uml_core.errors import UserError
from uml_core.loop import train
from uml_core.modalities.base import Batch

DIM, CLASSES = 8, 3


def spec(**adaptive):
    vector = {"kind": "vector", "train": "x.tar", "test": "y.tar", "dim": DIM, "stem": "linear"}
    return recipe.from_dict(
        {
            "name": "v",
            "target": "x",
            "data_root": ".",
            "modalities": {
                "x": dict(vector),
                "good": {**vector, "ratio": "adaptive"},
                "bad": {**vector, "ratio": "adaptive"},
            },
            "model": {"width": 16, "depth": 1, "heads": 2},
            "train": {
                "steps": 60,
                "batch_size": 16,
                "validate_every": 10,
                "lr": 1e-2,
                "adaptive": adaptive,
            },
        }
    )


class Streams:
    """Batch b of a modality is a pure function of both; `bad` has the labels of other classes."""

    def __init__(self, start=None):
        self.at = dict(start or {})
        self.centres = np.random.default_rng(0).normal(size=(CLASSES, DIM)) * 2

    def next(self, name):
        number = self.at.get(name, 0)
        self.at[name] = number + 1
        return number, self.batch(name, number)

    def batch(self, name, number, size=16):
        rng = np.random.default_rng([sum(name.encode()), number])
        y = rng.integers(CLASSES, size=size)
        x = self.centres[y] + rng.normal(size=(size, DIM))
        if name == "bad":
            y = (y + 1) % CLASSES
        return Batch(torch.tensor(x, dtype=torch.float32), torch.tensor(y))


def run(made, policy, streams, start=0, fit=None, checkpoint=None):
    modalities = {name: m.build() for name, m in made.modalities.items()}
    fit = fit or build_fit(made, "uml", 0, {}, modalities, num_classes=CLASSES)
    at = {"step": start}
    evaluate = policy.around(
        lambda fit: 50.0, [streams.batch("x", 10_000)], "x", lambda: at["step"] + 1
    )
    train(
        [fit],
        policy.watch(streams.next),
        policy.schedule,
        evaluate=evaluate,
        start=start,
        checkpoint=checkpoint and (lambda done: checkpoint(done, fit)),
        progress=lambda done: at.update(step=done),
    )
    return fit


def test_what_helps_is_taken_more_often_than_what_misleads():
    made = spec(mean=1.0)
    policy = Adaptive.of(made)
    run(made, policy, Streams())
    last = policy.history[-1]
    assert last["ratio"]["good"] > 1.5 * last["ratio"]["bad"]
    taken = policy.schedule.consumed(policy.schedule.total)
    assert taken["good"] > taken["bad"] > 0  # the floor keeps a way back


@pytest.mark.parametrize("mean", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("gains", [(1, 1), (1, -1), (-1, -1), (0, 0)])
def test_a_run_never_takes_more_than_its_budget(mean, gains):
    policy = Adaptive.of(spec(mean=mean))
    for step in range(10, 61, 10):
        policy.decide(step, dict(zip(("good", "bad"), gains, strict=True)))
    taken = policy.schedule.consumed(60)
    assert taken["good"] + taken["bad"] <= mean * 60 + 1  # rounding: half a batch each
    assert all(taken[name] <= most for name, most in policy.most().items())


@pytest.mark.parametrize("modality", ["good", "x"])
def test_a_warm_up_runs_out_of_no_stream(modality):
    """The lead of an adaptive modality's own warm-up comes on top of what its ratio may ask for."""
    warm = {"train.warmup": {"modality": modality, "steps": 15}}
    policy = Adaptive.of(recipe.override(spec(mean=1.0), warm))
    lead = policy.schedule.lead
    for step in range(lead + 10, lead + 61, 10):
        policy.decide(step, {"good": 1.0, "bad": -1.0})
    taken, most = policy.schedule.consumed(policy.schedule.total), policy.most()
    assert all(taken[name] <= most[name] for name in most)
    assert taken["good"] > 15 and most["good"] <= lead + 61
    budget = taken["good"] - lead + taken["bad"]
    assert 0.7 * 60 <= budget <= 61  # the warm-up is paid for beside


def test_prices_bound_what_is_spent():
    price = {"good": 0.1, "bad": 1.0}
    policy = Adaptive.of(spec(mean=0.5, price=price))
    assert policy.ratios["good"] == ((0, 2.5),) and policy.ratios["bad"] == ((0, 0.25),)
    for step in range(10, 61, 10):
        policy.decide(step, {"good": 1.0, "bad": 0.5})
    taken = policy.schedule.consumed(60)
    assert sum(price[n] * taken[n] for n in price) <= 0.5 * 60 + 1
    assert all(taken[name] <= most for name, most in policy.most().items())


def test_equal_gains_of_nothing_keep_the_even_pace():
    policy = Adaptive.of(spec(mean=1.0))
    policy.decide(10, {"good": 0.0, "bad": 0.0})
    assert policy.history[-1]["ratio"] == pytest.approx({"good": 0.5, "bad": 0.5})


def test_the_same_seed_gives_the_same_mix_and_weights():
    made = spec()
    one, two = Adaptive.of(made), Adaptive.of(made)
    first, second = run(made, one, Streams()), run(made, two, Streams())
    assert one.history == two.history
    for a, b in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_resumed_run_continues_exactly():
    """A checkpoint in the middle of a stretch: weights and plain numbers, streams a bit earlier."""
    made = spec()
    whole = Adaptive.of(made)
    kept = {}

    def keep(done, fit):
        if done == 35:
            kept.update(fit=copy.deepcopy(fit.state_dict()), policy=json.dumps(whole.state_dict()))

    object.__setattr__(made.train, "checkpoint_every", 35)
    finished = run(made, whole, Streams(), checkpoint=keep)

    policy = Adaptive.of(made)
    policy.load_state_dict(json.loads(kept["policy"]))
    modalities = {name: m.build() for name, m in made.modalities.items()}
    fit = build_fit(made, "uml", 0, {}, modalities, num_classes=CLASSES)
    fit.load_state_dict(kept["fit"])
    cursor = policy.schedule.consumed(35)
    streams = Streams(policy.rewound(cursor))
    assert max(cursor[n] - streams.at[n] for n in cursor) == PROBE_BATCHES
    policy.refill(streams.next, cursor)
    assert streams.at == cursor
    resumed = run(made, policy, streams, start=35, fit=fit)
    assert policy.history == whole.history
    for a, b in zip(finished.parameters, resumed.parameters, strict=True):
        assert torch.equal(a, b)


def test_the_gradient_is_that_of_the_mean_loss_on_shared_weights():
    made = spec()
    modalities = {name: m.build() for name, m in made.modalities.items()}
    fit = build_fit(made, "uml", 0, {}, modalities, num_classes=CLASSES)
    batches = [Streams().next("good") for _ in range(2)]
    found = shared_gradient(fit, "good", batches)
    sums, terms = zip(*(fit.learner([("good", b)]) for _, b in batches), strict=True)
    (sum(s.sum() for s in sums) / sum(t.sum() for t in terms)).backward()
    expected = torch.cat([p.grad.flatten() for p in fit.learner.shared_parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert fit.learner.training


def test_fixed_ratios_have_no_policy_and_compare_refuses_learned_ones():
    made = spec()
    assert Adaptive.of(recipe.override(made, {"modalities.good.ratio": 1.0})) is not None
    fixed = {"modalities.good.ratio": 1.0, "modalities.bad.ratio": 0.0}
    assert Adaptive.of(recipe.override(made, fixed)) is None
    with pytest.raises(UserError, match="uml sweep"):
        applicable(made)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"modalities.x.ratio": "adaptive"}, "target's ratio is 1"),
        ({"modalities.good.ratio": "adaptiv"}, "modalities.good.ratio"),
        ({"train.adaptive.mean": 0.0}, "must be above 0"),
        ({"train.adaptive.floor": 1.0}, "must be below 1"),
        ({"train.adaptive.price": {"god": 1.0}}, "did you mean 'good'"),
    ],
)
def test_problems_of_adaptive_fields_are_told(changes, said):
    with pytest.raises(UserError, match=said):
        recipe.override(spec(), changes)
