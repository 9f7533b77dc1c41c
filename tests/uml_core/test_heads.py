"""Batched fits of heads end where the general loop ends, fit by fit."""

import pytest
import torch
from recipes import changed

from uml_core.arms import applicable, build_fit
from uml_core.comparison import units_of
from uml_core.errors import RunError
from uml_core.evaluation import classifier_accuracy
from uml_core.heads import stacked as heads
from uml_core.heads.stacked import Rows, batchable, train_heads
from uml_core.loop import train
from uml_core.modalities.base import Batch

CLASSES, BATCH = 4, 6


def recipe(**changes):
    base = {
        "name": "r",
        "data_root": ".",
        "target": "x",
        "modalities": {
            "x": {"kind": "vector", "train": "x", "dim": 6},
            "t": {"kind": "vector", "train": "t", "dim": 8, "stem": "identity"},
            "u": {"kind": "vector", "train": "u", "dim": 5},
        },
        "model": {"width": 8, "trunk": "none", "heads": 1},
        "train": {"steps": 23, "batch_size": BATCH, "validate_every": 4, "gradients_every": 5},
        "compare": {
            "grid": {"lr": [0.1, 0.01]},
            "auxiliary_grid": {"weight": [0.3, 1.0]},
            "unimodal_grid": {"weight_decay": [0.01, 0.5]},
        },
    }
    return changed(base, changes)


def samples(r, name, seed, count=40):
    """Vectors around one point per class: there is something to learn, and to be wrong about."""
    g = torch.Generator().manual_seed(100 * seed + ord(name))
    points = torch.randn(CLASSES, r.modalities[name].options.dim, generator=g)
    y = torch.randint(0, CLASSES, (count,), generator=g)
    x = points[y] + 1.5 * torch.randn(count, points.shape[1], generator=g)
    y[::7] = -1  # unlabelled samples are legal
    return x, y


def stream(r, name, seed):
    x, y = samples(r, name, seed)

    def order(first, stop):
        numbers = torch.arange(first * BATCH, stop * BATCH) * 7 + 3 * seed
        return (numbers % len(x)).view(-1, BATCH)

    return Rows(x, y, order)


def both(r, seeds=(0, 1)):
    """The same fits by the general loop, seed by seed, and all at once."""
    streams = {seed: {name: stream(r, name, seed) for name in r.active} for seed in seeds}
    judges = {
        seed: classifier_accuracy(r.target, [Batch(*samples(r, r.target, seed + 50))])
        for seed in seeds
    }
    modalities = {name: spec.build() for name, spec in r.modalities.items()}

    def build(seed):
        points = [{"lr": lr, "weight": w} for lr in (0.1, 0.01) for w in (0.3, 1.0)]
        return [
            build_fit(
                r,
                arm,
                seed,
                point,
                modalities,
                num_classes=CLASSES,
                head_batches=lambda name: [Batch(streams[seed][name].x, streams[seed][name].y)],
            )
            for arm in applicable(r)
            for point in points
        ]

    alone = []
    for seed in seeds:
        fits = build(seed)
        given = dict.fromkeys(r.active, 0)

        def next_batch(name, seed=seed, given=given):
            number, rows = given[name], streams[seed][name]
            given[name] += 1
            at = rows.order(number, number + 1)[0]
            return number, Batch(rows.x[at], rows.y[at])

        train(fits, next_batch, r.schedule(), evaluate=judges[seed])
        alone += fits
    together = [(seed, fit) for seed in seeds for fit in build(seed)]
    ticks = []
    train_heads(
        [fit for _, fit in together],
        [streams[seed] for seed, _ in together],
        [judges[seed] for seed, _ in together],
        schedule=r.schedule(),
        progress=ticks.append,
    )
    assert ticks == sorted(ticks) and ticks[-1] == len(together) * r.schedule().total
    return alone, [fit for _, fit in together]


