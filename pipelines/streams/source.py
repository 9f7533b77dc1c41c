"""Raw bytes in plan order: by Ray Data tasks for a training rank, or read in this process.

A stream is a list of segments: stretches of plans, one after the other, in one execution for the
whole run, so that neither an epoch nor the next run of a comparison has to wait for a start. The
work is cut into chunks of whole batches: the first are small, so that they come soon, the others
large enough that Ray's cost per task does not matter.

Nothing here imports torch: a read task needs numpy and pyarrow only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.streams.plan import Plan
from pipelines.streams.shards import Index, read_places

if TYPE_CHECKING:
    from ray.data import DataIterator, Dataset, ExecutionOptions

    from pipelines.streams.assemble import Assembler

CHUNK_BYTES = 8 << 20  # per task and block
CHUNK_ROWS = 4096  # per task
MAX_CHUNKS = 4096  # tasks per stream; longer streams have larger tasks that emit several blocks
READ_CPUS = 0.25  # a read task waits for disk or network most of the time
DECODE_CPUS = 0.5
TASKS = 2  # of one stream at a time
STORE_SHARE = 16  # a stream may fill this part of the object store ahead of its consumer
STORE_BYTES = 64 << 20  # and at least this much

COLUMNS = pa.schema(
    [
        ("segment", pa.int32()),  # which segment, and
        ("batch", pa.int64()),  # which batch of its plan the row belongs to
        ("slot", pa.int32()),  # place in the global batch
        ("row", pa.int64()),  # row of the segment's index
        ("data", pa.large_binary()),  # null: the shard ends before the member does
    ]
)


@dataclass(frozen=True)
class Segment:
    """Batches first..first+count-1 of a plan over an index."""

    index: Index
    plan: Plan
    first: int
    count: int


@dataclass(frozen=True)
class Chunk:
    """Batches first..stop-1 of one segment: the work of one task."""

    segment: int
    first: int
    stop: int


def slice_of(batch_size: int, rank: int, world: int) -> tuple[int, int]:
    """The slots [low, high) of a global batch that belong to a rank; all ranks tile the batch."""
    return rank * batch_size // world, (rank + 1) * batch_size // world


def chunks_of(segments: Sequence[Segment], rank: int = 0, world: int = 1) -> list[Chunk]:
    """All work of a rank in order: one batch, two, four ... up to CHUNK_BYTES or CHUNK_ROWS."""
    costs = [_batch_cost(segment, rank, world) for segment in segments]
    total = sum(cost * segment.count for cost, segment in zip(costs, segments, strict=True))
    most = max(1.0, total / MAX_CHUNKS)
    chunks, batches = [], 1
    for number, (segment, cost) in enumerate(zip(segments, costs, strict=True)):
        first, end = segment.first, segment.first + segment.count
        while first < end:
            stop = min(end, first + min(batches, max(1, int(most / cost))))
            chunks.append(Chunk(number, first, stop))
            first, batches = stop, 2 * batches
    return chunks


def read_chunk(places: Places, chunk: Chunk, rank: int = 0, world: int = 1) -> Iterator[pa.Table]:
    """Tables (`COLUMNS`) of the rank's slots of the chunk's batches, in order, of bounded size."""
    plan, place = places.plans[chunk.segment], places.of(chunk.segment)
    low, high = slice_of(plan.batch_size, rank, world)
    rows, batches, slots, size = [], [], [], 0
    for number in range(chunk.first, chunk.stop):
        mine = plan.batch(number)[low:high]
        rows.append(mine)
        batches.append(np.full(len(mine), number))
        slots.append(low + np.arange(len(mine)))
        size += int(place.sizes[mine].sum())
        if size >= CHUNK_BYTES or number == chunk.stop - 1:
            columns = (np.concatenate(part) for part in (batches, slots, rows))
            yield _table(place, chunk.segment, *columns)
            rows, batches, slots, size = [], [], [], 0


def local_tables(segments: Sequence[Segment], rank: int = 0, world: int = 1) -> Iterator[pa.Table]:
    """The stream read in this process: the same tables as through Ray."""
    places = Places.of_segments(segments)
    for chunk in chunks_of(segments, rank, world):
        yield from read_chunk(places, chunk, rank, world)


def ray_dataset(
    segments: Sequence[Segment],
    rank: int = 0,
    world: int = 1,
    *,
    decode: Assembler | None = None,
) -> Dataset:
    """The stream as a Ray Dataset for one rank; iterate it by `ray_tables`.

    decode  batches are decoded by it in the tasks (its places must be those of the segments) and
            come as tables of `assemble.DECODED`; None: raw bytes, tables of `COLUMNS`

    Built in the training worker, or through Ray Train as
    ``datasets={f"{modality}-{rank}": lambda: ray_dataset(...)}`` with `data_config()`: either way
    every start of the worker group plans the rest of the run anew.
    """
    import ray

    chunks = chunks_of(segments, rank, world)
    items = [{"segment": c.segment, "first": c.first, "stop": c.stop} for c in chunks]
    shared = ray.put(Places.of_segments(segments) if decode is None else decode)
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        partial(_read_task if decode is None else _decode_task, shared, rank, world),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=READ_CPUS if decode is None else DECODE_CPUS,
        concurrency=TASKS,
    )
    dataset.context.execution_options = execution_options()
    dataset.context.target_max_block_size = 2 * CHUNK_BYTES
    return dataset


def execution_options() -> ExecutionOptions:
    """How a stream must be executed: in order, and with a bound on what it keeps ahead."""
    from ray.data import ExecutionOptions, ExecutionResources

    return ExecutionOptions(
        preserve_order=True,
        resource_limits=ExecutionResources.for_limits(object_store_memory=store_budget()),
    )


def store_budget() -> int:
    """Bytes of the object store that one stream may fill ahead of its consumer.

    As much as is safe: while a stream is held back, Ray's executor polls in a tight loop and
    takes the interpreter from the training thread beside it.
    """
    import ray

    store = int(ray.cluster_resources().get("object_store_memory", 0))
    return max(STORE_BYTES, store // STORE_SHARE)


def data_config() -> Any:
    """Ray Train's DataConfig for streams: each rank has datasets of its own, none is split."""
    from ray.train import DataConfig

    return DataConfig(datasets_to_split=[], execution_options=execution_options())


