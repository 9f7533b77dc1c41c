"""What is concluded from records: the best, the knobs, equals."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.tuning.conclusion import best_of, equals_of, importance
from pipelines.tuning.journal import Record
from uml_core.errors import RunError


@pytest.fixture
def record(make_trial):
    """A trial's record: its scores per seed at the end, after the means in `curve`."""

    def build(key, values, accuracies, status="finished", arm="uml", curve=()):
        means = [*curve, float(np.mean(accuracies))]
        reports = [
            {"val_accuracy": v, "val_accuracies": [v, v], "step": i} for i, v in enumerate(means)
        ]
        reports[-1]["val_accuracies"] = list(accuracies)
        return Record(make_trial(key, values=values, arm=arm), reports, None, status)

    return build


def test_the_best_is_the_best_mean_that_reached_its_end(record):
    records = [
        record("base", {}, [20, 22], arm="unimodal"),
        record("good", {"a": 1}, [30, 32]),
        record("stopped", {"a": 2}, [60, 60], status="stopped"),
        record("diverged", {"a": 3}, [50, 50], status="diverged"),
    ]
    best, baseline = best_of(records)
    assert (best.trial.key, baseline.trial.key) == ("good", "base")
    with pytest.raises(RunError, match="no configuration with auxiliary data"):
        best_of(records[:1])


def test_importance_finds_the_knob_that_matters_and_leaves_noise_alone(record):
    rng = np.random.default_rng(0)
    records = [
        record(f"{a}{b}{i}", {"a": a, "b": b}, [20 + 5 * a + rng.normal()] * 2)
        for a in (0, 1, 2)
        for b in ("x", "y")
        for i in range(3)
    ]
    knobs = importance(records)["knobs"]
    assert list(knobs) == ["a", "b"]
    assert knobs["a"]["share"] > 0.8 and knobs["a"]["p"] < 0.01
    assert knobs["b"]["share"] < 0.1 and knobs["b"]["p"] > 0.05


def test_importance_of_a_number_drawn_from_a_stretch_and_of_too_few_trials(record):
    records = [record(str(i), {"rate": i / 30}, [20 + i, 20 + i]) for i in range(30)]
    assert importance(records)["knobs"]["rate"]["p"] < 0.01
    assert importance(records[:3])["knobs"] == {}


def test_trials_are_compared_where_all_of_them_still_ran(record):
    """A trial stopped early counts with what the others had at that time."""
    records = [
        record(str(i), {"a": i % 2}, [50 + i, 50 + i], curve=[10 * (i % 2), 30]) for i in range(6)
    ]
    records.append(record("early", {"a": 0}, [0, 0], status="stopped"))
    found = importance(records)
    assert found["validation"] == 1 and found["knobs"]["a"]["share"] > 0.9


def test_equals_are_those_whose_paired_difference_contains_zero(record):
    best = record("best", {"a": 1}, [30, 40, 50])
    same = record("same", {"a": 2}, [31, 38, 50])
    worse = record("worse", {"a": 3}, [20, 30.5, 39.5])  # far apart, but always below
    assert equals_of([best, same, worse], best) == ["same"]
