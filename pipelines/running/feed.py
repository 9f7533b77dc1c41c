"""One rank's batches of every modality: one Ray Data execution per modality for the whole job."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from pipelines.running.data import modality_of
from pipelines.running.need import EVALUATION_BYTES
from pipelines.running.watch import Watch
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import EVALUATION, FILE, Quarantine
from pipelines.streams.reader import BatchStream, load_all, ray_stream
from pipelines.streams.shards import Index, subset
from pipelines.streams.source import Segment, data_nodes, slice_of
from uml_core.modalities import Modality
from uml_core.modalities.base import Batch

CACHE_BYTES = 128 << 20  # decoded samples kept per modality where they repeat unchanged
DECODE_THREADS = 2


class Feed:
    """Streams the rounds of a job, in order, without a pause between them.

    rounds    stream -> rows, for each round; a stream's name tells its modality (`modality_of`)
    seeds     of each round
    batches   modality -> batches one round takes
    part      (rank, ranks) of the global batches that this feed yields
    start     (first round, modality -> batches of it already consumed): the cursor of a resume
    watch     learns what this rank waits for
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        rounds: Sequence[Mapping[str, Index]],
        *,
        seeds: Sequence[int],
        batches: Mapping[str, int],
        batch_size: int,
        part: tuple[int, int],
        start: tuple[int, Mapping[str, int]],
        budget: float,
        out: Path,
        watch: Watch,
    ) -> None:
        first, cursor = start
        self._first = self._round = first
        self._part, self._watch = part, watch
        self._segments: dict[str, list[Segment]] = {}
        self._shards: dict[str, set[str]] = {}
        self._last: dict[str, tuple[int, int]] = {}
        self._streams: dict[str, BatchStream] = {}
        for name in rounds[first] if first < len(rounds) else ():
            source = modality_of(name)
            modality = modalities[source]
            segments = [
                Segment(
                    at[name],
                    Plan(len(at[name]), batch_size, seed, source),
                    skip := cursor.get(name, 0) if number == 0 else 0,
                    batches[source] - skip,
                )
                for number, (at, seed) in enumerate(zip(rounds[first:], seeds[first:], strict=True))
            ]
            segments = [segment for segment in segments if segment.count > 0]
            if not segments:
                continue
            self._segments[name] = segments
            self._shards[name] = {shard.url for part in segments for shard in part.index.shards}
            rows = max(len(segment.index) for segment in segments)
            bad = Quarantine(out / FILE, budget, modality=name, rows=rows)
            self._streams[name] = open_stream(
                segments, modality, part=part, quarantine=bad, board=watch.board
            )

    def enter(self, number: int) -> None:
        """Round `number` begins: what is left of earlier rounds is passed over."""
        self._round = number

    def next(self, name: str) -> tuple[int, Batch]:
        """(number, batch): the next batch of a stream in the current round."""
        while True:
            with self._watch.waiting(name, self._shards[name], lambda: self._due(name)):
                item = next(self._streams[name])
            self._last[name] = (item.segment, item.number)
            if item.segment + self._first >= self._round:
                return item.number, item.batch

    def _due(self, name: str) -> list[str]:
        """The shards that the next batch of a modality is read from."""
        segments = self._segments[name]
        at, last = self._last.get(name, (0, segments[0].first - 1))
        number = last + 1
        if number == segments[at].first + segments[at].count and at + 1 < len(segments):
            at, number = at + 1, segments[at + 1].first
        index, plan = segments[at].index, segments[at].plan
        low, high = slice_of(plan.batch_size, *self._part)
        rows = plan.batch(number)[low:high]
        return [index.shards[i].url for i in np.unique(index.shard_ids[rows])]

    def wait_seconds(self) -> dict[str, float]:
        """Time that next() took per stream: what training waited for data."""
        return {name: round(s.wait_seconds, 3) for name, s in self._streams.items()}

    def close(self) -> None:
        """Ends all streams."""
        for stream in self._streams.values():
            stream.close()


def open_stream(
    segments: Sequence[Segment],
    modality: Modality,
    *,
    part: tuple[int, int] = (0, 1),
    quarantine: Quarantine | None = None,
    cache_bytes: int = CACHE_BYTES,
    board: Any = None,
) -> BatchStream:
    """A rank's stream through Ray Data, decoded where that is cheapest on this cluster."""
    rank, ranks = part
    return ray_stream(
        segments,
        modality,
        rank=rank,
        world=ranks,
        augment=augments(modality),
        decode_in=decode_place(ranks),
        decode_threads=DECODE_THREADS,
        quarantine=quarantine,
        cache_bytes=cache_bytes,
        board=board,
    )


def augments(modality: Modality) -> bool:
    """Whether training samples of this modality differ from one pass to the next."""
    return getattr(modality.options, "augment", "none") != "none"


def decode_place(ranks: int) -> Literal["tasks", "threads"]:
    """Where samples are decoded: in the trainers while they have the cluster's cores to
    themselves (nothing decoded travels between processes), in Ray tasks where cores are left or
    nodes are there for it."""
    if data_nodes():
        return "tasks"
    # Real cores, guessed from this node's: the logical CPUs of a local Ray say nothing of them.
    cores = (os.cpu_count() or 1) * sum(bool(node["Alive"]) for node in ray.nodes())
    return "tasks" if cores > 4 * ranks else "threads"


def load_batches(
    index: Index,
    modality: Modality,
    part: tuple[int, int] = (0, 1),
    quarantine: Quarantine | None = None,
) -> list[Batch]:
    """An evaluation set, or a rank's part of it, decoded in memory without augmentation."""
    rank, ranks = part
    if ranks > 1:
        rows = np.arange(rank * len(index) // ranks, (rank + 1) * len(index) // ranks)
        if not len(rows):
            return []
        index = subset(index, rows)
    return load_all(index, modality, EVALUATION_BYTES, quarantine=quarantine)


@dataclass(frozen=True)
class Loader:
    """Reads evaluation sets of a job: what cannot be decoded is left out and written down."""

    modalities: Mapping[str, Modality]
    budget: float
    out: Path
    watch: Watch

    def __call__(self, index: Index, name: str, part: tuple[int, int] = (0, 1)) -> list[Batch]:
        """Modality `name`'s rows of `index`, or a rank's part of them."""
        bad = Quarantine(
            self.out / FILE,
            self.budget,
            modality=name,
            rows=len(index),
            found_in=EVALUATION,
            urls=index.urls,
        )
        shards = index.urls
        with self.watch.waiting(f"{name} to evaluate on", shards, lambda: sorted(shards)):
            return load_batches(index, self.modalities[modality_of(name)], part, bad)
