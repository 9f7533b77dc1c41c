"""The consumer's end of a stream: tables of raw bytes -> decoded batches, in order.

Decoding happens here, in the process that trains, in a few threads: torchvision and soundfile
release the GIL, and no decoded pixel has to travel between processes. What a batch holds depends
on its number alone (the plan's rows, the plan's random numbers), never on the number of ranks.

The refill rule: where the row at position p of a plan is bad, its slot is given to the first good
row among those at positions p+1, p+2, ..., which keep their own slots as well. In a plan without
shuffling (evaluation) a bad row is left out instead: nothing is counted twice.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import Quarantine
from pipelines.streams.shards import Index, read_rows
from pipelines.streams.source import Segment, local_tables, slice_of
from uml_core.errors import RunError
from uml_core.modalities.base import BadSample, Batch, Modality

AHEAD = 2  # decoded batches that wait for the consumer
PART = 8  # samples one thread decodes at a time, at least
CUT_OFF = "the shard ends before this member does: cut off?"


class Item(NamedTuple):
    """One batch of a stream: batch `number` of segment `segment`."""

    segment: int
    number: int
    batch: Batch


class DecodedCache:
    """Decoded samples of small sets that are repeated without augmentation.

    Nothing is evicted: what does not fit any more is decoded again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit, self.size = limit_bytes, 0
        self._items: dict[tuple[str, int], Tensor] = {}
        self._lock = threading.Lock()

    def get(self, place: tuple[str, int]) -> Tensor | None:
        return self._items.get(place)

    def put(self, place: tuple[str, int], item: Tensor) -> None:
        size = item.element_size() * item.nelement()
        with self._lock:
            if self.size + size <= self.limit and place not in self._items:
                self._items[place] = item
                self.size += size


