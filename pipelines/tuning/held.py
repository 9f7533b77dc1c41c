"""The data of a sweep: decoded once, shared by all trials through the object store.

Small sets that repeat unchanged are decoded by the driver and reach every trial without a copy;
what is large or augmented is read and decoded in the trial, by the same plan. Either way a trial
sees the batches that a stream of `uml compare` yields for the same seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.running.data import Round
from pipelines.running.feed import CACHE_BYTES, augments
from pipelines.streams.assemble import Assembler, DecodedCache, Group
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import FILE, Quarantine
from pipelines.streams.reader import BatchStream, iter_plan
from pipelines.streams.shards import Index
from pipelines.streams.source import Places, Segment, local_tables, slice_of
from uml_core.errors import RunError
from uml_core.modalities import Modality
from uml_core.modalities.base import Batch


@dataclass(frozen=True)
class Held:
    """Decoded samples of one modality as flat arrays, which Ray shares without copies.

    places   where each sample lies: (url, offset)
    starts   (n + 1,) ends of the samples in `values`
    shapes   shape of each sample
    """

    places: list[tuple[str, int]]
    values: np.ndarray
    starts: np.ndarray
    shapes: list[tuple[int, ...]]

    @classmethod
    def of(cls, items: Mapping[tuple[str, int], Tensor]) -> Held:
        """From decoded samples of one type."""
        flat = [item.contiguous().view(-1).numpy() for item in items.values()]
        ends = np.cumsum([0, *(len(part) for part in flat)])
        values = np.concatenate(flat) if flat else np.zeros(0, np.float32)
        return cls(list(items), values, ends, [tuple(item.shape) for item in items.values()])

    def cache(self) -> DecodedCache:
        """The samples as a stream's cache holds them; nothing is copied."""
        made = DecodedCache(CACHE_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: the array is read-only. Nobody writes to it.
            values = torch.from_numpy(self.values)
        for i, (place, shape) in enumerate(zip(self.places, self.shapes, strict=True)):
            made.put(place, values[int(self.starts[i]) : int(self.starts[i + 1])].view(shape))
        return made


def hold(
    modalities: Mapping[str, Modality], indices: Mapping[str, Index], out: Path, budget: float
) -> dict[str, Held]:
    """Decodes every modality that fits and repeats unchanged; the others are left out.

    Bad samples go to quarantine.jsonl in `out`; raises RunError where they exceed the budget.
    """
    held = {}
    for name, modality in modalities.items():
        cache, index = DecodedCache(CACHE_BYTES), indices[name]
        bad = Quarantine(out / FILE, budget, modality=name, rows=len(index))
        if not augments(modality) and _fill(cache, modality, index, bad):
            held[name] = Held.of(cache.items)
    return held


def _fill(cache: DecodedCache, modality: Modality, index: Index, bad: Quarantine) -> bool:
    """Whether all samples of the index fit; those that cannot be decoded are left out."""
    plan = Plan(len(index), 256, 0, modality.kind, shuffle=False)
    for _ in iter_plan(index, plan, modality, augment=False, cache=cache, quarantine=bad):
        if cache.full:
            return False
    return True


@dataclass
class TrialFeed:
    """One seed's batches of every modality, made in the trial's process.

    part    (rank, ranks) of the global batches that this feed yields
    cursor  modality -> batches already consumed
    """

    modalities: Mapping[str, Modality]
    round: Round
    batches: Mapping[str, int]
    batch_size: int
    caches: Mapping[str, DecodedCache]
    part: tuple[int, int] = (0, 1)
    cursor: Mapping[str, int] = field(default_factory=dict)
    budget: float = 0.01
    out: Path | None = None

    def __post_init__(self) -> None:
        self._streams = {
            name: self._stream(name, self.batches[name] - self.cursor.get(name, 0))
            for name in self.modalities
            if self.batches.get(name, 0) > self.cursor.get(name, 0)
        }

    def next(self, name: str) -> tuple[int, Batch]:
        """(number, batch): the next batch of a modality."""
        return next(self._streams[name])

    def _stream(self, name: str, count: int) -> Iterator[tuple[int, Batch]]:
        index, modality = self.round.train[name], self.modalities[name]
        plan = Plan(len(index), self.batch_size, self.round.seed, name)
        segment = Segment(index, plan, self.cursor.get(name, 0), count)
        if name in self.caches:
            yield from self._held(segment, modality, self.caches[name])
            return
        rank, world = self.part
        path = None if self.out is None else self.out / FILE
        stream = BatchStream(
            local_tables([segment], rank, world),
            [segment],
            modality,
            rank=rank,
            world=world,
            augment=augments(modality),
            decode_threads=1,
            quarantine=Quarantine(path, self.budget, modality=name, rows=len(index)),
        )
        with stream:
            for item in stream:
                yield item.number, item.batch

    def _held(
        self, segment: Segment, modality: Modality, cache: DecodedCache
    ) -> Iterator[tuple[int, Batch]]:
        """Batches of decoded samples: no byte is read but to refill a bad sample's slot."""
        index, plan = segment.index, segment.plan
        maker = Assembler(modality, Places.of_segments([segment]), augment=False, cache=cache)
        low, high = slice_of(plan.batch_size, *self.part)
        bad = Quarantine(None, self.budget, modality=plan.modality, rows=len(index))
        for number in range(segment.first, segment.first + segment.count):
            rows = plan.batch(number)[low:high].tolist()
            made = maker.batch(Group(0, number, list(range(low, high)), rows, [b""] * len(rows)))
            if made.failure is not None:
                raise RunError(bad.advice(made.failure))
            for row, error in made.bad:
                bad.bad(index.shards[index.shard_ids[row]].url, index.keys[row], error)
            if made.x is not None:
                y = torch.from_numpy(index.labels[np.asarray(made.rows)])
                yield number, Batch(made.x, y, made.mask)
