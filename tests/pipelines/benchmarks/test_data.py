"""The data suite: its contenders do equal work, its figures are the stated ratios."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipelines.benchmarks import data, memory
from pipelines.benchmarks.rivals import DataLoader, PlainProcesses, _batch, _read
from pipelines.benchmarks.workloads import (
    BATCH,
    BLOBS,
    IMAGES,
    PHOTOS,
    SOUNDS,
    TEXTS,
    segment,
)
from uml_core.errors import RunError

SMALL = {w.name: dataclasses.replace(w, samples=80) for w in (IMAGES, TEXTS, SOUNDS)}

FOUND = {
    "throughput": {
        "image256": {
            "stream": [2.0, 9.0, 2.0],
            "ceiling": [1.8, 1.0, 1.9],
            "dataloader": [3.0] * 3,
        },
        "text": {"stream": [1.0] * 3, "ceiling": [2.0] * 3, "dataloader": [1.5] * 3},
    },
    "first_batch": [0.5, 4.0, 0.7],
    "epochs": {"inside": [0.1, 0.2, 0.2, 0.9], "boundary": [0.3]},
    "together": {"image256": [2.0], "text": [1.0], "all": [3.3]},
}


def test_figures_are_ratios_of_medians_and_the_worst_workload_counts():
    result = data.summary(FOUND, {"small": [100.0, 100.0, 1.0], "large": [105.0]})
    assert result["by_workload"]["image256"]["stream_vs_ceiling"] == pytest.approx(0.9)
    assert result["stream_vs_ceiling"] == pytest.approx(0.9)
    assert result["stream_vs_dataloader"] == pytest.approx(1.5)
    assert result["first_batch_seconds"] == 0.7
    assert result["epoch_gap_steps"] == pytest.approx(0.5)
    assert result["concurrent_vs_single"] == pytest.approx(1.1)
    assert result["memory_growth"] == pytest.approx(1.05)
    rows = data.rows(result)
    assert ["first_batch_seconds", "0.70", "≤ 3", "1"] in rows
    assert ["stream_vs_ceiling text", "2.00", "≥ 0.85", "0.95"] in rows


def test_a_short_gap_is_no_gap():
    found = {**FOUND, "epochs": {"inside": [0.2], "boundary": [0.1]}}
    assert data.summary(found, {"small": [1.0], "large": [1.0]})["epoch_gap_steps"] == 0.0


def test_workloads_are_what_they_say(tmp_path):
    rng = np.random.default_rng(0)
    for workload, side in ((IMAGES, 256), (PHOTOS, 500)):
        payload = workload.make(rng)
        assert Image.open(io.BytesIO(payload)).size == (side, side)
        assert 0.1 < len(payload) / side**2 < 0.6  # bytes per pixel, as photos have
    assert 20 <= len(TEXTS.make(rng).split()) <= 60
    wave, rate = soundfile.read(io.BytesIO(SOUNDS.make(rng)))
    assert (len(wave), rate) == (16_000, 16_000)
    assert len(BLOBS.make(rng)) > 128 << 10


@pytest.mark.parametrize("name", SMALL)
def test_everyone_decodes_the_same_samples(tmp_path, name):
    workload = SMALL[name]
    index, modality = workload.index(tmp_path), workload.modality()
    assert len(index) == 80 and len(index.shards) == workload.shards
    samples = _read([shard.url for shard in index.shards], modality)
    plain, _ = _batch(modality, [next(samples), next(samples)])
    first = modality.decode(workload.make(np.random.default_rng(0)), workload.suffix)
    assert len(plain) == 2 and plain[0].ndim == modality.collate([first])[0][0].ndim
    again = workload.index(tmp_path)  # generated once
    assert [s.sha256 for s in again.shards] == [s.sha256 for s in index.shards]
    work = segment(index, 5, name)
    assert (work.count, work.plan.batch_size, work.plan.num_rows) == (5, BATCH, 80)


@pytest.mark.slow
def test_rivals_make_the_batches_they_are_told_to(tmp_path):
    workload = SMALL["text"]
    urls = [shard.url for shard in workload.index(tmp_path).shards]
    for rival in (PlainProcesses, DataLoader):
        contender = rival(urls, workload.modality(), 8)
        assert (contender.take(3), contender.take(5)) == (24, 40)
        contender.close()


class Lazy:
    """Makes one batch less than it is told to."""

    def take(self, batches):
        return (batches - 1) * BATCH

    def close(self):
        pass


def test_a_contender_that_does_less_work_is_no_measurement():
    with pytest.raises(RunError, match="Lazy made 128 of 192 samples"):
        data._timed(Lazy(), 3)()


def test_memory_counts_this_process_and_shared_pages_once():
    before = memory.total_pss()
    block = np.ones(64 << 20, dtype=np.uint8)
    assert memory.total_pss() - before > 0.9 * block.nbytes
