"""The plan: which row of a modality stands at which position of its endless stream.

A plan is a pure function of (number of rows, seed, modality, epoch): no state, no files, no
process. Batch b holds the rows at positions [b*B, (b+1)*B), so one integer per modality is the
whole cursor, for any number of ranks. Epoch e of modality m is drawn from the generator seeded by
(seed, crc32(m), e): two modalities of equal size and seed have independent orders, so rows that
happen to be paired on disk do not meet.

Only bit generators are used (their streams are guaranteed by numpy across versions, those of
`Generator.permutation` are not): a checkpoint resumes exactly after an upgrade of numpy too.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from uml_core.errors import UserError

_ORDER, _SHARDS, _RANDOMS = 0, 1, 2  # separate domains of one seed


@dataclass(frozen=True)
class Plan:
    """The order in which the rows of one modality are consumed.

    num_rows     rows of the index
    batch_size   B, the global batch (all ranks together)
    seed         any non-negative integer
    modality     the modality's name in the recipe; part of the seed
    shuffle      True: endless, a fresh order each epoch. False: rows 0..num_rows-1 once, in order,
                 the last batch may be short (evaluation)
    window       for remote shards: shuffle the order of the shards, then only within windows of
                 this many neighbouring rows, so that reads of a window touch few shards.
                 None: a full permutation
    shard_sizes  rows per shard in index order; needed with `window`
    """

    num_rows: int
    batch_size: int
    seed: int
    modality: str
    shuffle: bool = True
    window: int | None = None
    shard_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.num_rows < 1:
            problems.append(f"{self.modality}: there is no sample to stream")
        if self.batch_size < 1:
            problems.append(
                f"{self.modality}: batch_size must be at least 1, not {self.batch_size}"
            )
        if self.seed < 0:
            problems.append(f"{self.modality}: seed must not be negative, not {self.seed}")
        if self.window is not None and self.window < 1:
            problems.append(f"{self.modality}: window must be at least 1, not {self.window}")
        if self.window is not None and sum(self.shard_sizes) != self.num_rows:
            problems.append(f"{self.modality}: shard_sizes must add up to num_rows for a window")
        if problems:
            raise UserError(problems)

    @property
    def num_batches(self) -> int:
        """Batches of one pass over all rows, rounded up."""
        return -(-self.num_rows // self.batch_size)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64 row ids at plan positions start..stop-1; may span epochs.

        Without shuffling the plan ends at num_rows and so does the answer.
        """
        if not self.shuffle:
            return np.arange(start, min(stop, self.num_rows), dtype=np.int64)
        parts = []
        while start < stop:
            epoch, first = divmod(start, self.num_rows)
            last = min(self.num_rows, first + stop - start)
            parts.append(_epoch_order(self, epoch)[first:last])
            start += last - first
        if not parts:
            return np.zeros(0, dtype=np.int64)
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).astype(np.int64)

    def batch(self, b: int) -> np.ndarray:
        """(B,) row ids of batch b (fewer at the end of a plan without shuffling)."""
        return self.rows(b * self.batch_size, (b + 1) * self.batch_size)

    def randoms(self, b: int, k: int) -> np.ndarray:
        """(B, k) uniforms in [0, 1) for the augmentation of batch b; row i belongs to slot i."""
        bits = self._bits(_RANDOMS, b).random_raw(self.batch_size * k)
        return ((bits >> np.uint64(11)) * 2.0**-53).reshape(self.batch_size, k)

    def _bits(self, domain: int, index: int) -> np.random.PCG64:
        name = zlib.crc32(self.modality.encode())
        return np.random.PCG64(np.random.SeedSequence([self.seed, name, domain, index]))


def _permutation(bits: np.random.PCG64, n: int) -> np.ndarray:
    """A uniform permutation of 0..n-1 out of n raw 64-bit draws."""
    return np.argsort(bits.random_raw(n), kind="stable")


@lru_cache(maxsize=8)
def _epoch_order(plan: Plan, epoch: int) -> np.ndarray:
    """(num_rows,) order of one epoch; the last few are kept, since batches walk through them."""
    small = np.uint32 if plan.num_rows <= np.iinfo(np.uint32).max else np.int64
    if plan.window is None:
        order = _permutation(plan._bits(_ORDER, epoch), plan.num_rows)
        return order.astype(small)
    starts = np.concatenate([[0], np.cumsum(plan.shard_sizes)])
    shards = _permutation(plan._bits(_SHARDS, epoch), len(plan.shard_sizes))
    order = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])
    draws = plan._bits(_ORDER, epoch).random_raw(plan.num_rows)
    windows = np.arange(plan.num_rows) // plan.window
    return order[np.lexsort((draws, windows))].astype(small)