class BatchStream:
    """Iterator over the decoded batches of a stream's segments, for one rank.

    tables          `ray_tables(...)` or `local_tables(...)` of the same segments, rank and world
    augment         False: samples are decoded without random numbers
    decode_threads  0: everything happens inside next(); else reading and decoding run ahead
    quarantine      where bad samples go; None: in memory, with the default budget
    cache           used while samples are decoded without random numbers

    `wait_seconds` is the time that next() has taken so far. Raises RunError when the stream
    cannot go on. Use it as a context manager, or call close().
    """

    def __init__(
        self,
        tables: Iterable[pa.Table],
        segments: Sequence[Segment],
        modality: Modality,
        *,
        rank: int = 0,
        world: int = 1,
        augment: bool = True,
        decode_threads: int = 2,
        quarantine: Quarantine | None = None,
        cache: DecodedCache | None = None,
    ) -> None:
        self.wait_seconds = 0.0
        rows = segments[0].index.num_samples if segments else 0
        self._work = _Work(
            list(segments),
            modality,
            (rank, world),
            modality.num_random if augment else 0,
            quarantine or Quarantine(None, modality=modality.kind, rows=rows),
            cache,
        )
        self._groups = _by_batch(iter(tables), self._work)
        self._threads = decode_threads
        self._stopped = threading.Event()
        self._ready: queue.Queue[_Job | BaseException | None] = queue.Queue(maxsize=AHEAD)
        self._puller: threading.Thread | None = None
        self._ended = False

    def __iter__(self) -> BatchStream:
        return self

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> Item:
        started = time.perf_counter()
        try:
            while not self._ended:
                item = self._next_inline() if self._threads == 0 else self._next_ahead()
                if item is not None and len(item.batch):
                    return item
            raise StopIteration
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - started

    def close(self) -> None:
        """Ends reading and decoding; waits until the threads are gone."""
        self._ended = True
        self._stopped.set()
        if self._puller is None:
            self._groups.close()
        elif self._puller is not threading.current_thread():
            while self._puller.is_alive():
                _drain(self._ready)
                self._puller.join(timeout=0.05)

    def _next_inline(self) -> Item | None:
        group = next(self._groups, None)
        if group is None:
            self._ended = True
            return None
        return self._work.finish(group, self._work.decode(group, 0, len(group)))

    def _next_ahead(self) -> Item | None:
        if self._puller is None:
            self._puller = threading.Thread(target=self._pull, name="uml-stream", daemon=True)
            self._puller.start()
        job = self._ready.get()
        if job is None:
            self._ended = True
            return None
        if isinstance(job, BaseException):
            raise job
        return job.result()

    def _pull(self) -> None:
        """Reads tables and hands batches to the decoding threads, a few ahead of the consumer."""
        last: BaseException | None = None
        with ThreadPoolExecutor(self._threads, thread_name_prefix="uml-decode") as pool:
            try:
                for group in self._groups:
                    self._put(_Job(self._work, group, pool, self._threads))
                    if self._stopped.is_set():
                        break
            except BaseException as error:
                last = error
            finally:
                self._groups.close()
                self._put(last)
                if self._stopped.is_set():
                    pool.shutdown(wait=True, cancel_futures=True)

    def _put(self, job: _Job | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(job, timeout=0.1)
            except queue.Full:
                continue


def iter_plan(
    index: Index,
    plan: Plan,
    modality: Modality,
    *,
    first: int = 0,
    count: int | None = None,
    **options: Any,
) -> BatchStream:
    """Batches first.. of a plan, read and decoded in this process without Ray.

    count    batches; default: one pass over the rows
    options  of `BatchStream`; decode_threads is 0 unless given
    """
    segment = Segment(index, plan, first, plan.num_batches - first if count is None else count)
    rank, world = options.get("rank", 0), options.get("world", 1)
    tables = local_tables([segment], rank, world)
    return BatchStream(tables, [segment], modality, **{"decode_threads": 0, **options})


def load_all(
    index: Index,
    modality: Modality,
    limit_bytes: int,
    *,
    batch_size: int = 256,
    name: str = "",
    quarantine: Quarantine | None = None,
) -> list[Batch]:
    """All samples once, in order, decoded without augmentation: an evaluation set in memory.

    Raises RunError when they take more than `limit_bytes`.
    """
    plan = Plan(index.num_samples, batch_size, 0, name or modality.kind, shuffle=False)
    batches, size = [], 0
    for item in iter_plan(index, plan, modality, augment=False, quarantine=quarantine):
        batches.append(item.batch)
        size += item.batch.x.element_size() * item.batch.x.nelement()
        if size > limit_bytes:
            raise RunError(
                f"{plan.modality}: {index.num_samples} decoded samples take more than "
                f"{limit_bytes >> 20} MiB of memory; evaluate fewer of them"
            )
    return batches


class _Group(NamedTuple):
    """The raw rows of one batch of one segment."""

    segment: int
    number: int
    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows


@dataclass
class _Work:
    """How rows become a batch; shared by all threads of a stream."""

    segments: list[Segment]
    modality: Modality
    place: tuple[int, int]  # rank, world
    num_random: int
    quarantine: Quarantine
    cache: DecodedCache | None

    def expected(self) -> Iterator[tuple[int, int, int]]:
        """(segment, number, rows) of every batch that must come, in order."""
        for i, segment in enumerate(self.segments):
            for number in range(segment.first, segment.first + segment.count):
                low, high = slice_of(segment.plan.batch_size, *self.place)
                if not segment.plan.shuffle:
                    high = min(high, segment.plan.num_rows - number * segment.plan.batch_size)
                if high > low:
                    yield i, number, high - low

    def decode(self, group: _Group, start: int, stop: int) -> list[Tensor | BadSample | None]:
        """Rows start..stop-1 of a group; None stands for a row that is known to be bad."""
        part = group.table.slice(start, stop - start)
        index = self.segments[group.segment].index
        uniforms = self.uniforms(group)
        columns = (part.column(name).to_pylist() for name in ("row", "slot", "data"))
        return [
            self.decode_one(index, row, data, None if uniforms is None else uniforms[slot])
            for row, slot, data in zip(*columns, strict=True)
        ]

    def uniforms(self, group: _Group) -> np.ndarray | None:
        """(B, num_random) random numbers of the global batch."""
        if self.num_random == 0:
            return None
        return self.segments[group.segment].plan.randoms(group.number, self.num_random)

    def decode_one(
        self, index: Index, row: int, data: bytes | None, u: np.ndarray | None
    ) -> Tensor | BadSample | None:
        if len(self.quarantine) and self.name(index, row) in self.quarantine:
            return None
        place = None
        if self.cache is not None and u is None:
            place = (index.shards[index.shard_ids[row]].url, int(index.offsets[row]))
            known = self.cache.get(place)
            if known is not None:
                return known
        if data is None:
            return BadSample(CUT_OFF)
        try:
            item = self.modality.decode(data, index.suffixes[row], u)
        except BadSample as error:
            return error
        if place is not None and self.cache is not None:
            self.cache.put(place, item)
        return item

    def finish(self, group: _Group, items: list[Tensor | BadSample | None]) -> Item:
        """The batch of a group: bad samples replaced by the refill rule, then collated."""
        index = self.segments[group.segment].index
        rows = group.table.column("row").to_pylist()
        kept: list[Tensor] = []
        used: list[int] = []
        for i, item in enumerate(items):
            if isinstance(item, Tensor):
                self.quarantine.good()
                kept.append(item)
                used.append(rows[i])
                continue
            if isinstance(item, BadSample):
                self.quarantine.bad(*self.name(index, rows[i]), str(item))
            found = self.refill(group, group.table.column("slot")[i].as_py())
            if found is not None:
                kept.append(found[1])
                used.append(found[0])
        if not kept:
            return Item(group.segment, group.number, Batch(torch.zeros(0), torch.zeros(0)))
        x, mask = self.modality.collate(kept)
        y = torch.from_numpy(index.labels[np.asarray(used)])
        return Item(group.segment, group.number, Batch(x, y, mask, [index.keys[r] for r in used]))

    def refill(self, group: _Group, slot: int) -> tuple[int, Tensor] | None:
        """(row, item) for the slot of a bad row; None in a plan without shuffling."""
        segment = self.segments[group.segment]
        if not segment.plan.shuffle:
            return None
        uniforms = self.uniforms(group)
        u = None if uniforms is None else uniforms[slot]
        position = group.number * segment.plan.batch_size + slot
        for after in range(1, 2 * segment.plan.num_rows):
            row = int(segment.plan.rows(position + after, position + after + 1)[0])
            if self.name(segment.index, row) in self.quarantine:
                continue
            [data] = read_rows(segment.index, [row])
            whole = data if len(data) == segment.index.sizes[row] else None
            item = self.decode_one(segment.index, row, whole, u)
            if isinstance(item, Tensor):
                self.quarantine.good()
                return row, item
            if item is not None:
                self.quarantine.bad(*self.name(segment.index, row), str(item))
        raise RunError(f"{segment.plan.modality}: not one sample can be used; run `uml verify`")

    @staticmethod
    def name(index: Index, row: int) -> tuple[str, str]:
        return index.shards[index.shard_ids[row]].url, index.keys[row]


class _Job:
    """One batch on its way: its parts are decoded by several threads, the last one collates."""

    def __init__(self, work: _Work, group: _Group, pool: ThreadPoolExecutor, threads: int) -> None:
        self._work, self._group = work, group
        step = max(PART, -(-len(group) // threads))
        starts = range(0, len(group), step)
        self._parts: list[list[Tensor | BadSample | None]] = [[] for _ in starts]
        self._left, self._lock = len(starts), threading.Lock()
        self._done = threading.Event()
        self._item: Item | None = None
        self._error: BaseException | None = None
        for number, start in enumerate(starts):
            pool.submit(self._run, number, start, min(len(group), start + step))

    def _run(self, number: int, start: int, stop: int) -> None:
        try:
            self._parts[number] = self._work.decode(self._group, start, stop)
            with self._lock:
                self._left -= 1
                last = self._left == 0
            if last:
                items = [item for part in self._parts for item in part]
                self._item = self._work.finish(self._group, items)
                self._done.set()
        except BaseException as error:
            self._error = error
            self._done.set()

    def result(self) -> Item:
        self._done.wait()
        if self._error is not None:
            raise self._error
        assert self._item is not None
        return self._item


def _by_batch(tables: Iterator[pa.Table], work: _Work) -> Generator[_Group, None, None]:
    """Cuts tables into batches and checks that each is the one that must come now."""
    held: list[pa.Table] = []
    have = 0
    try:
        for segment, number, count in work.expected():
            while have < count:
                table = _next_table(tables)
                if table is None:
                    raise RunError(f"the stream ended before batch {number} of segment {segment}")
                held.append(table)
                have += table.num_rows
            whole = held[0] if len(held) == 1 else pa.concat_tables(held)
            group = whole.slice(0, count)
            have -= count
            held = [whole.slice(count)] if have else []
            ends = (group.column("segment"), group.column("batch"))
            found = {(column[0].as_py(), column[count - 1].as_py()) for column in ends}
            if found != {(segment, segment), (number, number)}:
                raise RunError(f"batch {number} of segment {segment} came out of order")
            yield _Group(segment, number, group)
    finally:
        close: Callable[[], None] | None = getattr(tables, "close", None)
        if close is not None:
            close()


def _next_table(tables: Iterator[pa.Table]) -> pa.Table | None:
    """The next table; failures of Ray's read tasks become the error that caused them."""
    try:
        return next(tables, None)
    except RunError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, RunError):
                raise RunError(str(cause)) from error
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise


def _drain(waiting: queue.Queue) -> None:
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return
