"""What a frozen model is run over: shards, a folder or table of files and texts, Parquet columns.

All are the same to the actors that read them: so many samples in a fixed order, of which any
stretch can be read on any node that sees the files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.files import local_path
from pipelines.sources import cells
from pipelines.sources.reading import COLUMNS, Reading, read_source, suffix_of
from pipelines.streams import gaps, layout
from pipelines.streams.assemble import CUT_OFF
from pipelines.streams.shards import Index, load_index, read_rows
from uml_core.addresses import name_of
from uml_core.errors import UserError

CONTENT = ("input", "bytes", "data", "content", "features", "embedding", "vector", "series")
NAMES = ("key", "id", "file")  # columns that name the rows
WINDOW = 64  # samples read at once


@dataclass(frozen=True)
class Raw:
    """One sample before decoding.

    url     where it lies, for lists of bad samples
    data    bytes of a file, a text, or numbers; None where it cannot be read, for `error`
    suffix  of the file, lower case; label: class name or number where it is known
    """

    key: str
    url: str
    data: Any
    suffix: str = ""
    label: str | int | None = None
    source: str | None = None
    error: str = ""


class Inputs(Protocol):
    """So many samples of one kind, in a fixed order."""

    @property
    def kind(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Changes with the samples, their order and what they are called; not with their place."""
        ...

    def __len__(self) -> int: ...

    def read(self, first: int, stop: int) -> Iterator[Raw]:
        """Samples first..stop-1."""
        ...


@dataclass(frozen=True)
class ShardInputs:
    """The samples of shards; labels are numbers."""

    index: Index
    kind: str

    @property
    def fingerprint(self) -> str:
        return _digest([self.index.fingerprint, *(self.index.classes or ())])

    def __len__(self) -> int:
        return len(self.index)

    def read(self, first: int, stop: int) -> Iterator[Raw]:
        index = self.index
        for start in range(first, stop, WINDOW):
            rows = range(start, min(start + WINDOW, stop))
            for row, data in zip(rows, read_rows(index, rows), strict=True):
                whole = len(data) == index.sizes[row]
                label = int(index.labels[row])
                yield Raw(
                    index.keys[row],
                    index.origin(row)[0],
                    data if whole else None,
                    index.suffixes[row],
                    label if label >= 0 else None,
                    index.sources[row],
                    "" if whole else CUT_OFF,
                )


@dataclass(frozen=True)
class FileInputs:
    """Files, and texts that stand in a table: (name, path or None, text or None)."""

    items: tuple[tuple[str, str | None, str | None], ...]
    kind: str

    @property
    def fingerprint(self) -> str:
        return _digest(
            part
            for name, path, text in self.items
            for part in (name, text or "", "" if path is None else _stamp(path))
        )

    def __len__(self) -> int:
        return len(self.items)

    def read(self, first: int, stop: int) -> Iterator[Raw]:
        for name, path, text in self.items[first:stop]:
            if path is None:
                yield Raw(name, name, text or "", "txt")
                continue
            try:
                yield Raw(name, path, Path(path).read_bytes(), suffix_of(path))
            except OSError as error:
                yield Raw(name, path, None, error=f"it cannot be read: {error.strerror}")


