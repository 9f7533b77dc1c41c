"""Streams whose samples lie in memory: the batches of a `Feed`, for many fits at once.

Ready-made features are small and heads over them train faster than any stream delivers, so a
comparison of heads decodes its samples once, and each fit draws its batches by row number. The
numbers are those of the plan, with the slots of bad samples refilled by the streams' own rule
(pipelines/streams/assemble.py), so that a fit sees what it would have been streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.running.data import Round, modality_of
from pipelines.streams.assemble import FUSE, DecodedCache
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import FILE, Quarantine
from pipelines.streams.reader import iter_plan
from pipelines.streams.shards import Index
from pipelines.streams.source import Place
from uml_core.errors import RunError
from uml_core.heads.stacked import Rows
from uml_core.modalities import Modality

MEMORY_BYTES = 2 << 30  # features that a worker holds; larger sets are streamed


def fits_memory(modalities: Mapping[str, Modality], rounds: Sequence[Round]) -> bool:
    """Whether the training vectors of these rounds may all lie in a worker's memory."""
    indices = {id(i): (i, name) for at in rounds for name, i in at.train.items()}
    values = [
        len(index) * modalities[modality_of(name)].options.dim for index, name in indices.values()
    ]
    return 4 * sum(values) <= MEMORY_BYTES


@dataclass
class Memory:
    """The samples of some rounds' streams, decoded once.

    budget  share of samples that may be bad
    out     folder of the job: bad samples are written down there
    """

    modalities: Mapping[str, Modality]
    batch_size: int
    budget: float
    out: Path
    _held: dict[int, tuple[Tensor, np.ndarray]] = field(default_factory=dict)

    def streams(self, at: Round) -> dict[str, Rows]:
        """Stream -> its rows in the order of the round's seed."""
        return {name: self._rows(index, name, at.seed) for name, index in at.train.items()}

    def _rows(self, index: Index, stream: str, seed: int) -> Rows:
        name = modality_of(stream)
        bad = Quarantine(self.out / FILE, self.budget, modality=name, rows=len(index))
        if id(index) not in self._held:
            self._held[id(index)] = decoded(index, self.modalities[name], bad)
        x, good = self._held[id(index)]
        plan = Plan(len(index), self.batch_size, seed, name)
        return Rows(x, torch.from_numpy(index.labels), Order(plan, good, bad))


def decoded(index: Index, modality: Modality, bad: Quarantine) -> tuple[Tensor, np.ndarray]:
    """All samples in the order of the index (N, D), and which of them could be decoded (N,)."""
    cache = DecodedCache(MEMORY_BYTES)
    plan = Plan(len(index), 256, 0, bad.modality, shuffle=False)
    for _ in iter_plan(index, plan, modality, augment=False, cache=cache, quarantine=bad):
        pass
    place = Place.of_index(index)
    found = [cache.get(place.where(row)) for row in range(len(index))]
    kept = [item for item in found if item is not None]
    if not kept:
        raise RunError(bad.advice("no sample can be used"))
    nothing = torch.zeros_like(kept[0])  # a row that no order names
    x, _ = modality.collate([nothing if item is None else item for item in found])
    return x, np.array([item is not None for item in found])


class Order:
    """The rows of each batch of a plan, in which no bad row stands.

    good  (N,) whether a row's sample can be used
    """

    def __init__(self, plan: Plan, good: np.ndarray, bad: Quarantine) -> None:
        self.plan, self.good, self.bad = plan, good, bad
        self._made: dict[tuple[int, int], Tensor] = {}  # all stacks of a job ask alike

    def __call__(self, first: int, stop: int) -> Tensor:
        """(stop - first, B) int64 rows of batches first..stop-1."""
        if (first, stop) not in self._made:
            size = self.plan.batch_size
            rows = self.plan.rows(first * size, stop * size)
            for i in np.flatnonzero(~self.good[rows]):
                rows[i] = self._refill(first * size + int(i))
            self._made[first, stop] = torch.from_numpy(rows).view(-1, size)
        return self._made[first, stop]

    def _refill(self, position: int) -> int:
        """The first good row after a bad one's position."""
        rows = self.plan.rows(position + 1, position + FUSE)
        usable = rows[self.good[rows]]
        if not len(usable):
            raise RunError(self.bad.advice(f"{FUSE} samples in a row cannot be used"))
        return int(usable[0])
