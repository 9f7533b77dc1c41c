"""What the loop must not let pass: weights that are not finite, skipping without end, data that
no fit weighs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch

from uml_core import loop
from uml_core.errors import RunError
from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit, train
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.schedule import Schedule
from uml_core.specs import ModelSpec, TrainSpec

SPEC = TrainSpec(steps=12, batch_size=8, lr=0.01, lr_warmup=2, validate_every=3, checkpoint_every=5)


def make_fit(weights=(1.0, 1.0), **spec):
    kind, schedule = KINDS["vector"], Schedule("x", {"a": 1.0}, SPEC.steps)
    modalities = {name: kind(kind.Options(dim=5)) for name in "xa"}
    learner = UnpairedLearner(modalities, ModelSpec(width=8, depth=1, heads=2), num_classes=4)
    spec = dataclasses.replace(SPEC, **spec)
    return Fit("fit", learner, spec, ["x", "a"], dict(zip("xa", weights, strict=True)), schedule)


class Stream:
    """Numbered batches; those of `a` from number `spoilt` on hold no number."""

    def __init__(self, spoilt=math.inf):
        self.taken, self.spoilt = Counter(), spoilt

    def __call__(self, name):
        number = self.taken[name]
        self.taken[name] += 1
        g = torch.Generator().manual_seed(1000 * ord(name) + number)
        x = torch.randn(8, 5, generator=g)
        if name == "a" and number >= self.spoilt:
            x[0] = math.nan
        return number, Batch(x, torch.randint(0, 4, (8,), generator=g))


def run(fit, stream, **more):
    train([fit], stream, fit.schedule, evaluate=lambda fit: 1.0, **more)


def overflow_at(fit, update):
    """The gradient of the classifier overflows in one update; its loss is finite."""
    calls = []

    def spoil(grad):
        calls.append(1)
        return grad * math.inf if len(calls) == update else grad

    fit.learner.classifier.weight.register_hook(spoil)


@pytest.mark.parametrize(("update", "kept"), [(3, []), (5, []), (9, [5]), (10, [5])])
def test_weights_that_are_not_finite_are_neither_saved_nor_validated(update, kept):
    """Update 5 is the last before a checkpoint, 3 and 9 before a validation."""
    fit, saved = make_fit(), []
    overflow_at(fit, update)

    def checkpoint(done):
        assert all(p.isfinite().all() for p in fit.parameters)
        saved.append(done)

    with pytest.raises(RunError, match="non-finite at step"):
        train([fit], Stream(), fit.schedule, evaluate=lambda _: 1.0, checkpoint=checkpoint)
    assert saved == kept and fit.diverged_at in (update - 1, update)
    if fit.best_weights is not None:
        assert all(value.isfinite().all() for value in fit.best_weights.values())


def test_skipping_has_an_end_with_advice(monkeypatch):
    monkeypatch.setattr(loop, "MOST_SKIPPED", 4)
    fit = make_fit(on_nan="skip")
    with pytest.raises(RunError, match=r"4 times in a row, the last at step 8: lower") as ended:
        run(fit, Stream(spoilt=5))
    assert "on_nan" not in str(ended.value) and fit.skipped == 3


def test_the_count_of_skips_starts_again_with_every_update(monkeypatch):
    monkeypatch.setattr(loop, "MOST_SKIPPED", 2)
    fit = make_fit(on_nan="skip")
    overflow_at(fit, 4)
    run(fit, Stream())
    assert fit.skipped == 1 and fit.skipped_in_a_row == 0


def test_a_modality_of_weight_0_is_not_even_asked_for():
    stream = Stream()
    run(make_fit(weights=(1.0, 0.0)), stream)
    assert stream.taken == {"x": 12}
