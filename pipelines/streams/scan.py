"""One pass over a tar: what is in it, and what of it a stream cannot use.

A tar is read from front to back, nothing in it is trusted and bad content never ends the scan:
what cannot be used becomes a `Problem`. The result is an `Entry` per sample with the place of the
payload's bytes, so that single samples can be read by range later. Names stay names, they never
become paths.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from uml_core.errors import RunError
from uml_core.plain_text import normalised

MAX_MEMBERS = 4_000_000  # per archive
MAX_MEMBER_BYTES = 256 << 20  # one payload
MAX_LABEL_BYTES = 64 << 10  # one .cls
MAX_JSON_BYTES = 16 << 20  # one .json
MAX_LABEL = 2**31 - 1
MAX_HEADER_BYTES = 1 << 20  # long names and pax records, which `tarfile` reads into memory
MAX_SKIP_BYTES = 64 << 30  # a member larger than this is not passed over
MAX_GLOBALS = 64  # pax records for the whole archive; `tarfile` copies them for every member
MAX_NAME = 4096  # characters of a member's name, as of a path
MAX_SOURCE = 4096  # characters of a source id
MAX_TEXT_BYTES = 1 << 20  # a longer text is compared as it is
MAX_PROBLEMS = 1000  # kept per shard; the rest is counted
# As webdataset: the key is the path up to the first dot of the last component.
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """Something wrong in a shard; key is None for the shard itself.

    lost  whether it costs the sample: then a run leaves it out and lists it in quarantine.jsonl
    """

    key: str | None
    cause: str
    lost: bool = True


@dataclass
class Entry:
    """One sample of a shard: its key, its label and where its payload's bytes lie."""

    key: str
    label: int  # -1 = unlabelled
    offset: int
    size: int
    suffix: str
    hash: str
    source: str | None


def scan_tar(
    stream: BinaryIO, kind_suffixes: Sequence[str], *, text: bool | None = None
) -> tuple[list[Entry], list[Problem]]:
    """Entries and problems of one tar, read sequentially from `stream` up to its end.

    kind_suffixes  payload suffixes of the modality kind, lower case, without the dot
    text           hash payloads as text (normalised); default: when the suffix is txt
    """
    scan = _Scan(tuple(kind_suffixes), text)
    scan.read(stream)
    return scan.result()