def ray_tables(source: DataIterator | Dataset) -> Iterator[pa.Table]:
    """Blocks of a `ray_dataset` as they come, without copying them out of the object store."""
    yield from source.iter_batches(
        batch_size=None,  # type: ignore[arg-type]  # documented: whole blocks
        batch_format="pyarrow",
        prefetch_batches=2,
    )


@dataclass(frozen=True)
class Place:
    """What reading and decoding need of an index: arrays that Ray shares without copies."""

    urls: tuple[str, ...]
    shard_ids: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    suffix_names: tuple[str, ...]
    suffix_ids: np.ndarray

    @classmethod
    def of_index(cls, index: Index) -> Place:
        names, ids = np.unique(np.asarray(index.suffixes, dtype=str), return_inverse=True)
        return cls(
            urls=tuple(shard.url for shard in index.shards),
            shard_ids=index.shard_ids,
            offsets=index.offsets,
            sizes=index.sizes,
            suffix_names=tuple(names.tolist()),
            suffix_ids=ids.astype(np.uint8),
        )

    def suffix(self, row: int) -> str:
        return self.suffix_names[self.suffix_ids[row]]

    def where(self, row: int) -> tuple[str, int]:
        """(url, offset): names a payload whatever index it is reached through."""
        return self.urls[self.shard_ids[row]], int(self.offsets[row])

    def read(self, rows: np.ndarray) -> list[bytes | None]:
        """Payloads in the order of the rows; None where the shard ends too early."""
        sizes = self.sizes[rows]
        data = read_places(self.urls, self.shard_ids[rows], self.offsets[rows], sizes)
        return [part if len(part) == n else None for part, n in zip(data, sizes, strict=True)]


@dataclass(frozen=True)
class Places:
    """The plans of a stream's segments and what lies behind them; equal indices are kept once."""

    plans: tuple[Plan, ...]
    places: tuple[Place, ...]
    place_of: tuple[int, ...]  # segment -> places

    def of(self, segment: int) -> Place:
        return self.places[self.place_of[segment]]

    @classmethod
    def of_segments(cls, segments: Sequence[Segment]) -> Places:
        indices = {id(segment.index): segment.index for segment in segments}
        numbers = {name: number for number, name in enumerate(indices)}
        return cls(
            plans=tuple(segment.plan for segment in segments),
            places=tuple(Place.of_index(index) for index in indices.values()),
            place_of=tuple(numbers[id(segment.index)] for segment in segments),
        )


def _table(
    place: Place, segment: int, batches: np.ndarray, slots: np.ndarray, rows: np.ndarray
) -> pa.Table:
    columns = [
        np.full(len(rows), segment, dtype=np.int32),
        batches,
        slots.astype(np.int32),
        rows,
        pa.array(place.read(rows), pa.large_binary()),
    ]
    return pa.table(columns, schema=COLUMNS)


def _read_task(shared: Any, rank: int, world: int, work: pa.Table) -> Iterator[pa.Table]:
    """What one Ray task does: the chunks named in `work`."""
    for item in work.to_pylist():
        yield from read_chunk(_fetched(shared), Chunk(**item), rank, world)


def _decode_task(shared: Any, rank: int, world: int, work: pa.Table) -> Iterator[pa.Table]:
    from pipelines.streams.assemble import decode_chunk

    for item in work.to_pylist():
        yield from decode_chunk(_fetched(shared), Chunk(**item), rank, world)


@lru_cache(maxsize=8)
def _fetched(shared: Any) -> Any:
    """What all tasks of a stream share, fetched once per worker process."""
    import ray

    return ray.get(shared)


def _batch_cost(segment: Segment, rank: int, world: int) -> float:
    """A rank's part of one batch as a share of the largest chunk."""
    low, high = slice_of(segment.plan.batch_size, rank, world)
    row = max(float(segment.index.sizes.mean()) / CHUNK_BYTES, 1 / CHUNK_ROWS)
    return row * max(1, high - low)
