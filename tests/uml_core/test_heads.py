"""Batched fits of heads end where the general loop ends, fit by fit."""

import dataclasses
import functools

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
from uml_core.specs import ModalitySpec, ModelSpec, TrainSpec

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


POINTS = [{"lr": lr, "weight": w} for lr in (0.1, 0.01) for w in (0.3, 1.0)]


def both(r, seeds=(0, 1), points=POINTS):
    """The same fits by the general loop, seed by seed, and all at once."""
    streams = {seed: {name: stream(r, name, seed) for name in r.active} for seed in seeds}
    judges = {
        seed: classifier_accuracy(r.target, [Batch(*samples(r, r.target, seed + 50))])
        for seed in seeds
    }
    modalities = {name: spec.build() for name, spec in r.modalities.items()}

    def build(seed):
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


# Every field that a fit could be told to train differently by: values that the stacked heads take,
# LOOP for those that they leave to the general loop, or why a head's fit cannot tell.
LOOP = "left to the loop"
TRAIN = {
    "steps": [31],
    "lr": [0.03],
    "weight_decay": [0.0, 2.0],
    "lr_schedule": ["constant"],
    "lr_warmup": [0, 15],
    "lr_factors": [{"stems.x": 0.1, "classifier": 3.0}, {"stems.u.projection": 5}],
    "clip": LOOP,
    "label_smoothing": [0.3],
    "mode": LOOP,
    "warmup": [{"modality": "t", "steps": 14}, {"modality": "x", "steps": 6}],
    "validate_every": [7],
    "gradients_every": [0, 2],
    "patience": [1],
    "precision": LOOP,
    "on_nan": LOOP,
    "batch_size": "of the streams, which the caller gives",
    "adaptive": "compare refuses adaptive ratios",
    "compile": "of the trunk",
    "parallel": "of one worker's fits",
    **dict.fromkeys(
        ("device", "workers", "worker_resources", "data_nodes", "checkpoint_every", "max_failures",
         "resize_seconds", "storage"),
        "of the job",
    ),
}  # fmt: skip
MODEL = {
    "width": [5],
    "logit_scale": ["learned"],
    "logit_scale_value": [0.3],
    "trunk": "none is what makes a head",
    "head_init": "both start from the same learner",
    **dict.fromkeys(
        ("depth", "heads", "ff", "dropout", "norm", "norm_eps", "activation", "input_projection",
         "input_norm", "positions", "max_positions", "trunk_init", "trunk_frozen"),
        "of the trunk",
    ),
}  # fmt: skip
MODALITY = {
    "ratio": [0.0, 0.7, 3.0, [[0, 0.0], [6, 2.0], [15, 0.5]]],
    "weight": [0.2, 5.0],
    "kind": "vectors are what makes a head",
    "options": "of the stem, which both have",
    **dict.fromkeys(("train", "val", "test", "shots", "member"), "of the data"),
}


def options():
    """(group, field, value) of everything above that the stacked heads take."""
    for group, table in (("train", TRAIN), ("model", MODEL), ("modality", MODALITY)):
        for name, values in table.items():
            yield from ((group, name, v) for v in (values if isinstance(values, list) else ()))


def with_option(group, name, value):
    if group == "modality":
        return recipe(modalities={"u": {name: value}})
    if name == "width":
        return recipe(model={name: value}, modalities={"t": {"dim": value}})
    return recipe(**{group: {name: value}})


FEW = ({}, {"lr": 0.1, "weight": 0.3})


@functools.cache
def usual():
    """The fits without any option."""
    return both(recipe(), (0,), FEW)[0]


def test_every_option_is_compared_left_to_the_loop_or_cannot_tell():
    """A new field must take its place in one of the tables."""
    for spec, table in ((TrainSpec, TRAIN), (ModelSpec, MODEL), (ModalitySpec, MODALITY)):
        assert {f.name for f in dataclasses.fields(spec)} == table.keys()
    left = {"clip": 1.0, "mode": "alternate", "precision": "bf16", "on_nan": "skip"}
    assert left.keys() == {name for name, values in TRAIN.items() if values == LOOP}
    assert not any(batchable(recipe(train={name: value})) for name, value in left.items())
    assert not batchable(recipe(modalities={"u": {"ratio": "adaptive"}}))


@pytest.mark.parametrize("option", list(options()), ids=str)
def test_every_option_gives_the_weights_of_the_general_loop(option):
    r = with_option(*option)
    assert batchable(r)
    alone, together = both(r, (0,), FEW)
    moved = 0.0
    for one, other, plain in zip(alone, together, usual(), strict=True):
        assert one.history["steps"] == other.history["steps"]
        for name, value in one.learner.state_dict().items():
            found = other.learner.state_dict()[name]
            torch.testing.assert_close(found, value, rtol=1e-3, atol=2e-5, msg=f"{one.name} {name}")
            before = plain.learner.state_dict().get(name, torch.tensor(torch.inf))
            same = before.shape == value.shape
            moved = max(moved, float((before - value).abs().max()) if same else torch.inf)
    looks = option[1] in ("validate_every", "gradients_every")
    assert (moved < 1e-6) if looks else (moved > 1e-3)  # the option does something here


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


def test_a_trunk_is_left_to_the_general_loop():
    assert not batchable(recipe(model={"trunk": "transformer"}))


def test_every_fit_of_a_comparison_knows_its_own_settings():
    made = recipe()
    settings = {(u.arm, u.point): u.settings(made) for u in units_of(made, applicable(made), 0, 4)}
    assert settings["unimodal", 1] == {"lr": 0.1, "weight_decay": 0.5}
    assert settings["uml", 1] == {"lr": 0.1, "weight": 1.0}
    assert settings["uml", 2] == {"lr": 0.01, "weight": 0.3}
    for arm in applicable(made):
        assert [settings[arm, point] for point in range(4)] != [settings[arm, 0]] * 4
