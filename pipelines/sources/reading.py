"""What a person has -> a list of samples: folders of classes, tables of texts, tables of files.

Only names and tables are read here, never the content of a media file, so that a million files
are listed at once and read in parallel afterwards.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.sources.folders import SPLITS, normal, places
from pipelines.sources.tables import Frame, read_frame, shown
from uml_core.errors import UserError, near
from uml_core.modalities import KINDS

TABLES = (".csv", ".tsv", ".parquet")
# Names a column may have, the likeliest first; compared in lower case.
COLUMNS = {
    "text": ("text", "caption", "sentence", "description", "transcript", "utterance"),
    "label": ("label", "class", "class_name", "category", "target"),
    "file": ("file", "path", "filename", "file_name", "filepath", "file_path", "image", "audio"),
    "id": ("id", "source", "src", "key", "uid"),
    "split": ("split", "set", "subset", "fold"),
}


@dataclass(frozen=True)
class Item:
    """One sample of a source: a file, or a text that stands in a table.

    name    how messages call it: the file's path below the source, or `table row 7` (the line
            with the columns' names is row 1, as spreadsheets count)
    source  where the content comes from, for leak checks: path without suffix, or the table's id
    label   class name, None = unlabelled; split: train, val, test or None = not said
    """

    name: str
    label: str | None = None
    source: str | None = None
    split: str | None = None
    path: str | None = None
    text: str | None = None

    @property
    def suffix(self) -> str:
        return "txt" if self.path is None else suffix_of(self.path)


@dataclass
class Listing:
    """The samples of a source and what a person should know about it.

    bad    (name, cause) of samples that cannot be used; notes: sentences
    """

    kind: str
    items: list[Item] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """How to read a source; None = find out. Columns are those of a table, `files` its folder."""

    kind: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    file_column: str | None = None
    id_column: str | None = None
    files: Path | None = None
    unlabelled: bool = False


def read_source(source: Path, reading: Reading) -> Listing:
    """Lists the samples of a folder or table. Raises UserError when it is not understood."""
    if not source.exists():
        names = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise UserError(f"there is no {source}{near(source.name, names)}")
    if source.is_dir():
        table = _table_in(source)
        if table is None:
            listing = _read_folder(source, reading)
        else:
            listing = _read_table(table, reading, reading.files or source)
    elif source.suffix.lower() in TABLES:
        listing = _read_table(source, reading, reading.files or source.parent)
    else:
        raise UserError(
            f"{source}: a source is a world's name, a folder of class folders, or a table "
            f"({', '.join(TABLES)})"
        )
    if not listing.items and not listing.bad:
        raise UserError(f"{source} holds no sample")
    return listing


def suffix_of(name: str) -> str:
    """The suffix in lower case, without the dot."""
    return os.path.splitext(name)[1].lower().removeprefix(".")


# ---------------------------------------------------------------------------------- folders


def _read_folder(source: Path, reading: Reading) -> Listing:
    """folder/<class>/... or folder/<split>/<class>/...; any files where labels are not wanted."""
    files = list(_walk(source))
    kind, kept, notes = _of_one_kind(files, reading.kind, str(source))
    listing = Listing(kind, notes=notes)
    loose, strange = [], Counter[str]()
    for name, (part, label) in places(kept, listing.notes).items():
        if part == "":
            strange[name.split("/")[0]] += 1
        elif label is None and not reading.unlabelled:
            loose.append(name)
        else:
            named = None if reading.unlabelled else label
            item = Item(name, named, _stem(name), part, path=str(source / name))
            listing.items.append(item)
    if loose:
        raise UserError(
            f"{source}: {_count(len(loose), 'file')} outside a class folder, e.g. {loose[0]}: sort "
            f"them into {source}/<class>/, give a table with their labels, or use --unlabelled"
        )
    for top, count in strange.items():
        listing.notes.append(f"{top}: {_count(count, 'file')} left out, beside the split folders")
    return listing


def _walk(folder: Path) -> Iterator[str]:
    """Paths of the visible files below a folder, relative to it, sorted."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry.name
        elif entry.is_dir():  # a class folder may be a link, what lies below it may not: no loops
            for root, folders, names in os.walk(entry.path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                inner = os.path.relpath(root, folder).replace(os.sep, "/")
                yield from (f"{inner}/{name}" for name in sorted(names) if name[0] != ".")


def _of_one_kind(
    files: Sequence[str], kind: str | None, where: str
) -> tuple[str, list[str], list[str]]:
    """(kind, its files, notes on the others). Raises UserError when the files do not tell it."""
    counts = Counter(suffix_of(name) for name in files)
    if kind is None:
        kind = _kind_of(counts, where)
    wanted = KINDS[kind].suffixes
    kept = [name for name in files if suffix_of(name) in wanted]
    if not kept:
        raise UserError(f"{where}: no {kind} file ({' '.join(wanted)}); found {_suffixes(counts)}")
    others = {suffix: n for suffix, n in counts.items() if suffix not in wanted}
    notes = [f"left out: {_suffixes(others)}"] if others else []
    return kind, kept, notes


def _kind_of(counts: Counter[str], where: str) -> str:
    if not counts:
        raise UserError(f"{where} holds no file")
    fitting = {
        kind: sum(counts[suffix] for suffix in cls.suffixes)
        for kind, cls in KINDS.items()
        if any(counts[suffix] for suffix in cls.suffixes)
    }
    if not fitting:
        known = " ".join(sorted({s for cls in KINDS.values() for s in cls.suffixes}))
        raise UserError(
            f"{where}: no file of a known kind, only {_suffixes(counts)}. Convert them to one of "
            f"{known}"
        )
    best = [kind for kind, count in fitting.items() if count == max(fitting.values())]
    if len(best) > 1:
        raise UserError(
            f"{where}: the files ({_suffixes(counts)}) can be {' or '.join(best)}: give --kind"
        )
    return best[0]


def _suffixes(counts: Counter[str] | dict[str, int]) -> str:
    parts = [f"{n} {'.' + s if s else 'without suffix'}" for s, n in sorted(counts.items())]
    return ", ".join(parts[:6]) + (" ..." if len(parts) > 6 else "")


# ----------------------------------------------------------------------------------- tables


def _table_in(folder: Path) -> Path | None:
    """The table that labels the files of a folder, if it has one at the top."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLES and p.name[0] != ".")
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise UserError(
            f"{folder} holds {len(found)} tables ({names}): give one of them as SOURCE, with "
            f"--files {folder}"
        )
    return found[0] if found else None


def _read_table(table: Path, reading: Reading, files: Path) -> Listing:
    """Rows with a text, or with a file below `files`, and a label."""
    frame = read_frame(table)
    text = _column(frame, table, "text", reading.text_column)
    file = _column(frame, table, "file", reading.file_column)
    label = _column(frame, table, "label", reading.label_column)
    problems = []
    if label is None and not reading.unlabelled:
        problems.append(_no_column(frame, table, "label", "or use --unlabelled"))
    if file is not None and text is None and file in frame.files_inside:
        raise UserError(_inside(table, [file]))
    beside = file if text is not None else None
    if file is not None and text is not None:
        file, text = (None, text) if reading.kind == "text" else (file, None)
    if file is None and text is None:
        if inside := frame.files_inside:
            raise UserError(_inside(table, inside))
        problems.append(_no_column(frame, table, "text", "or --file-column, for a table of files"))
    elif text is not None and reading.kind not in (None, "text"):
        problems.append(_no_column(frame, table, "file", f"for the {reading.kind} files"))
    if problems:
        raise UserError(problems)
    # A text beside a file's name comes from that file, unless the table has ids of its own.
    ids = _column(frame, table, "id", reading.id_column) or beside
    rows = _Rows(
        table.name,
        frame.cells(str(file), "file") if text is None else frame.cells(text, "text"),
        None if reading.unlabelled else frame.cells(str(label), "label"),
        None if ids is None else frame.cells(ids, "id"),
        _splits(frame),
    )
    listing = rows.texts() if text is not None else rows.files(files, reading.kind, table)
    listing.notes += frame.notes
    return listing


def _column(frame: Frame, table: Path, role: str, wanted: str | None) -> str | None:
    """The column of a role: the one asked for, else the first of the usual names, else None."""
    names = frame.names
    if wanted is not None:
        if wanted not in names:
            raise UserError(
                f"{table} has no column '{wanted}'{near(wanted, names)}; its columns are "
                f"{', '.join(names)}"
            )
        return wanted
    lower = {name.strip().lower(): name for name in names}
    return next((lower[usual] for usual in COLUMNS[role] if usual in lower), None)


def _no_column(frame: Frame, table: Path, role: str, otherwise: str) -> str:
    names = frame.names
    hints = (near(name.strip().lower(), COLUMNS[role]) for name in names)
    close = [f"'{name}'" for name, hint in zip(names, hints, strict=True) if hint]
    hint = f"perhaps {' or '.join(close)}? " if close else ""
    return (
        f"{table}: no column for the {role} among {', '.join(names)} ({hint}usual names: "
        f"{', '.join(COLUMNS[role][:4])}): give --{role}-column, {otherwise}"
    )


def _inside(table: Path, names: Sequence[str]) -> str:
    return (
        f"{table}: column {shown(names)} holds whole files in its cells, as data sets on the Hub "
        "do. Tables of texts or of names of files are read: write the cells to files, such as "
        "<class>/<number>.png, and give that folder"
    )


def _splits(frame: Frame) -> list[str] | None:
    """The column that names splits, only where every one of its cells does."""
    for name in frame.names:
        if name.strip().lower() in COLUMNS["split"] and frame.names.count(name) == 1:
            try:
                values = [value.strip().lower() for value in frame.cells(name, "split")]
            except UserError:
                continue
            if set(values) <= set(SPLITS):
                return values
    return None


@dataclass(frozen=True)
class _Rows:
    """The columns of a table that matter; `content` holds texts or file names."""

    table: str
    content: Sequence[Any]
    labels: Iterable[str] | None
    ids: Sequence[str] | None
    splits: Sequence[str] | None

    def texts(self) -> Listing:
        listing = Listing("text")
        for number, cell, label in self._labelled(listing):
            name = f"{self.table} row {number + 2}"
            several = isinstance(cell, list)
            for place, text in enumerate(cell if several else [cell], 1):
                title = f"{name}, text {place}" if several else name
                if text.strip():
                    source = _stem(self.ids[number]) if self.ids else None
                    item = Item(title, label, source, self._split(number), text=text)
                    listing.items.append(item)
                else:
                    listing.bad.append((title, "the text is empty"))
            if several and not cell:
                listing.bad.append((name, "the text is empty"))
        return listing

    def files(self, folder: Path, kind: str | None, table: Path) -> Listing:
        names = [str(name).strip() for name in self.content]
        paths = [_find(folder, name, kind) for name in names]
        existing = [str(path) for path in paths if path is not None]
        if not existing:
            raise UserError(
                f"{table}: none of its files lies in {folder}, e.g. {names[0]}"
                f"{_otherwise(folder, names[0])}: give the folder with --files"
            )
        kind, kept, notes = _of_one_kind(existing, kind, str(table))
        usable, listing = set(kept), Listing(kind, notes=notes)
        for number, name, label in self._labelled(listing):
            path = paths[number]
            if path is None:
                listing.bad.append((f"{self.table} row {number + 2}", _no_file(folder, name)))
            elif str(path) in usable:
                source = self.ids[number] if self.ids else name.strip()
                item = Item(name.strip(), label, _stem(source), self._split(number), str(path))
                listing.items.append(item)
        return listing

    def _labelled(self, listing: Listing) -> Iterator[tuple[int, Any, str | None]]:
        """(row, content, label) of rows that have a label, where labels are wanted."""
        content = self.content
        if self.labels is None:
            yield from ((i, value, None) for i, value in enumerate(content))
            return
        for i, (value, label) in enumerate(zip(content, self.labels, strict=True)):
            if normal(label):
                yield i, value, normal(label)
            else:
                listing.bad.append((f"{self.table} row {i + 2}", "it has no label"))

    def _split(self, number: int) -> str | None:
        return SPLITS[self.splits[number]] if self.splits else None


def _find(folder: Path, name: str, kind: str | None) -> Path | None:
    """The file of that name; where the name has no suffix, the only file that fits."""
    for spelled in dict.fromkeys((name, name.replace("\\", "/"))):  # tables made on Windows
        if name and (folder / spelled).is_file():
            return folder / spelled
    name = name.replace("\\", "/")
    if not name or suffix_of(name):
        return None
    known = KINDS[kind].suffixes if kind else [s for c in KINDS.values() for s in c.suffixes]
    fitting = {folder / f"{name}.{s}" for s in known if (folder / f"{name}.{s}").is_file()}
    return fitting.pop() if len(fitting) == 1 else None


def _no_file(folder: Path, name: str) -> str:
    return f"there is no file {name.strip()}{_otherwise(folder, name.strip())}"


def _otherwise(folder: Path, name: str) -> str:
    """A hint where a file differs from the name in upper and lower case only."""
    found, path = [], folder
    for part in name.replace("\\", "/").split("/"):
        alike = [n for n in _listed(str(path)) if n.casefold() == part.casefold()]
        if not alike:
            return ""
        found.append(part if part in alike else alike[0])
        path = path / found[-1]
    return f" (it is called {'/'.join(found)}: upper and lower case differ)"


@lru_cache(maxsize=64)
def _listed(folder: str) -> tuple[str, ...]:
    return tuple(os.listdir(folder)) if os.path.isdir(folder) else ()


# ------------------------------------------------------------------------------------ names


def _stem(name: str) -> str:
    """A path or id without its suffix, with forward slashes."""
    path = str(name).strip().replace("\\", "/").removeprefix("./")
    root, suffix = os.path.splitext(path)
    known = {s for cls in KINDS.values() for s in cls.suffixes}
    return root if suffix[1:].lower() in known else path


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