CASES = {
    "projections and a direct head": {},
    "validations run out": {"train": {"patience": 1}},
    "learned scales, smoothed labels": {
        "model": {"logit_scale": "learned", "logit_scale_value": 3.0},
        "train": {"label_smoothing": 0.2},
    },
    "a fixed scale": {"model": {"logit_scale_value": 5.0}},
    "seldom and often": {"modalities": {"t": {"ratio": 0.4}, "u": {"ratio": 2.0}}},
    "another one first": {"train": {"warmup": {"modality": "t", "steps": 5}}},
    "no projection": {
        "model": {"width": 6},
        "modalities": {
            "x": {"stem": "identity"},
            "t": {"dim": 6, "stem": "identity"},
            "u": {"ratio": 0.0},
        },
    },
}


@pytest.mark.parametrize("case", CASES)
def test_fits_end_as_those_of_the_general_loop(case):
    check(recipe(**{key: dict(value) for key, value in CASES[case].items()}))


@pytest.mark.parametrize("size", [1, 5000], ids=["one by one", "a few at a time"])
def test_the_size_of_a_stack_changes_nothing(size, monkeypatch):
    monkeypatch.setitem(heads.STACK_BYTES, "cpu", size)
    check(recipe(train={"patience": 1}))


def check(r):
    """Every fit's curves, losses, gradient reports and best weights, both ways."""
    assert batchable(r)
    for one, other in zip(*both(r), strict=True):
        assert one.name == other.name
        assert one.history["steps"] == other.history["steps"], one.name
        assert one.history["val_accuracy"] == other.history["val_accuracy"], one.name
        assert one.best_step == other.best_step and one.stopped == other.stopped
        for a, b in zip(one.history["losses"], other.history["losses"], strict=True):
            assert a == pytest.approx(b, rel=1e-4)
        for a, b in zip(one.history["gradients"], other.history["gradients"], strict=True):
            assert a["step"] == b["step"]
            assert a["cosine"] == pytest.approx(b["cosine"], abs=1e-3)
        for name, value in one.best_weights.items():
            torch.testing.assert_close(other.best_weights[name], value, rtol=1e-3, atol=1e-5)


def test_a_fit_that_diverges_leaves_the_others_alone():
    r = recipe(compare={"grid": {"lr": [0.01]}}, train={"lr": 0.01})
    rows = {name: stream(r, name, 0) for name in r.active}
    modalities = {name: spec.build() for name, spec in r.modalities.items()}
    fits = [build_fit(r, "unimodal", 0, {}, modalities, num_classes=CLASSES) for _ in range(3)]
    with torch.no_grad():
        fits[1].learner.classifier.weight.fill_(float("inf"))
    judge = classifier_accuracy("x", [Batch(*samples(r, "x", 7))])
    train_heads(fits, [rows] * 3, [judge] * 3, schedule=r.schedule())
    assert [fit.diverged_at for fit in fits] == [None, 0, None]
    assert fits[1].history["steps"] == []
    assert fits[0].history == fits[2].history and fits[0].history["steps"][-1] == 23

    with torch.no_grad():
        for fit in fits:
            fit.diverged_at, fit.stopped = None, False
            fit.learner.classifier.weight.fill_(float("nan"))
    with pytest.raises(RunError, match=r"became non-finite at step 0: lower train\.lr"):
        train_heads(fits, [rows] * 3, [judge] * 3, schedule=r.schedule())


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"trunk": "transformer"}},
        {"train": {"mode": "alternate"}},
        {"train": {"clip": 1.0}},
        {"train": {"on_nan": "skip"}},
        {"train": {"precision": "bf16"}},
    ],
)
def test_other_fits_are_left_to_the_general_loop(changes):
    assert not batchable(recipe(**changes))


def test_every_fit_of_a_comparison_knows_its_own_settings():
    made = recipe()
    settings = {(u.arm, u.point): u.settings(made) for u in units_of(made, applicable(made), 0, 4)}
    assert settings["unimodal", 1] == {"lr": 0.1, "weight_decay": 0.5}
    assert settings["uml", 1] == {"lr": 0.1, "weight": 1.0}
    assert settings["uml", 2] == {"lr": 0.01, "weight": 0.3}
    for arm in applicable(made):
        assert [settings[arm, point] for point in range(4)] != [settings[arm, 0]] * 4
