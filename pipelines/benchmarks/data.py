"""Suite `data`: what a training rank gets from our streams, against ceilings in the same run.

Everything is measured inside one Ray Train worker whose group is already alive, with contenders
taking turns and a model that does nothing. All decode with the same code into the same batches.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
import torch

from pipelines.benchmarks import memory
from pipelines.benchmarks.rivals import DataLoader, PlainProcesses, cores
from pipelines.benchmarks.workloads import (
    BATCH,
    BLOBS,
    IMAGES,
    PHOTOS,
    SOUNDS,
    TEXTS,
    Workload,
    segment,
)
from pipelines.running.feed import open_stream
from pipelines.running.jobs import run_workers
from pipelines.running.runtime import ray_session
from pipelines.streams.reader import BatchStream
from pipelines.streams.shards import Index, subset
from uml_core.errors import RunError
from uml_core.specs import TrainSpec

WORKLOADS = (IMAGES, PHOTOS, TEXTS, SOUNDS)
ENDLESS = 100_000  # batches of a stream that is measured again and again
WARM = 6  # batches that every contender makes before its clock starts
EPOCHS, PER_EPOCH = 12, 8  # of the set whose epoch ends are watched
# name: (must, aim), as far as a bound is set; figures with "<" must stay below
BOUNDS: dict[str, tuple[str, str]] = {
    "stream_vs_ceiling": ("≥ 0.85", "0.95"),
    "stream_vs_dataloader": ("≥ 1.0", "1.3"),
    "first_batch_seconds": ("≤ 3", "1"),
    "epoch_gap_steps": ("< 1", "0"),
    "memory_growth": ("≤ 1.1", "1.0"),
    "concurrent_vs_single": ("≤ 1.15", "1.0"),
}


class Contender(Protocol):
    """Makes batches when told to."""

    def take(self, batches: int) -> int:
        """Samples made, when so many batches were."""
        ...

    def close(self) -> None:
        """Ends its processes."""
        ...


class Ours:
    """The stream of a training rank, as jobs open it."""

    def __init__(self, index: Index, workload: Workload) -> None:
        segments = [segment(index, ENDLESS, workload.name)]
        # Without the cache of decoded samples: neither has the other side one.
        self.stream: BatchStream = open_stream(segments, workload.modality(), cache_bytes=0)

    def take(self, batches: int) -> int:
        """Samples that arrived here, when so many batches have."""
        return sum(len(next(self.stream).batch) for _ in range(batches))

    def close(self) -> None:
        """Ends the stream."""
        self.stream.close()


def measure(repeats: int = 3, say: Callable[[str], None] = print) -> dict[str, Any]:
    """All figures of the suite with their raw repeats; generates its shards on first use."""
    scratch = Path(tempfile.mkdtemp(prefix="uml-bench-"))
    try:
        say("generating shards")
        for workload in (*WORKLOADS, BLOBS):
            workload.index(scratch)
        with ray_session(workers=1, streams=3):
            config = {"root": str(scratch), "repeats": repeats}
            say("throughput, starts, epoch ends")
            found = run_workers(_worker, config, _spec(), scratch / "speed")
        say("memory")
        grown = memory.measure(scratch, repeats)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {**summary(found, grown), "repeats": {**found, "memory": grown}}


def summary(found: Mapping[str, Any], grown: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The six figures out of raw seconds and bytes: ratios of medians; of workloads the worst."""
    by_workload = {
        name: {
            "stream_vs_ceiling": median(t["ceiling"]) / median(t["stream"]),
            "stream_vs_dataloader": median(t["dataloader"]) / median(t["stream"]),
        }
        for name, t in found["throughput"].items()
    }
    together = found["together"]
    single = sum(median(seconds) for name, seconds in together.items() if name != "all")
    steady = median(found["epochs"]["inside"])
    return {
        **{
            key: min(ratios[key] for ratios in by_workload.values())
            for key in ("stream_vs_ceiling", "stream_vs_dataloader")
        },
        "first_batch_seconds": median(found["first_batch"]),
        "epoch_gap_steps": max(0.0, (median(found["epochs"]["boundary"]) - steady) / steady),
        "memory_growth": median(grown["large"]) / median(grown["small"]),
        "concurrent_vs_single": median(together["all"]) / single,
        "by_workload": by_workload,
    }


