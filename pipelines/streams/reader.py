"""The consumer's end of a stream: tables -> batches, in order, for one rank.

Decoding happens either in Ray tasks (`ray_stream(..., decode_in="tasks")`): only finished batches
reach the process that trains. Or here, in a few threads: the image and audio libraries release the
GIL, and no decoded pixel has to travel between processes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from pipelines.streams.assemble import Assembler, Decoded, DecodedCache, Group, from_table
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import Quarantine
from pipelines.streams.shards import Index
from pipelines.streams.source import (
    Places,
    Segment,
    local_tables,
    ray_tables,
    slice_of,
)
from uml_core.errors import RunError
from uml_core.modalities.base import BadSample, Batch, Modality

__all__ = ["BatchStream", "DecodedCache", "Item", "iter_plan", "load_all", "ray_stream"]

AHEAD = 2  # decoded batches that wait for the consumer
CLOSE_SECONDS = 10.0
PART = 8  # samples one thread decodes at a time, at least


class Item(NamedTuple):
    """One batch of a stream: batch `number` of segment `segment`."""

    segment: int
    number: int
    batch: Batch


class BatchStream:
    """Iterator over the decoded batches of a stream's segments, for one rank.

    tables          `ray_tables(...)` or `local_tables(...)` of the same segments, rank and world;
                    raw bytes or, from a dataset with `decode`, finished batches
    augment         False: samples are decoded without random numbers
    decode_threads  0: raw bytes are decoded inside next(); else in so many threads, running ahead
    quarantine      where bad samples go; None: in memory, with the default budget
    cache           decoded samples that repeat unchanged

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
        self._segments = list(segments)
        self._expected = expected_batches(self._segments, rank, world)
        self._assembler = Assembler(
            modality, Places.of_segments(segments), augment=augment, cache=cache
        )
        rows = max((len(segment.index) for segment in segments), default=0)
        if quarantine is None:
            quarantine = Quarantine(None, modality=modality.kind, rows=rows)
        self._quarantine = quarantine
        self._held: Iterator[Group | Decoded] = iter(())  # of the table at hand
        self._results = self._in_order(iter(tables))
        self._threads = decode_threads
        self._stopped = threading.Event()
        self._ready: queue.Queue[_Job | Decoded | BaseException | None] = queue.Queue(maxsize=AHEAD)
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
                decoded = self._next_inline() if self._threads == 0 else self._next_ahead()
                if decoded is None:
                    self._ended = True
                elif (item := self._item(decoded)) is not None:
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
        """Ends reading and decoding; waits until the threads are gone.

        A thread that a read holds up is left behind: it ends with the read, or the process.
        """
        self._ended = True
        self._stopped.set()
        if self._puller is None:
            self._results.close()
            return
        patience = time.monotonic() + CLOSE_SECONDS
        while self._puller.is_alive() and time.monotonic() < patience:
            _drain(self._ready)
            self._puller.join(timeout=0.05)

    def _item(self, decoded: Decoded) -> Item | None:
        """The batch with its labels and keys; None where every sample of it was bad."""
        index = self._segments[decoded.segment].index
        for row, error in decoded.bad:
            self._quarantine.bad(*index.origin(row), error)
        if decoded.failure is not None:
            raise RunError(self._quarantine.advice(decoded.failure))
        if decoded.x is None:
            return None
        y = torch.from_numpy(index.labels[np.asarray(decoded.rows)])
        keys = [index.keys[row] for row in decoded.rows]
        return Item(decoded.segment, decoded.number, Batch(decoded.x, y, decoded.mask, keys))

    def _next_inline(self) -> Decoded | None:
        found = next(self._results, None)
        return self._assembler.batch(found) if isinstance(found, Group) else found

    def _next_ahead(self) -> Decoded | None:
        if self._puller is None:
            self._puller = threading.Thread(target=self._pull, name="uml-stream", daemon=True)
            self._puller.start()
        found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        return found.result() if isinstance(found, _Job) else found

    def _pull(self) -> None:
        """Reads tables and hands batches to the decoding threads, a few ahead of the consumer."""
        last: BaseException | None = None
        with ThreadPoolExecutor(self._threads, thread_name_prefix="uml-decode") as pool:
            try:
                for found in self._results:
                    if isinstance(found, Group):
                        self._put(_Job(self._assembler, found, pool, self._threads))
                    else:
                        self._put(found)
                    if self._stopped.is_set():
                        break
            except BaseException as error:
                last = error
            finally:
                self._results.close()
                self._put(last)
                if self._stopped.is_set():
                    pool.shutdown(wait=True, cancel_futures=True)

    def _put(self, found: _Job | Decoded | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(found, timeout=0.1)
            except queue.Full:
                continue

    def _in_order(self, tables: Iterator[pa.Table]) -> Generator[Group | Decoded, None, None]:
        """What the tables hold, batch by batch; each must be the one that is due."""
        try:
            for due in self._expected:
                found = next(self._held, None)
                while found is None:
                    table = _next_table(tables)
                    if table is None:
                        raise RunError(f"a stream ended before batch {due[1]}")
                    self._held = _contents(table)
                    found = next(self._held, None)
                if (found.segment, found.number) != due:
                    raise RunError(f"batch {found.number} came where batch {due[1]} was due")
                yield found
        finally:
            close: Callable[[], None] | None = getattr(tables, "close", None)
            if close is not None:
                close()


def ray_stream(
    segments: Sequence[Segment],
    modality: Modality,
    *,
    rank: int = 0,
    world: int = 1,
    augment: bool = True,
    decode_in: Literal["tasks", "threads"] = "tasks",
    decode_threads: int = 1,
    quarantine: Quarantine | None = None,
    cache_bytes: int = 0,
    board: Any = None,
) -> BatchStream:
    """The stream of a rank through Ray Data.

    decode_in       "tasks": in Ray tasks, wherever CPUs are free. "threads": in this process
    decode_threads  of this process, with "threads"
    cache_bytes     for decoded samples that repeat unchanged, in each process that decodes
    board           an actor whose slow(url, seconds) is told of reads that take long
    """
    cache = DecodedCache(cache_bytes) if cache_bytes else None
    decode = None
    if decode_in == "tasks":
        places = Places.of_segments(segments)
        decode = Assembler(modality, places, augment=augment, cache=cache)
    return BatchStream(
        ray_tables(segments, rank, world, decode=decode, board=board),
        segments,
        modality,
        rank=rank,
        world=world,
        augment=augment,
        decode_threads=0 if decode_in == "tasks" else decode_threads,
        quarantine=quarantine,
        cache=cache,
    )


def expected_batches(
    segments: Sequence[Segment], rank: int, world: int
) -> Iterator[tuple[int, int]]:
    """(segment, number) of every batch that must come to a rank, in order."""
    for i, segment in enumerate(segments):
        plan = segment.plan
        low, high = slice_of(plan.batch_size, rank, world)
        for number in range(segment.first, segment.first + segment.count):
            end = high
            if not plan.shuffle:
                end = min(high, plan.num_rows - number * plan.batch_size)
            if end > low:
                yield i, number


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


class _Job:
    """One batch on its way: its parts are decoded by several threads, the last one collates."""

    def __init__(
        self, assembler: Assembler, group: Group, pool: ThreadPoolExecutor, threads: int
    ) -> None:
        self._assembler, self._group = assembler, group
        total = len(group.rows)
        step = max(PART, -(-total // threads))
        starts = range(0, total, step)
        self._parts: list[list[torch.Tensor | BadSample]] = [[] for _ in starts]
        self._left, self._lock = len(starts), threading.Lock()
        self._done = threading.Event()
        self._result: Decoded | BaseException | None = None
        for number, start in enumerate(starts):
            pool.submit(self._run, number, start, min(total, start + step))

    def _run(self, number: int, start: int, stop: int) -> None:
        try:
            self._parts[number] = self._assembler.decode(self._group, start, stop)
            with self._lock:
                self._left -= 1
                if self._left:
                    return
            items = [item for part in self._parts for item in part]
            self._result = self._assembler.finish(self._group, items)
        except BaseException as error:
            self._result = error
        self._done.set()

    def result(self) -> Decoded:
        self._done.wait()
        if isinstance(self._result, BaseException):
            raise self._result
        assert self._result is not None
        return self._result


def _contents(table: pa.Table) -> Iterator[Group | Decoded]:
    """The batches of a table, raw or decoded."""
    if "x" in table.column_names:
        return (from_table(table, i) for i in range(table.num_rows))
    return Group.all_of(table)


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
