"""Raw rows -> one decoded, collated batch; in a thread of the trainer or in a Ray task elsewhere.

What a batch holds depends on its number alone (the plan's rows, the plan's random numbers), never
on where it is decoded or on the number of ranks.

The refill rule: where the row at position p of a plan is bad, its slot is given to the first good
row among those at positions p+1, p+2, ..., which keep their own slots as well. In a plan without
shuffling (evaluation) a bad row is left out instead: nothing is counted twice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipelines.streams.source import COLUMNS, Chunk, Place, Places, read_chunk
from uml_core.modalities.base import BadSample, Modality

FUSE = 32  # bad rows one after the other: then it is not the samples
CUT_OFF = "the shard ends before this member does: cut off?"

DECODED = pa.schema(
    [
        ("segment", pa.int32()),
        ("batches", pa.list_(pa.int64())),  # one number, under the name that raw tables have
        ("rows", pa.list_(pa.int64())),  # of the segment's index, as they stand in the batch
        ("bad_rows", pa.list_(pa.int64())),
        ("bad_errors", pa.list_(pa.string())),
        ("failure", pa.string()),
        ("x", pa.large_binary()),
        ("x_shape", pa.list_(pa.int64())),
        ("x_dtype", pa.string()),
        ("mask", pa.large_binary()),  # null: every position is valid
        ("mask_shape", pa.list_(pa.int64())),
    ]
)


class Group(NamedTuple):
    """The raw rows of one batch (or of a rank's slice of it)."""

    segment: int
    number: int
    slots: list[int]
    rows: list[int]
    data: list[bytes | None]  # None: the shard ends before the member does

    @classmethod
    def all_of(cls, table: pa.Table) -> Iterator[Group]:
        """The batches of a table of `source.COLUMNS`."""
        for row in range(table.num_rows):
            value = {name: table.column(name)[row].values for name in COLUMNS.names[1:]}
            segment = table.column("segment")[row].as_py()
            numbers, counts = value["batches"].to_pylist(), value["counts"].to_pylist()
            start = 0
            for number, count in zip(numbers, counts, strict=True):
                mine = (value[n].slice(start, count).to_pylist() for n in ("slots", "rows", "data"))
                yield cls(segment, number, *mine)
                start += count


class Decoded(NamedTuple):
    """A batch without its labels and keys, which the consumer knows.

    rows     (n,) rows of the segment's index; with n = 0 x and mask are None
    bad      (row, error) of rows that could not be decoded
    failure  why the stream cannot go on, else None
    """

    segment: int
    number: int
    rows: list[int]
    x: Tensor | None
    mask: Tensor | None
    bad: list[tuple[int, str]]
    failure: str | None = None


class DecodedCache:
    """Decoded samples of small sets that are repeated without augmentation.

    Nothing is evicted: what does not fit any more is decoded again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit, self.size = limit_bytes, 0
        self.full = False  # something did not fit
        self.items: dict[tuple[str, int], Tensor] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[DecodedCache], tuple[int]]:
        return DecodedCache, (self.limit,)  # every process that decodes begins with an empty one

    def get(self, place: tuple[str, int]) -> Tensor | None:
        return self.items.get(place)

    def put(self, place: tuple[str, int], item: Tensor) -> None:
        size = item.element_size() * item.nelement()
        with self._lock:
            if place in self.items:
                return
            if self.size + size > self.limit:
                self.full = True
                return
            self.items[place] = item
            self.size += size


class Assembler:
    """Makes batches of one modality out of raw rows. Thread-safe.

    augment  False: samples are decoded without random numbers
    cache    used while samples are decoded without random numbers
    """

    def __init__(
        self,
        modality: Modality,
        places: Places,
        *,
        augment: bool = True,
        cache: DecodedCache | None = None,
    ) -> None:
        self.modality, self.places, self.cache = modality, places, cache
        self.num_random = modality.num_random if augment else 0
        self._bad: dict[tuple[str, int], BadSample] = {}

    def item_bytes(self) -> int:
        """Bytes of one decoded sample, read off the first that can be used."""
        place = self.places.of(0)
        for row in range(min(FUSE, len(place.sizes))):
            [data] = place.read(np.array([row]))
            item = self._one(place, row, data, None)
            if isinstance(item, Tensor):
                return item.element_size() * item.nelement()
        return 0

    def batch(self, group: Group) -> Decoded:
        """The whole way, in this thread."""
        return self.finish(group, self.decode(group, 0, len(group.rows)))

    def decode(self, group: Group, start: int, stop: int) -> list[Tensor | BadSample]:
        """Rows start..stop-1 of a group."""
        uniforms = self._uniforms(group)
        us = [None if uniforms is None else uniforms[slot] for slot in group.slots[start:stop]]
        rows, data = group.rows[start:stop], group.data[start:stop]
        return self._all(self.places.of(group.segment), rows, data, us)

    def finish(self, group: Group, items: list[Tensor | BadSample]) -> Decoded:
        """The batch of a group's decoded rows: bad ones are replaced, the rest is collated."""
        rows: list[int] = []
        kept: list[Tensor] = []
        bad: list[tuple[int, str]] = []
        failure: str | None = None
        for i, item in enumerate(items):
            if isinstance(item, Tensor):
                rows.append(group.rows[i])
                kept.append(item)
                continue
            bad.append((group.rows[i], str(item)))
            if not self.places.plans[group.segment].shuffle:
                continue
            found = self._refill(group, i, bad)
            if found is None:
                failure = f"{FUSE} samples in a row cannot be used (the last: {bad[-1][1]})"
                break
            rows.append(found[0])
            kept.append(found[1])
        if failure is not None or not kept:
            return Decoded(group.segment, group.number, [], None, None, bad, failure)
        x, mask = self.modality.collate(kept)
        return Decoded(group.segment, group.number, rows, x, mask, bad)

    def _refill(
        self, group: Group, i: int, bad: list[tuple[int, str]]
    ) -> tuple[int, Tensor] | None:
        """(row, item) for the slot of a bad row; None when the fuse blows."""
        plan, place = self.places.plans[group.segment], self.places.of(group.segment)
        uniforms, slot = self._uniforms(group), group.slots[i]
        u = None if uniforms is None else uniforms[slot]
        position = group.number * plan.batch_size + slot
        for row in plan.rows(position + 1, position + FUSE).tolist():
            [data] = place.read(np.array([row]))
            item = self._one(place, row, data, u)
            if isinstance(item, Tensor):
                return row, item
            bad.append((row, str(item)))
        return None

    def _one(
        self, place: Place, row: int, data: bytes | None, u: np.ndarray | None
    ) -> Tensor | BadSample:
        [item] = self._all(place, [row], [data], [u])
        return item

    def _all(
        self,
        place: Place,
        rows: Sequence[int],
        data: Sequence[bytes | None],
        us: Sequence[np.ndarray | None],
    ) -> list[Tensor | BadSample]:
        """Samples as far as they are known, the rest decoded together."""
        places = [place.where(row) for row in rows]
        items = [self._known(where, raw, u) for where, raw, u in zip(places, data, us, strict=True)]
        new = [i for i, item in enumerate(items) if item is None]
        decoded = self.modality.decode_all(
            [(data[i] or b"", place.suffix(rows[i]), us[i]) for i in new]
        )
        for i, item in zip(new, decoded, strict=True):
            items[i] = item
            if isinstance(item, BadSample):
                self._bad[places[i]] = item
            elif self.cache is not None and us[i] is None:
                self.cache.put(places[i], item)
        return [item for item in items if item is not None]

    def _known(
        self, where: tuple[str, int], data: bytes | None, u: np.ndarray | None
    ) -> Tensor | BadSample | None:
        if where in self._bad:
            return self._bad[where]
        item = self.cache.get(where) if self.cache is not None and u is None else None
        if item is None and data is None:
            return self._bad.setdefault(where, BadSample(CUT_OFF))
        return item

    def _uniforms(self, group: Group) -> np.ndarray | None:
        """(B, num_random) random numbers of the global batch."""
        if self.num_random == 0:
            return None
        return self.places.plans[group.segment].randoms(group.number, self.num_random)


def decode_chunk(assembler: Assembler, chunk: Chunk, rank: int, world: int) -> Iterator[pa.Table]:
    """What a decoding task emits: one row of `DECODED` per batch of the chunk."""
    for table in read_chunk(assembler.places, chunk, rank, world):
        for group in Group.all_of(table):
            yield to_table(assembler.batch(group))


def to_table(decoded: Decoded) -> pa.Table:
    """One row of `DECODED`."""
    x, mask = decoded.x, decoded.mask
    values: dict[str, object] = {
        "segment": decoded.segment,
        "batches": [decoded.number],
        "rows": decoded.rows,
        "bad_rows": [row for row, _ in decoded.bad],
        "bad_errors": [error for _, error in decoded.bad],
        "failure": decoded.failure,
        "x_shape": None if x is None else list(x.shape),
        "x_dtype": None if x is None else str(x.dtype).removeprefix("torch."),
        "mask_shape": None if mask is None else list(mask.shape),
    }
    columns = [
        _bytes(x if field.name == "x" else mask)
        if field.name in ("x", "mask")
        else pa.array([values[field.name]], field.type)
        for field in DECODED
    ]
    return pa.table(columns, schema=DECODED)


def from_table(table: pa.Table, i: int) -> Decoded:
    """Row i of a table of `DECODED`; the tensors are copies, free of the object store."""
    value = {
        name: table.column(name)[i].as_py() for name in DECODED.names if name not in ("x", "mask")
    }
    x = mask = None
    if value["x_shape"] is not None:
        x = _tensor(table.column("x")[i], value["x_shape"], getattr(torch, value["x_dtype"]))
    if value["mask_shape"] is not None:
        mask = _tensor(table.column("mask")[i], value["mask_shape"], torch.bool)
    bad = list(zip(value["bad_rows"], value["bad_errors"], strict=True))
    [number] = value["batches"]
    return Decoded(value["segment"], number, value["rows"], x, mask, bad, value["failure"])


def _bytes(tensor: Tensor | None) -> pa.Array:
    if tensor is None:
        return pa.nulls(1, pa.large_binary())
    data = pa.py_buffer(tensor.contiguous().numpy())
    ends = pa.py_buffer(np.array([0, data.size], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])


def _tensor(value: pa.Scalar, shape: list[int], dtype: torch.dtype) -> Tensor:
    out = torch.empty(shape, dtype=dtype)
    if out.nelement():
        flat = np.frombuffer(value.as_buffer(), dtype=np.uint8)
        out.view(-1).view(torch.uint8).numpy()[:] = flat
    return out
