"""Modalities whose lengths differ by 1000 x: one execution each, a fresh order in every epoch, no
pause at its end."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from pipelines.streams import source
from pipelines.streams.plan import Plan
from pipelines.streams.reader import BatchStream, ray_stream
from pipelines.streams.shards import Sample, load_index, write_shards
from pipelines.streams.source import Segment
from uml_core.modalities import KINDS

pytestmark = pytest.mark.ray
SMALL, LARGE, BATCH, STEPS = 6, 6000, 4, 900
STEP_SECONDS = 0.004


def texts(folder, n):
    samples = [Sample(f"t{i:05d}", "txt", f"number {i}".encode(), i % 3) for i in range(n)]
    write_shards(samples, str(folder / str(n)), "text-train", "text", per_shard=1000)
    return load_index("text-train-*.tar", str(folder / str(n)), "text")


@pytest.fixture(scope="module")
def taken(ray_cluster, tmp_path_factory):
    """(executions started, keys per step, seconds that each step waited) per number of samples.

    A step takes a batch of both modalities and then a few milliseconds, as training would.
    """
    folder, executions = tmp_path_factory.mktemp("epochs"), Counter()
    make, modality = source._dataset, KINDS["text"](KINDS["text"].Options(vocab=64))

    def counted(chunks, shared, *rest):
        executions[len(shared.places[0].sizes)] += 1
        return make(chunks, shared, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_dataset", counted)
        streams: dict[int, BatchStream] = {}
        for n in (SMALL, LARGE):
            index = texts(folder, n)
            segment = Segment(index, Plan(n, BATCH, 1, f"text{n}"), 0, STEPS)
            streams[n] = ray_stream([segment], modality, decode_in="threads")
        keys: dict[int, list] = {SMALL: [], LARGE: []}
        waits: dict[int, list] = {SMALL: [], LARGE: []}
        for _ in range(STEPS):
            for n, stream in streams.items():
                began = time.perf_counter()
                keys[n].append(next(stream).batch.keys)
                waits[n].append(time.perf_counter() - began)
            time.sleep(STEP_SECONDS)
        for stream in streams.values():
            stream.close()
    return executions, keys, waits


def test_one_execution_serves_600_epochs(taken):
    executions, keys, _ = taken
    assert STEPS * BATCH // SMALL == 600
    assert executions == {SMALL: 1, LARGE: 1}
    assert [len(keys[n]) for n in (SMALL, LARGE)] == [STEPS, STEPS]


def test_every_epoch_is_complete_and_has_an_order_of_its_own(taken):
    small = [key for batch in taken[1][SMALL] for key in batch]
    epochs = [tuple(small[i : i + SMALL]) for i in range(0, len(small), SMALL)]
    assert all(len(set(epoch)) == SMALL for epoch in epochs)
    orders = Counter(epochs)
    assert len(orders) > 350  # of 720 possible ones, in 600 draws: 407 +- 9
    first = Counter(epoch[0] for epoch in epochs)
    assert max(first.values()) < 2 * min(first.values())
    large = [key for batch in taken[1][LARGE] for key in batch]
    assert len(set(large)) == len(large) == STEPS * BATCH  # not yet once round


def test_no_step_waits_longer_because_an_epoch_ends_in_it(taken):
    """Two of three batches of the small one hold the end of an epoch (6 rows in batches of 4)."""
    waits = np.array(taken[2][SMALL][100:])
    numbers = np.arange(100, STEPS)
    ends = (numbers + 1) * BATCH // SMALL > numbers * BATCH // SMALL
    assert 0.6 < ends.mean() < 0.7
    assert np.median(waits[ends]) < np.median(waits[~ends]) + 0.001
    assert np.quantile(waits[ends], 0.9) < np.quantile(waits[~ends], 0.9) + STEP_SECONDS
