"""Tables of texts or of files: CSV, TSV and Parquet, cell by cell as they were meant.

A table that can be read in two ways is refused with the line, never guessed at.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources import cells
from uml_core.errors import UserError

csv.field_size_limit(1 << 24)  # characters of one cell; the kinds have caps of their own
SHOWN = 5


@dataclass
class Frame:
    """A table with the names of its columns; cells are read by role, as text.

    rows  of a CSV, each as long as `names`; table: of a Parquet file; notes: sentences
    """

    path: Path
    names: list[str]
    rows: list[list[str]] | None = None
    table: pa.Table | None = None
    notes: list[str] = field(default_factory=list)

    def cells(self, name: str, role: cells.Role) -> list[Any]:
        """The cells of a column as strings, blank where empty; as texts also lists of strings.

        Raises UserError where the column holds something else, or where there are two of it.
        """
        if self.names.count(name) > 1:
            raise UserError(f"{self.path} has {self.names.count(name)} columns called '{name}'")
        at = self.names.index(name)
        if self.rows is not None:
            return [row[at] for row in self.rows]
        assert self.table is not None
        try:
            return cells.as_names(self.table.column(at), role)
        except ValueError as error:
            raise UserError(f"{self.path}: column '{name}' cannot be the {role}: {error}") from None

    @property
    def files_inside(self) -> list[str]:
        """Columns whose cells are whole files."""
        if self.table is None:
            return []
        schema = self.table.schema
        return [f.name for f in schema if cells.holds_files(f.type) or cells.is_binary(f.type)]


def read_frame(path: Path) -> Frame:
    """Raises UserError for what is not a table."""
    try:
        frame = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's own errors are ValueErrors
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as a table: {str(error).strip()}") from error
    if not (frame.rows if frame.table is None else frame.table.num_rows):
        raise UserError(f"{path} has no row")
    return frame


def not_utf8(path: Path, data: bytes, error: UnicodeDecodeError) -> UserError:
    """What to say of a text file in another encoding."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        seems = "UTF-16"
    elif b"\0" in data[:1000]:
        seems = "UTF-16, or no text"
    else:
        seems = "Windows-1252 or Latin-1"
    return UserError(
        f"{path} is not UTF-8 ({error.reason} at byte {error.start}; it seems to be {seems}): save "
        "it as UTF-8"
    )


def _parquet(path: Path) -> Frame:
    table = pq.read_table(path, partitioning=None)
    return Frame(path, list(table.column_names), table=table)


def _csv(path: Path) -> Frame:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, data, error) from error
    lines = text.splitlines(keepends=True) if "\n" not in text else _lines(text)
    start = 1
    separator = None
    if lines and lines[0].lower().startswith("sep=") and len(lines[0].strip()) == 5:
        separator, lines, start = lines[0][4], lines[1:], 2  # a line that is Excel's alone
    head = next((line for line in lines if line.strip()), None)
    if head is None:
        raise UserError(f"{path} cannot be read as a table: it is empty")
    separator = separator or max(",;\t", key=head.count)
    notes: list[str] = []
    rows = list(_rows(path, lines, separator, start, notes))
    names = [name.strip() for name in rows[0][1]]
    width, body = len(names), []
    for number, row in rows[1:]:
        if any(cell.strip() for cell in row[width:]):
            raise UserError(
                f"{path} cannot be read as a table: line {number} has {len(row)} cells, more cells "
                f"than its first line names columns ({width})"
            )
        body.append((row + [""] * width)[:width])
    return Frame(path, names, body, notes=notes)


def _lines(text: str) -> list[str]:
    """Lines with their ends; other marks that Unicode calls a line's end are part of a cell."""
    return [line + "\n" for line in text.replace("\r\n", "\n").split("\n")]


def _rows(
    path: Path, lines: Sequence[str], separator: str, start: int, notes: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row, the names first.

    A cell may begin with a quote that is no quoting; then everything up to the next quote would
    become one cell. Where no cell of the table is quoted, quotes are taken as they stand.
    """
    quoted, doubt = _quoted(lines, separator, start)
    if doubt is None:
        yield from quoted
        return
    plain = [(start + i, _cells(line, separator)) for i, line in enumerate(lines) if line.strip()]
    whole = any(len(c) > 1 and c[0] == c[-1] == '"' for _, row in plain for c in row)
    if whole or len({len(row) for _, row in plain}) > 1:
        raise UserError(
            f"{path}: line {doubt}: a cell begins with a quote that is not closed in it. Write "
            'such a cell as """so"", and on": in quotes, its own quotes doubled'
        )
    notes.append(f"quotes are taken as they stand, for line {doubt} has one that is not closed")
    yield from plain


def _quoted(
    lines: Sequence[str], separator: str, start: int
) -> tuple[list[tuple[int, list[str]]], int | None]:
    """Rows by the rules of quoting, and the line at which they cannot be what was meant."""
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(lines, delimiter=separator, strict=True)
    first, width = 0, None
    while True:
        first = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return rows, None
        except csv.Error:
            return rows, start + _opening(lines, first)
        if not row:
            continue
        width = width or len(row)
        parts = lines[first : reader.line_num]
        # A cell of several lines, each of which would be a row by itself.
        if len(parts) > 1 and all(len(_cells(p, separator)) == width for p in parts) and width > 1:
            return rows, start + first
        rows.append((start + first, row))


def _opening(lines: Sequence[str], first: int) -> int:
    """The first line at or after `first` that holds an odd number of quotes."""
    return next((i for i in range(first, len(lines)) if lines[i].count('"') % 2), first)


def _cells(line: str, separator: str) -> list[str]:
    return line.rstrip("\r\n").split(separator)


def shown(names: Iterable[str]) -> str:
    """Some names, for a message."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in every[:SHOWN]) + more