def walk_tar(
    stream: BinaryIO, visit: Callable[[tarfile.TarFile, tarfile.TarInfo], bool | None]
) -> str | None:
    """Calls `visit(tar, member)` for every member from front to back, until it returns True.

    Returns why the rest of the tar cannot be read, or None. Whatever the tar claims, neither
    memory nor time grow beyond its own size.
    """
    try:
        with tarfile.open(
            fileobj=stream,
            mode="r|",
            bufsize=1 << 20,
            tarinfo=_Member,
            errors="surrogateescape",
        ) as tar:
            for count, member in enumerate(tar):
                if count >= MAX_MEMBERS:
                    return f"more than {MAX_MEMBERS} members; the rest is left out"
                if member.size > MAX_SKIP_BYTES:
                    return f"a member claims {member.size} bytes; the scan ends"
                if len(tar.pax_headers) > MAX_GLOBALS:
                    return f"it has more than {MAX_GLOBALS} records for all members; the scan ends"
                if visit(tar, member):
                    return None
                tar.members.clear()  # type: ignore[attr-defined]  # else all headers stay
            stopped_by = getattr(tar, "stopped_by", None)
    except RunError:
        raise  # the storage behind the stream has failed
    except Exception as error:  # tarfile's parsers raise IndexError, struct.error and others too
        return f"not a whole tar: {error}"
    if isinstance(stopped_by, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
        return None
    cause = f" ({stopped_by})" if stopped_by is not None and str(stopped_by) else ""
    return f"the tar has no proper end: cut off or damaged{cause}"


def content_hash(data: bytes, *, text: bool = False) -> str:
    """16 hex characters of a payload's content: equal for what a model would see as equal.

    Text is compared after NFKC, case folding and collapsing white space.
    """
    if text and len(data) <= MAX_TEXT_BYTES:
        plain = normalised(data.decode("utf-8", "replace"))
        data = " ".join(plain.split()).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@dataclass
class _Parts:
    """What has been seen of one key."""

    payload: Entry | None = None
    rank: int = 0  # of the payload's suffix in the kind's list
    labels: dict[str, int] = field(default_factory=dict)
    source: str | None = None
    members: set[str] = field(default_factory=set)
    bad: bool = False


class _Scan:
    """State of one pass over a tar."""

    def __init__(self, suffixes: tuple[str, ...], text: bool | None) -> None:
        self.suffixes, self.text = suffixes, text
        self.parts: dict[str, _Parts] = {}
        self.last: str | None = None
        self.problems: list[Problem] = []
        self.dropped, self.dropped_lost = 0, False

    def read(self, stream: BinaryIO) -> None:
        cause = walk_tar(stream, self.member)
        if cause is not None:
            self.problem(None, cause)

    def member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        if len(member.name) > MAX_NAME:
            shown = f"{printable(member.name[:60])}..."
            self.problem(shown, f"a name of {len(member.name)} characters; left out")
            return
        match = _NAME.match(member.name)
        if match is None or not member.isreg():
            if not member.isdir():
                cause = "not a file named <key>.<suffix>; left out"
                self.problem(printable(member.name), cause, lost=False)
            return
        key, suffix = printable(match[1]), match[2].lower()
        parts = self.parts.get(key)
        if parts is None:
            parts = self.parts[key] = _Parts()
        elif self.last != key:
            cause = "its members are not next to each other; other readers refuse this"
            self.problem(key, cause, lost=False)
        self.last = key
        if suffix in parts.members:
            cause = f"has two .{printable(suffix)} members; the first is used"
            self.problem(key, cause, lost=False)
            return
        parts.members.add(suffix)
        if suffix in self.suffixes:
            self.payload(tar, member, key, suffix, parts)
        elif suffix in ("cls", "json"):
            self.annotation(tar, member, key, suffix, parts)

    def payload(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, suffix: str, parts: _Parts
    ) -> None:
        rank = self.suffixes.index(suffix)
        if parts.payload is not None:
            cause = f"has .{parts.payload.suffix} and .{suffix}; one is used"
            self.problem(key, cause, lost=False)
            if rank > parts.rank:
                return
        if member.size > MAX_MEMBER_BYTES:
            parts.bad = True
            self.problem(key, f".{suffix} has {member.size} bytes, more than {MAX_MEMBER_BYTES}")
            return
        if member.issparse():
            parts.bad = True
            self.problem(key, f".{suffix} is stored as a sparse file")
            return
        data = _content(tar, member)
        if not data:
            parts.bad = True
            self.problem(key, f".{suffix} is empty")
            return
        text = self.text if self.text is not None else suffix == "txt"
        digest = content_hash(data, text=text)
        parts.payload = Entry(key, -1, member.offset_data, member.size, suffix, digest, None)
        parts.rank = rank

    def annotation(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, suffix: str, parts: _Parts
    ) -> None:
        limit = MAX_LABEL_BYTES if suffix == "cls" else MAX_JSON_BYTES
        if member.size > limit:
            parts.bad = True
            self.problem(key, f".{suffix} has {member.size} bytes, more than {limit}")
            return
        data = _content(tar, member)
        try:
            if suffix == "cls":
                if not re.fullmatch(rb"\s*\d{1,10}\s*", data):
                    raise ValueError("not a whole number from 0 on")
                label: Any = int(data)
            else:
                found = json.loads(data)
                if not isinstance(found, dict):
                    raise ValueError("not an object")
                parts.source = _source(found.get("source", found.get("src")))
                label = found.get("label")
            if label is not None:
                parts.labels[suffix] = _label(label)
        except (ValueError, RecursionError) as error:
            parts.bad = True
            self.problem(key, f".{suffix} cannot be used: {str(error)[:200]}")

    def result(self) -> tuple[list[Entry], list[Problem]]:
        entries = []
        for key, parts in self.parts.items():
            if parts.bad:
                continue
            if parts.payload is None:
                self.problem(key, "has no member with suffix " + " ".join(self.suffixes))
                continue
            if len(set(parts.labels.values())) > 1:
                self.problem(key, f".cls says {parts.labels['cls']}, .json {parts.labels['json']}")
                continue
            parts.payload.label = next(iter(parts.labels.values()), -1)
            parts.payload.source = parts.source
            entries.append(parts.payload)
        if self.dropped:
            cause = f"{self.dropped} more problems are not listed"
            self.problems.append(Problem(None, cause, self.dropped_lost))
        return entries, self.problems

    def problem(self, key: str | None, cause: str, *, lost: bool = True) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(key, cause, lost))
        else:
            self.dropped += 1
            self.dropped_lost |= lost


class _Member(tarfile.TarInfo):
    """Remembers why the archive ended: `tarfile` takes a damaged header for the end."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:  # type: ignore[override]
        info = super().frombuf(buf, encoding, errors)
        if info.size > MAX_HEADER_BYTES and info.type in _EXTENDED:
            raise tarfile.HeaderError(f"a header claims {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            tar.stopped_by = error  # type: ignore[attr-defined]
            raise


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _label(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LABEL:
        raise ValueError("the label is not a whole number from 0 on")
    return value


def _source(value: Any) -> str | None:
    """A source id: a name or a number. Anything else is none, it costs no sample."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return printable(str(value))[:MAX_SOURCE] or None


def printable(name: str) -> str:
    """The name with what no terminal and no file should get written as escapes.

    These are bytes that are not UTF-8 and control characters.
    """
    if name.isprintable():
        return name
    return "".join(_escaped(c) if unicodedata.category(c) in _NEVER else c for c in name)


_NEVER = ("Cc", "Cs", "Zl", "Zp")  # controls, surrogates, line and paragraph separators


def _escaped(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # how Python decodes a byte that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()
