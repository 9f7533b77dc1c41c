"""Raw bytes in plan order: by Ray Data tasks for a training rank, or read in this process.

A stream is a list of segments: stretches of plans, one after the other, in one execution for the
whole run, so that neither an epoch nor the next run of a comparison has to wait for a start. The
work is cut into chunks of whole batches: the first are small, so that they come soon, the others
large enough that Ray's cost per task does not matter.

Nothing here imports torch: a read task needs numpy and pyarrow only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.streams import access
from pipelines.streams.plan import Plan
from pipelines.streams.shards import Index, read_places
from pipelines.streams.slow import report_to
from pipelines.streams.storage import is_remote

if TYPE_CHECKING:
    from ray.data import Dataset

    from pipelines.streams.assemble import Assembler
    from pipelines.streams.pace import Pace

# Few large chunks keep Ray's scheduling loop out of the training process; three wait, because with
# two the reading stops and starts with that loop's pauses of 0.1 s (measured: 5 times slower).
AHEAD = 3  # chunks read and waiting for the consumer, beside those in the tasks
CHUNK_BYTES = 12 << 20  # raw bytes per task; also about the size of a block
DECODED_BYTES = 32 << 20  # tensors per decoding task
CHUNK_ROWS = 4096  # per task
MAX_CHUNKS = 4096  # per stream; longer streams have larger chunks that come in several tables
MAX_TASKS = 512  # of a stream that reads with one task at a time: each costs 1 ms before the start
READ_CPUS, DECODE_CPUS = 0.25, 1.0  # a read task waits for disk or network most of the time
LOCAL_TASKS, REMOTE_TASKS = 1, 4  # read tasks of one stream at a time
DATA_NODES = "uml.data_nodes"  # of Ray Data's context: labels of the nodes that read and decode

# One row holds several whole batches, so that Ray Data, which joins and splits blocks by rows and
# bytes, hands every table over as it was made.
COLUMNS = pa.schema(
    [
        ("segment", pa.int32()),
        ("batches", pa.list_(pa.int64())),  # numbers in the segment's plan
        ("counts", pa.list_(pa.int64())),  # samples of each batch, in the columns below
        ("slots", pa.list_(pa.int64())),  # place in the global batch
        ("rows", pa.list_(pa.int64())),  # of the segment's index
        ("data", pa.list_(pa.large_binary())),  # null: the shard ends before the member does
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


def chunks_of(
    segments: Sequence[Segment],
    rank: int = 0,
    world: int = 1,
    item_bytes: int = 0,
    limit: int = MAX_CHUNKS,
) -> list[Chunk]:
    """All work of a rank in order: one batch, two, four ... up to the size of a task.

    item_bytes  of one decoded sample where tasks decode, else 0
    limit       chunks, about; what more work there is makes them larger
    """
    costs = [_batch_cost(segment, rank, world, item_bytes) for segment in segments]
    total = sum(cost * segment.count for cost, segment in zip(costs, segments, strict=True))
    most = max(1.0, total / limit)
    chunks, batches = [], 1
    for number, (segment, cost) in enumerate(zip(segments, costs, strict=True)):
        first, end = segment.first, segment.first + segment.count
        while first < end:
            stop = min(end, first + min(batches, max(1, int(most / cost))))
            chunks.append(Chunk(number, first, stop))
            first, batches = stop, 2 * batches
    return chunks


def read_chunk(places: Places, chunk: Chunk, rank: int = 0, world: int = 1) -> Iterator[pa.Table]:
    """Tables (`COLUMNS`, one row) of the rank's slots of the chunk's batches, in order."""
    plan, place = places.plans[chunk.segment], places.of(chunk.segment)
    low, high = slice_of(plan.batch_size, rank, world)
    numbers: list[int] = []
    rows: list[np.ndarray] = []
    size = 0
    for number in range(chunk.first, chunk.stop):
        mine = plan.batch(number)[low:high]
        if len(mine):
            numbers.append(number)
            rows.append(mine)
            size += int(place.sizes[mine].sum())
        if numbers and (size >= CHUNK_BYTES or number == chunk.stop - 1):
            yield _table(place, chunk.segment, numbers, rows, low)
            numbers, rows, size = [], [], 0


def local_tables(segments: Sequence[Segment], rank: int = 0, world: int = 1) -> Iterator[pa.Table]:
    """The stream read in this process: the same tables as through Ray."""
    places = Places.of_segments(segments)
    for chunk in chunks_of(segments, rank, world):
        yield from read_chunk(places, chunk, rank, world)


def ray_tables(
    segments: Sequence[Segment],
    rank: int = 0,
    world: int = 1,
    *,
    decode: Assembler | None = None,
    tasks: int | None = None,
    board: Any = None,
) -> Iterator[pa.Table]:
    """The stream through Ray Data for one rank: blocks as they come, without copies.

    decode  batches are decoded by it in the tasks (its places must be those of the segments) and
            come as tables of `assemble.DECODED`; None: raw bytes, tables of `COLUMNS`
    tasks   at a time; default: what keeps a consumer of this stream busy
    board   an actor whose slow(url, seconds) is told of reads that take long

    It is meant to be called in the training worker: every start of the worker group plans the rest
    of the run anew, for the ranks that there are then.
    """
    tasks = tasks or _tasks(segments, world, decode is not None)
    limit = 8 * MAX_CHUNKS if tasks == 1 else MAX_CHUNKS
    item_bytes = 0 if decode is None else decode.item_bytes()
    chunks = chunks_of(segments, rank, world, item_bytes, limit)
    if not chunks:
        return
    tasks = min(len(chunks), tasks)
    pace = None
    if len(chunks) > tasks + AHEAD:
        from pipelines.streams.pace import Pace

        pace = Pace([(chunk.segment, chunk.first) for chunk in chunks], tasks + AHEAD)
    shared = Places.of_segments(segments) if decode is None else decode
    dataset = _dataset(chunks, shared, (rank, world), tasks, pace, board)
    table: pa.Table
    for table in dataset.iter_batches(  # type: ignore[assignment]
        batch_size=None,  # type: ignore[arg-type]  # documented: whole blocks
        batch_format="pyarrow",
        prefetch_batches=2,
    ):
        if pace is not None:
            pace.reached(*first_batch(table))
        yield table


def place_data_tasks(labels: Mapping[str, str]) -> None:
    """From now on the streams of this process read and decode on nodes with all these labels."""
    from ray.data import DataContext

    DataContext.get_current().set_config(DATA_NODES, dict(labels))


def data_nodes() -> dict[str, str]:
    """The labels that `place_data_tasks` was told; none: any node."""
    from ray.data import DataContext

    labels: dict[str, str] = DataContext.get_current().get_config(DATA_NODES, {})
    return labels


def first_batch(table: pa.Table) -> tuple[int, int]:
    """(segment, number) of the first batch in a table, raw or decoded."""
    number = table.column("batches")[0].as_py()
    return table.column("segment")[0].as_py(), number[0]


def _dataset(
    chunks: Sequence[Chunk],
    shared: Places | Assembler,
    place: tuple[int, int],
    tasks: int,
    pace: Pace | None,
    board: Any,
) -> Dataset:
    """One task per chunk or for several, in order; `shared` tells if they decode what they read."""
    import ray
    from ray.data import ExecutionOptions, ExecutionResources, TaskPoolStrategy

    reads = isinstance(shared, Places)
    work = partial(
        _read_task if reads else _decode_task,
        ray.put(shared),
        place,
        pace,
        board,
    )
    items = [{"number": number, **asdict(chunk)} for number, chunk in enumerate(chunks)]
    # Chunks of one task come one after the other: only a stream of one task at a time may share.
    blocks = min(len(items), MAX_TASKS) if tasks == 1 else len(items)
    labels = data_nodes()
    placed: dict[str, Any] = {"label_selector": labels} if labels else {}
    dataset = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        work,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=READ_CPUS if reads else DECODE_CPUS,
        compute=TaskPoolStrategy(size=tasks),
        **placed,
    )
    # The pace keeps a stream far below this; it is a limit for samples of very unequal size.
    most = 4 * (tasks + AHEAD) * (CHUNK_BYTES if reads else DECODED_BYTES)
    dataset.context.execution_options = ExecutionOptions(
        preserve_order=True,
        resource_limits=ExecutionResources.for_limits(object_store_memory=most),
    )
    # Every row is a block of its own, handed over as soon as it is there: a task that waited for
    # its turn with a finished table still in its hands would wait for ever.
    dataset.context.target_max_block_size = 1
    dataset.context.enable_progress_bars = False
    return dataset


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
    access: Mapping[str, str] = field(default_factory=access.settings, repr=False)  # holds keys

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
    place: Place, segment: int, numbers: list[int], parts: list[np.ndarray], low: int
) -> pa.Table:
    rows = np.concatenate(parts)
    columns = {
        "batches": np.array(numbers),
        "counts": np.array([len(part) for part in parts]),
        "slots": np.concatenate([low + np.arange(len(part)) for part in parts]),
        "rows": rows,
        "data": place.read(rows),
    }
    arrays = [pa.array([segment], pa.int32())]
    for name, values in columns.items():
        inner = pa.array(values, COLUMNS.field(name).type.value_type)
        arrays.append(pa.ListArray.from_arrays([0, len(inner)], inner))
    return pa.table(arrays, schema=COLUMNS)


def _read_task(
    shared: Any, place: tuple[int, int], pace: Pace | None, board: Any, work: pa.Table
) -> Iterator[pa.Table]:
    """What one Ray task does: the chunks named in `work`."""
    for chunk in _due(pace, board, work):
        yield from read_chunk(_fetched(shared), chunk, *place)


def _decode_task(
    shared: Any, place: tuple[int, int], pace: Pace | None, board: Any, work: pa.Table
) -> Iterator[pa.Table]:
    from pipelines.streams.assemble import decode_chunk

    for chunk in _due(pace, board, work):
        yield from decode_chunk(_fetched(shared), chunk, *place)


def _due(pace: Pace | None, board: Any, work: pa.Table) -> Iterator[Chunk]:
    """The chunks named in `work`, each when its turn has come."""
    if board is not None:
        report_to(lambda url, seconds: board.slow.remote(url, seconds))
    for item in work.to_pylist():
        number = item.pop("number")
        if pace is not None:
            pace.wait_for(number)
        yield Chunk(**item)


@lru_cache(maxsize=8)
def _fetched(shared: Any) -> Any:
    """What all tasks of a stream share, fetched once per worker process."""
    import ray

    found = ray.get(shared)
    access.adopt((found if isinstance(found, Places) else found.places).access)
    return found


def _batch_cost(segment: Segment, rank: int, world: int, item_bytes: int) -> float:
    """A rank's part of one batch as a share of the largest chunk."""
    low, high = slice_of(segment.plan.batch_size, rank, world)
    raw = float(segment.index.sizes.mean()) / CHUNK_BYTES
    return max(raw, item_bytes / DECODED_BYTES, 1 / CHUNK_ROWS) * max(1, high - low)


def _tasks(segments: Sequence[Segment], world: int, decode: bool) -> int:
    """Tasks of one stream at a time. Ray's CPUs bound all streams together."""
    import ray

    if decode:
        return max(2, min(16, int(ray.cluster_resources().get("CPU", 2)) // world))
    remote = any(is_remote(shard.url) for segment in segments for shard in segment.index.shards)
    return REMOTE_TASKS if remote else LOCAL_TASKS