@dataclass(frozen=True)
class ParquetInputs:
    """One column of Parquet files; a column `key`, `id` or `file` names the rows if there is one.

    groups  (path, row group, rows) in order
    """

    groups: tuple[tuple[str, int, int], ...]
    column: str
    names: str | None
    kind: str

    @property
    def fingerprint(self) -> str:
        paths = dict.fromkeys(path for path, _, _ in self.groups)
        files = [f"{os.path.basename(path)} {_stamp(path)}" for path in paths]
        return _digest([self.column, self.names or "", *files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([0, *(rows for _, _, rows in self.groups)])

    def read(self, first: int, stop: int) -> Iterator[Raw]:
        columns = [self.column, *([self.names] if self.names else [])]
        for (path, group, rows), start in zip(self.groups, self._ends[:-1], strict=True):
            low, high = max(first, start) - start, min(stop, start + rows) - start
            if low >= high:
                continue
            file = pq.ParquetFile(path)
            table = file.read_row_group(group, columns).slice(low, high - low)
            field = file.schema_arrow.field(self.column)
            values = cells.plain(table.column(self.column)).to_pylist()
            names = cells.plain(table.column(self.names)).to_pylist() if self.names else values
            for row, (value, name) in enumerate(zip(values, names, strict=True), int(low)):
                key = f"row {start + row}" if self.names is None or name is None else _name(name)
                yield _raw(key, path, value, self.kind, field)


def _name(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _raw(key: str, path: str, value: Any, kind: str, field: pa.Field) -> Raw:
    """A cell as a sample; one that holds nothing of use says why."""
    error = ""
    if isinstance(value, dict):  # a whole file: {"bytes", "path"}
        value = value.get("bytes")
        error = "" if value is not None else "the cell holds the path of a file, not its bytes"
    elif value is None:
        error = "the cell is empty"
    try:
        if kind == "text" and isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, list):
            value = cells.numbers(value, cells.tensor_shape(field))
    except ValueError as wrong:
        if isinstance(wrong, UnicodeDecodeError):
            wrong = ValueError("the cell is no UTF-8 text")
        value, error = None, f"the cell cannot be used: {wrong}"
    return Raw(key, path, value, error=error)


def open_inputs(source: str, kind: str, member: str | None = None) -> Inputs:
    """The samples of a kind that a person points at.

    source: a folder with shards (all splits of the one modality of this kind), a pattern or url of
    shards, a Parquet file, a folder of Parquet files, a folder of files, or a table of texts or
    files (see `uml prepare`). member: the payload's suffix, where samples of shards hold several.

    Raises UserError where nothing of the kind is there.
    """
    if name_of(source).lower().endswith(".tar") and not Path(source).is_dir():
        return ShardInputs(load_index(source, ".", kind, member), kind)
    path = local_path(source, "SOURCE (shards of a url end in .tar)")
    if path.is_dir() and any(path.glob("*.tar")):
        return ShardInputs(_shards(path, source, kind, member), kind)
    parquet = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if parquet and all(p.suffix == ".parquet" and p.is_file() for p in parquet):
        found = _columns(parquet, kind)
        if found is not None:
            return found
    listing = read_source(path, Reading(kind=kind, unlabelled=True))
    if listing.bad:
        problems = [f"{name}: {cause}" for name, cause in listing.bad[:20]]
        raise UserError(problems)
    return FileInputs(tuple((i.name, _absolute(i.path), i.text) for i in listing.items), kind)


def _shards(path: Path, source: str, kind: str, member: str | None) -> Index:
    paths = [str(p.absolute()) for p in sorted(path.glob("*.tar"))]
    by_modality: dict[str, list[str]] = {}
    for (modality, _), urls in layout.arrange(paths, lambda _: kind).groups.items():
        by_modality.setdefault(modality, []).extend(urls)
    fitting = [name for name, urls in by_modality.items() if _holds(urls[0], kind, member)]
    if len(fitting) != 1:
        found = " and ".join(fitting) or "none of them"
        example = os.path.basename(by_modality[fitting[0]][-1]) if fitting else "mine-*.tar"
        raise UserError(
            f"{source} holds shards of {', '.join(by_modality)}; of kind {kind}: {found}. Name "
            f"those you mean, such as '{source}/{example}'"
        )
    urls = sorted(by_modality[fitting[0]])
    return load_index(urls, ".", kind, member, gaps.alike(urls))


def _holds(url: str, kind: str, member: str | None) -> bool:
    """Whether a shard holds samples of a kind."""
    try:
        load_index(url, ".", kind, member)
    except UserError:
        return False
    return True


def _columns(paths: Sequence[Path], kind: str) -> Inputs | None:
    """The column of Parquet files that holds samples of a kind; None: it may hold names of files.

    Media are binary, or structs of bytes and path; texts strings; features lists of numbers.
    Raises UserError where nothing in them can be that.
    """
    files = [pq.ParquetFile(p) for p in paths]
    schema = files[0].schema_arrow
    columns = [f for f in schema if f.name not in NAMES]
    fitting: list[str] = []
    for fits in _FITS.get(kind, (cells.is_numbers,)):
        fitting = fitting or [f.name for f in columns if fits(f.type)]
    if not fitting:
        named = [f for f in schema if f.name.strip().lower() in COLUMNS["file"]]
        if any(cells.is_text(f.type) or cells.is_binary(f.type) for f in named):
            return None
        found = ", ".join(f"{f.name} ({cells.what(f.type)})" for f in schema)
        raise UserError(f"{paths[0]}: no column holds {_WANTED.get(kind, _NUMBERS)}; found {found}")
    usual = (*CONTENT, *(COLUMNS["text"] if kind == "text" else ()), kind)
    named = [name for one in usual for name in fitting if name.lower() == one]
    if not named and len(fitting) > 1:
        raise UserError(
            f"{paths[0]}: its columns {', '.join(fitting)} can all be {kind}: call the right one "
            "'input'"
        )
    column = (named or fitting)[0]
    wanted = cells.plain_type(schema.field(column).type)
    for path, file in zip(paths, files, strict=True):
        theirs = file.schema_arrow
        if column not in theirs.names or not _alike(theirs.field(column).type, wanted):
            raise UserError(f"{path}: its column '{column}' is not as in {paths[0]} ({wanted})")
    groups = tuple(
        (str(path.resolve()), g, file.metadata.row_group(g).num_rows)
        for path, file in zip(paths, files, strict=True)
        for g in range(file.metadata.num_row_groups)
    )
    keys = [name for name in NAMES if name in schema.names]
    keys = [name for name in keys if all(name in file.schema_arrow.names for file in files)]
    return ParquetInputs(groups, column, keys[0] if keys else None, kind)


_MEDIA = (lambda kind: cells.is_binary(kind) or cells.holds_files(kind),)
_FITS = {"text": (cells.is_text, cells.is_binary), "image": _MEDIA, "audio": _MEDIA}
_NUMBERS = "lists of numbers"
_WANTED = {
    "text": "texts (one string in each cell)",
    **dict.fromkeys(
        ("image", "audio"), "the bytes of files, nor names of files (usual name: file)"
    ),
}


def _alike(one: pa.DataType, other: pa.DataType) -> bool:
    checks = (cells.is_text, cells.is_binary, cells.holds_files, cells.is_numbers)
    return [check(one) for check in checks] == [check(other) for check in checks]


def _stamp(path: str) -> str:
    """Changes with a file's content; a media file is not read once more for a hash."""
    try:
        found = os.stat(path)
    except OSError:
        return "gone"
    return f"{found.st_size} {found.st_mtime_ns}"


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())
