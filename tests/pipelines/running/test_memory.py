"""Streams in memory give the batches that streams give, bad samples included."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.running import memory
from pipelines.running.data import Round
from pipelines.running.memory import Memory, fits_memory
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import FILE, Quarantine, recorded
from pipelines.streams.reader import iter_plan
from pipelines.streams.shards import Sample, load_index, write_shards
from uml_core.errors import RunError
from uml_core.modalities import KINDS

BATCH, SEED = 6, 3


def vectors(folder, count=25, bad=()):
    """Shards of vectors that hold their own number; those in `bad` cannot be decoded."""
    samples = []
    for i in range(count):
        stream = io.BytesIO()
        np.save(stream, np.array([i, i + 0.5], np.float32))
        data = b"no array" if i in bad else stream.getvalue()
        samples.append(Sample(f"v{i:03d}", "npy", data, i % 3))
    write_shards(samples, str(folder), "text-train", "vector", per_shard=7)
    return load_index("text-train-*.tar", str(folder), "vector")


def vector(**options):
    return KINDS["vector"](KINDS["vector"].Options(dim=2, **options))


def held(index, out, name="text", budget=0.5, **options):
    return Memory({"text": vector(**options)}, BATCH, budget, out).streams(
        Round(SEED, 1, {name: index}, index)
    )[name]


@pytest.mark.parametrize("bad", [(), (0, 4, 5, 6, 24)])
@pytest.mark.parametrize("name", ["text", "text@2"])
def test_batches_are_those_of_the_stream(bad, name, tmp_path):
    index = vectors(tmp_path, bad=bad)
    rows = held(index, tmp_path / "out", name, normalise=True)
    plan = Plan(len(index), BATCH, SEED, "text")
    known = Quarantine(None, 0.5, rows=len(index))
    streamed = iter_plan(index, plan, vector(normalise=True), first=2, count=40, quarantine=known)
    order = rows.order(2, 42)
    for at, item in zip(order, streamed, strict=True):
        torch.testing.assert_close(rows.x[at], item.batch.x, rtol=0, atol=0)
        assert rows.y[at].tolist() == item.batch.y.tolist()
        assert [index.keys[i] for i in at] == item.batch.keys
    found = {line["key"] for line in recorded(tmp_path / "out" / FILE)}
    assert found == {f"v{i:03d}" for i in bad}


def test_rounds_share_what_they_read(tmp_path):
    index = vectors(tmp_path)
    memory = Memory({"text": vector()}, BATCH, 0.01, tmp_path / "out")
    one, other = (memory.streams(Round(s, 1, {"text": index}, index))["text"] for s in (1, 2))
    assert one.x is other.x
    assert not torch.equal(one.order(0, 4), other.order(0, 4))


def test_too_many_bad_samples_end_the_job(tmp_path):
    index = vectors(tmp_path, bad=range(10))
    with pytest.raises(RunError, match="of 25 samples cannot be used"):
        held(index, tmp_path / "out", budget=0.01)


def test_no_good_row_in_reach_ends_the_job(tmp_path):
    index = vectors(tmp_path, count=60, bad=range(1, 60))
    with pytest.raises(RunError, match="samples in a row cannot be used"):
        held(index, tmp_path / "out", budget=1000).order(0, 50)


def test_large_sets_are_left_to_the_streams(tmp_path, monkeypatch):
    index = vectors(tmp_path)
    streams = {"text": index, "text@2": replace(index)}
    rounds = [Round(seed, 1, streams, index) for seed in (0, 1)]
    monkeypatch.setattr(memory, "MEMORY_BYTES", 2 * 25 * 2 * 4)  # rounds share their rows
    assert fits_memory({"text": vector()}, rounds)
    monkeypatch.setattr(memory, "MEMORY_BYTES", 2 * 25 * 2 * 4 - 1)
    assert not fits_memory({"text": vector()}, rounds)
