"""A trial without Ray: the batches of the streams, seeds in lockstep, exact resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.running.data import make_round, open_data, resolved
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import EVALUATION, FILE
from pipelines.streams.reader import iter_plan
from pipelines.tuning.design import Pricing
from pipelines.tuning.held import TrialFeed, hold
from pipelines.tuning.trial import Shared, TrialRun, caches_of
from tune_spaces.base import Point
from uml_core import recipe
from uml_core.arms import build_fit
from uml_core.loop import train


@pytest.fixture
def shared(tiny_recipe, tmp_path) -> Shared:
    made = recipe.from_dict(tiny_recipe)
    data = open_data(made)
    held = hold(data.modalities, data.train, tmp_path, made.quarantine_budget)
    return Shared(resolved(made, data), data, held, str(tmp_path), 0)


def trial(shared, settings=None, **changes):
    pricing = Pricing(shared.recipe, shared.data)
    return replace(pricing.trial("t", "uml", Point({}, settings or {})), **changes)


def run(one, shared, state=None, caches=None):
    made = TrialRun(one, shared, caches_of(shared) if caches is None else caches, state=state)
    reports, states = [], []

    def report(metrics, kept):
        reports.append(metrics)
        states.append(kept)

    made.run(report)
    return made, reports, states


def test_held_samples_make_the_batches_of_the_streams(shared):
    """Also for a rank's part, and for series of many lengths."""
    assert set(shared.held) == {"image", "text", "wave"}
    at = make_round(shared.recipe, shared.data, 3, 4)
    batches = dict.fromkeys(at.train, 9)
    for part in ((0, 1), (1, 2)):
        feed = TrialFeed(
            shared.data.modalities, at, batches, 8, caches_of(shared), part, {"text": 2}
        )
        for name, modality in shared.data.modalities.items():
            plan, first = Plan(len(at.train[name]), 8, 3, name), 2 if name == "text" else 0
            stream = iter_plan(
                at.train[name], plan, modality, first=first, count=4, rank=part[0], world=part[1]
            )
            for item in stream:
                number, batch = feed.next(name)
                assert number == item.number and torch.equal(batch.y, item.batch.y)
                assert torch.equal(batch.x, item.batch.x)
                assert (batch.mask is None) == (item.batch.mask is None)


def test_what_is_not_held_is_read_and_gives_the_same_result(shared):
    one = trial(shared, steps=6)
    _, held, _ = run(one, shared)
    _, read, _ = run(one, shared, caches={})
    assert held[-1]["val_accuracies"] == read[-1]["val_accuracies"]


def test_a_trial_is_what_the_plain_loop_gives_seed_by_seed(shared):
    made, reports, _ = run(trial(shared), shared)
    assert [r["step"] for r in reports] == [4, 8, 12]
    assert [r["spent"] for r in reports] == [33, 66, 100]
    spec = shared.recipe
    for seed, mine in zip(spec.seeds, made.seeds, strict=True):
        at = make_round(spec, shared.data, seed, 4)
        fit = build_fit(spec, "uml", seed, {}, shared.data.modalities, num_classes=3)
        feed = TrialFeed(shared.data.modalities, at, {"image": 12, "text": 12, "wave": 6}, 8, {})
        train([fit], feed.next, spec.schedule(), evaluate=mine.evaluate)
        for a, b in zip(fit.parameters, mine.fit.parameters, strict=True):
            assert torch.equal(a, b)
        assert fit.history["val_accuracy"] == mine.fit.history["val_accuracy"]


@pytest.mark.parametrize("settings", [{}, {"modalities.text.ratio": "adaptive"}])
def test_a_resumed_trial_continues_exactly(shared, settings):
    one = trial(shared, settings)
    whole, reports, states = run(one, shared)
    middle = next(i for i, state in enumerate(states[:-1]) if state is not None)
    again = TrialRun(one, shared, caches_of(shared))
    caught = []  # states hold references to live tensors: one is kept as a file keeps it

    def report(metrics, kept):
        if kept is not None and not caught:
            path = f"{shared.out}/state.pt"
            torch.save(kept, path)
            caught.append(torch.load(path, weights_only=True))

    again.run(report)
    resumed, rest, _ = run(one, shared, state=caught[0])
    assert [r["step"] for r in rest] == [r["step"] for r in reports[middle + 1 :]]
    assert rest[-1]["val_accuracies"] == reports[-1]["val_accuracies"]
    assert rest[-1].get("mix") == reports[-1].get("mix")
    for a, b in zip(whole.seeds, resumed.seeds, strict=True):
        for p, q in zip(a.fit.parameters, b.fit.parameters, strict=True):
            assert torch.equal(p, q)


def test_a_trial_restored_after_its_last_step_only_reports(shared):
    one = trial(shared)
    _, reports, states = run(one, shared)
    _, again, _ = run(one, shared, state=states[-1])
    assert len(again) == 1 and again[0]["spent"] == 100
    assert again[0]["val_accuracies"] == reports[-1]["val_accuracies"]


def test_a_diverged_seed_is_told_and_does_not_end_the_trial(shared):
    one = trial(shared, {"train.lr": 1e30})
    _, reports, _ = run(one, shared)
    assert reports[-1]["spent"] == 100 and any(reports[-1]["diverged"])


def test_the_test_set_is_read_only_where_the_trial_says_so(shared):
    _, plain, _ = run(trial(shared), shared)
    _, tested, _ = run(trial(shared, test=True), shared)
    assert all("test_accuracies" not in report for report in plain)
    assert "test_accuracies" not in tested[0]
    assert np.all(np.array(tested[-1]["test_accuracies"]) >= 0)
    assert len(tested[-1]["histories"]) == 2


def test_learned_ratios_report_their_mix_and_the_batches_they_took(shared):
    settings = {"modalities.text.ratio": "adaptive", "modalities.wave.ratio": "adaptive"}
    _, reports, _ = run(trial(shared, settings), shared)
    mixes = reports[-1]["mix"]
    assert len(mixes) == 2 and [entry["step"] for entry in mixes[0]] == [4, 8]
    assert reports[-1]["batches"]["text"] + reports[-1]["batches"]["wave"] <= 12 + 1


def test_a_bad_test_sample_is_left_out_and_written_down(tiny_recipe, tiny_data, tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(tiny_data, root)
    made = recipe.from_dict({**tiny_recipe, "data_root": str(root)})
    data = open_data(made)
    index = data.test["image"]
    with open(index.shards[index.shard_ids[3]].url, "r+b") as tar:
        tar.seek(int(index.offsets[3]))
        tar.write(b"not a picture")
    out.mkdir()
    held = hold(data.modalities, data.train, out, made.quarantine_budget)
    shared = Shared(resolved(made, data), data, held, str(out), 0)
    _, reports, _ = run(trial(shared, test=True), shared)
    assert len(reports[-1]["test_accuracies"]) == len(made.seeds)
    [line] = (out / FILE).read_text().splitlines()
    assert json.loads(line)["key"] == index.keys[3]
    assert json.loads(line)["found_in"] == EVALUATION