def median(values: Sequence[float]) -> float:
    """The middle of the repeats."""
    return statistics.median(values)


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """(figure, value, must, aim) for the terminal; the throughput of each workload first."""
    out = []
    for name, ratios in result["by_workload"].items():
        for key, value in ratios.items():
            out.append([f"{key} {name}", f"{value:.2f}", *BOUNDS[key]])
    for key in BOUNDS:
        if key not in ("stream_vs_ceiling", "stream_vs_dataloader"):
            out.append([key, f"{result[key]:.2f}", *BOUNDS[key]])
    return out


def _spec() -> TrainSpec:
    return TrainSpec(workers=1, device="cpu", max_failures=0)


# ------------------------------------------------------------------------------ the worker


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """`train_loop_per_worker` of the suite."""
    torch.set_num_threads(1)
    root, repeats = Path(config["root"]), config["repeats"]
    indices = {w.name: w.index(root) for w in WORKLOADS}
    return {
        "throughput": {w.name: _throughput(w, indices[w.name], repeats) for w in WORKLOADS},
        "first_batch": _first_batch(IMAGES, indices[IMAGES.name], repeats),
        "epochs": _epochs(IMAGES, indices[IMAGES.name]),
        "together": _together([IMAGES, TEXTS, SOUNDS], indices, repeats),
        "cores": cores(),
        "nodes": len(ray.nodes()),
    }


def _throughput(workload: Workload, index: Index, repeats: int) -> dict[str, list[float]]:
    """Seconds per contender and repeat for the workload's batches."""
    urls = [shard.url for shard in index.shards]
    modality = workload.modality()
    contenders: dict[str, Contender] = {
        "stream": Ours(index, workload),
        "ceiling": PlainProcesses(urls, modality, BATCH),
        "dataloader": DataLoader(urls, modality, BATCH),
    }
    try:
        for contender in contenders.values():
            contender.take(4 * WARM)
        return _in_turn({n: _timed(c, workload.batches) for n, c in contenders.items()}, repeats)
    finally:
        for contender in contenders.values():
            contender.close()


def _timed(contender: Contender, batches: int) -> Callable[[], float]:
    """Seconds for so many batches, from the moment it is under way."""

    def run() -> float:
        contender.take(WARM)
        began = time.perf_counter()
        made = contender.take(batches)
        seconds = time.perf_counter() - began
        if made != batches * BATCH:
            raise RunError(f"{type(contender).__name__} made {made} of {batches * BATCH} samples")
        return seconds

    return run


def _in_turn(actions: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Each action once per repeat, one after the other."""
    out: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            out[name].append(action())
    return out


def _first_batch(workload: Workload, index: Index, repeats: int) -> list[float]:
    """Seconds from asking for a stream to its first batch."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        ours = Ours(index, workload)
        ours.take(1)
        seconds.append(time.perf_counter() - began)
        ours.close()
    return seconds


def _epochs(workload: Workload, index: Index) -> dict[str, list[float]]:
    """Seconds until the next batch: within an epoch, and for the first batch of the next one."""
    small = subset(index, range(PER_EPOCH * BATCH))
    ours = Ours(small, workload)
    ours.take(2 * PER_EPOCH)
    found: dict[str, list[float]] = {"inside": [], "boundary": []}
    for number in range(EPOCHS * PER_EPOCH):
        began = time.perf_counter()
        ours.take(1)
        place = "boundary" if number % PER_EPOCH == 0 else "inside"
        found[place].append(time.perf_counter() - began)
    ours.close()
    return found


def _together(
    workloads: Sequence[Workload], indices: Mapping[str, Index], repeats: int
) -> dict[str, list[float]]:
    """Seconds for the same batches of each workload: one stream at a time, and all at once."""
    batches = {w.name: w.batches for w in workloads}
    streams = {w.name: Ours(indices[w.name], w) for w in workloads}

    def all_at_once() -> float:
        began = time.perf_counter()
        taken = dict.fromkeys(batches, 0)
        steps = max(batches.values())
        for step in range(1, steps + 1):
            for name, count in batches.items():
                due = count * step // steps
                streams[name].take(due - taken[name])
                taken[name] = due
        return time.perf_counter() - began

    try:
        for stream in streams.values():
            stream.take(4 * WARM)
        actions = {name: _timed(stream, batches[name]) for name, stream in streams.items()}
        return _in_turn({**actions, "all": all_at_once}, repeats)
    finally:
        for stream in streams.values():
            stream.close()
