"""One pass over a tar: what is in it, and what of it a stream cannot use.

A tar is read from front to back, nothing in it is trusted and bad content never ends the scan:
what cannot be used becomes a `Problem`. The result is an `Entry` per sample with the place of the
payload's bytes, so that single samples can be read by range later. Names stay names, they never
become paths.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from pipelines.streams import foreign, labels
from pipelines.streams.members import SAMPLES, UNREAD, absence, is_hidden, printable
from uml_core.errors import RunError
from uml_core.plain_text import normalised

MAX_MEMBERS = 4_000_000  # per archive
MAX_MEMBER_BYTES = 256 << 20  # one payload
MAX_LABEL_BYTES = 64 << 10  # one .cls
MAX_JSON_BYTES = 16 << 20  # one .json
MAX_HEADER_BYTES = 1 << 20  # long names and pax records, which `tarfile` reads into memory
MAX_SKIP_BYTES = 64 << 30  # a member larger than this is not passed over
MAX_GLOBALS = 64  # pax records for the whole archive; `tarfile` copies them for every member
MAX_NAME = 4096  # characters of a member's name, as of a path
MAX_SOURCE = 4096  # characters of a source id
MAX_TEXT_BYTES = 1 << 20  # a longer text is compared as it is
MAX_LINKED = 64  # times the archive's own bytes that links within it may stand for
MAX_PROBLEMS = 1000  # kept per shard; the rest is counted
# As webdataset: the key is the path up to the first dot of the last component.
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_LIKE_LABEL = frozenset(["label", "labels", "class", "class_id", "cls", "category", "target", "y"])
_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """Something wrong in a shard; key is None for the shard itself.

    lost  whether it costs the sample: then a run leaves it out and lists it in quarantine.jsonl
    note  nothing is wrong with any sample: a person should know all the same
    """

    key: str | None
    cause: str
    lost: bool = True
    note: bool = False


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
    stream: BinaryIO,
    suffixes: Sequence[str],
    *,
    text: bool | None = None,
    chosen: bool = False,
    classes: Sequence[str] | None = None,
) -> tuple[list[Entry], list[Problem]]:
    """Entries and problems of one tar, read sequentially from `stream` up to its end.

    suffixes  of the payload, lower case, without the dot; two-part ones (input.jpg) are legal
    text      hash payloads as text (normalised); default: when the suffix is txt
    chosen    a person has named these suffixes, the one wanted most first. Otherwise a sample with
              two of them is not used: which of them is meant has to be asked
    classes   names in label order, for labels that are names
    """
    scan = _Scan(tuple(suffixes), text, chosen, classes)
    scan.read(stream)
    return scan.result()


def walk_tar(
    stream: BinaryIO, visit: Callable[[tarfile.TarFile, tarfile.TarInfo], bool | None]
) -> str | None:
    """Calls `visit(tar, member)` for every member from front to back, until it returns True.

    Returns why the rest of the tar cannot be read, or None. Whatever the tar claims, neither
    memory nor time grow beyond its own size.
    """
    head = stream.read(foreign.HEAD_BYTES)
    if (cause := foreign.no_tar(head)) is not None:
        return cause
    try:
        with tarfile.open(
            fileobj=_Rest(head, stream),  # type: ignore[call-overload]
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
            after = _after_the_end(tar.fileobj)  # type: ignore[arg-type]
    except RunError:
        raise  # the storage behind the stream has failed
    except Exception as error:  # tarfile's parsers raise IndexError, struct.error and others too
        return f"not a tar, or not a whole tar: {error}"
    if isinstance(stopped_by, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
        return after
    cause = f" ({stopped_by})" if stopped_by is not None and str(stopped_by) else ""
    return f"the tar has no proper end: cut off or damaged{cause}"


def _after_the_end(stream: BinaryIO) -> str | None:
    """Why what lies behind the end of an archive is lost, None where it is padding or rubbish."""
    while block := stream.read(tarfile.RECORDSIZE):
        for at in range(0, len(block), tarfile.BLOCKSIZE):
            one = block[at : at + tarfile.BLOCKSIZE]
            if one.strip(b"\0"):
                if one[257:262] != b"ustar":
                    return None
                return (
                    "another tar follows behind its end, which no reader sees: join tars with "
                    "`tar --concatenate`, not with cat"
                )
    return None


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
    """What has been seen of one key; by suffix, either the value or why there is none."""

    payloads: dict[str, Entry | str] = field(default_factory=dict)
    labels: dict[str, int | str] = field(default_factory=dict)
    source: str | None = None
    members: set[str] = field(default_factory=set)


class _Scan:
    """State of one pass over a tar."""

    def __init__(
        self,
        suffixes: tuple[str, ...],
        text: bool | None,
        chosen: bool,
        classes: Sequence[str] | None,
    ) -> None:
        self.suffixes, self.text, self.chosen, self.classes = suffixes, text, chosen, classes
        self.bases = {suffix.rpartition(".")[2] for suffix in suffixes}
        self.parts: dict[str, _Parts] = {}
        self.last: str | None = None
        self.problems: list[Problem] = []
        self.dropped, self.dropped_lost = 0, False
        self.hidden, self.num_hidden = "", 0  # the first such name, and how many
        self.misnamed: Counter[str] = Counter()  # fields of .json that may be meant as its label
        self.links: dict[tuple[str, str], str] = {}  # (key, suffix) -> name of what it points at
        self.linked_bytes, self.end = 0, 0

    def read(self, stream: BinaryIO) -> None:
        cause = walk_tar(stream, self.member)
        if cause is not None:
            self.problem(None, cause)

    def member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self.end = member.offset_data + member.size
        if len(member.name) > MAX_NAME:
            shown = f"{printable(member.name[:60])}..."
            self.problem(shown, f"a name of {len(member.name)} characters; left out")
            return
        if is_hidden(member.name):
            if not member.isdir():
                self.num_hidden += 1
                self.hidden = self.hidden or printable(member.name)
            return
        match = _NAME.match(member.name)
        link = member.islnk() or member.issym()
        if match is None or not (member.isreg() or link):
            if not member.isdir():
                cause = "not a file named <key>.<suffix>; left out"
                self.problem(printable(member.name), cause, lost=False, note=True)
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
        if link:
            if suffix in self.suffixes or self.is_annotation(suffix):
                target = member.linkname
                if member.issym():
                    target = posixpath.join(posixpath.dirname(member.name), target)
                self.links[key, suffix] = target
        elif suffix in self.suffixes:
            parts.payloads[suffix] = self.payload(tar, member, key, suffix)
        elif self.is_annotation(suffix):
            parts.labels |= self.annotation(tar, member, suffix, parts)

    def is_annotation(self, suffix: str) -> bool:
        return suffix in ("cls", "json") or suffix.endswith(".cls")

    def payload(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, suffix: str
    ) -> Entry | str:
        """Where the payload lies, or why it cannot be used."""
        if member.size > MAX_MEMBER_BYTES:
            return f".{suffix} has {member.size} bytes, more than {MAX_MEMBER_BYTES}"
        if member.issparse():
            return f".{suffix} is stored as a sparse file: pack without tar's --sparse (-S)"
        data = _content(tar, member)
        if not data:
            return f".{suffix} is empty"
        base = suffix.rpartition(".")[2]
        if (what := foreign.no_payload(data, base)) is not None:
            return f".{suffix}: {what}"
        text = self.text if self.text is not None else base == "txt"
        digest = content_hash(data, text=text)
        return Entry(key, -1, member.offset_data, member.size, base, digest, None)

    def annotation(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, parts: _Parts
    ) -> dict[str, int | str]:
        """suffix -> its label, or why that cannot be used; empty without a label."""
        limit = MAX_JSON_BYTES if suffix == "json" else MAX_LABEL_BYTES
        if member.size > limit:
            return {suffix: f".{suffix} has {member.size} bytes, more than {limit}"}
        data = _content(tar, member)
        try:
            if suffix != "json":
                return {suffix: labels.of_cls(data, self.classes)}
            found = json.loads(data)
            if not isinstance(found, dict):
                return {}  # whole, and without a label: captions, boxes
            parts.source = _source(found.get("source", found.get("src")))
            value = found.get("label")
            if value is None:
                self.misnamed.update(
                    name for name in found if name != "label" and name.casefold() in _LIKE_LABEL
                )
            return {} if value is None else {suffix: labels.of_value(value, self.classes)}
        except (ValueError, RecursionError) as error:
            return {suffix: f".{suffix} cannot be used: {str(error)[:300]}"}

    def follow_links(self) -> None:
        """Gives every link what it points at in this archive; such a file may come after it."""
        while done := [at for at, target in self.links.items() if self.follow(*at, target)]:
            for at in done:
                del self.links[at]
        for (key, suffix), target in self.links.items():
            cause = (
                f".{suffix} is a link to '{printable(target[:200])}', which is no sample's file in "
                "this archive: pack it with tar --dereference --hard-dereference"
            )
            if suffix in self.suffixes:
                self.parts[key].payloads[suffix] = cause
            else:
                self.parts[key].labels[suffix] = cause

    def follow(self, key: str, suffix: str, target: str) -> bool:
        parts, plain = self.parts[key], posixpath.normpath(target)
        for name in (target, plain, f"./{plain}"):  # tar writes the ./ of names or leaves it out
            match = _NAME.match(name)
            there = self.parts.get(printable(match[1])) if match else None
            if match is None or there is None:
                continue
            at = match[2].lower()
            if suffix in self.suffixes and at in there.payloads:
                found = there.payloads[at]
                if isinstance(found, Entry):
                    self.linked_bytes += found.size
                    if self.linked_bytes > MAX_LINKED * self.end:
                        return False
                    found = replace(found, key=key, suffix=suffix.rpartition(".")[2])
                parts.payloads[suffix] = found
                return True
            is_json = suffix == at == "json" and at in there.members
            if suffix not in self.suffixes and (at in there.labels or is_json):
                if (printable(match[1]), at) in self.links:
                    return False  # a link itself, which comes first
                if at in there.labels:
                    parts.labels[suffix] = there.labels[at]
                parts.source = there.source if is_json else parts.source
                return True
        return False

    def result(self) -> tuple[list[Entry], list[Problem]]:
        self.follow_links()
        entries, strangers = [], []
        for key, parts in self.parts.items():
            if not parts.payloads and not parts.labels and self.is_stranger(parts):
                strangers.append(f"{key}.{printable(min(parts.members))}")
                continue
            found = self.chosen_payload(key, parts)
            label = self.label(key, parts) if isinstance(found, Entry) else -1
            if isinstance(found, str) or isinstance(label, str):
                self.problem(key, found if isinstance(found, str) else str(label))
                continue
            found.label, found.source = label, parts.source
            entries.append(found)
        if self.num_hidden:
            what = "hidden member" if self.num_hidden == 1 else "hidden members"
            cause = f"{self.num_hidden} {what} left out, such as {self.hidden}"
            self.problems.append(Problem(None, cause, lost=False, note=True))
        for name, count in sorted(self.misnamed.items()):
            cause = f"{count} .json with '{printable(name)}' and no `label`, which alone is read"
            self.problems.append(Problem(None, cause, lost=False, note=True))
        if strangers:
            what = "file belongs" if len(strangers) == 1 else "files belong"
            cause = f"{len(strangers)} {what} to no sample, such as {strangers[0]}"
            self.problems.append(Problem(None, cause, lost=False, note=True))
        if self.dropped:
            cause = f"{self.dropped} more problems are not listed"
            self.problems.append(Problem(None, cause, self.dropped_lost))
        if not entries and all(problem.note for problem in self.problems):
            what = f", only files such as {strangers[0]}" if strangers else ""
            self.problems.append(Problem(None, f"the tar holds no sample{what}", lost=False))
        return entries, self.problems

    def is_stranger(self, parts: _Parts) -> bool:
        """Whether nothing of this key says that it was to be a sample."""
        ends = {member.rpartition(".")[2] for member in parts.members}
        whole = {part for member in parts.members for part in member.split(".")}
        return not ends & (SAMPLES | UNREAD) and not whole & self.bases

    def chosen_payload(self, key: str, parts: _Parts) -> Entry | str:
        """The payload that is meant, or why there is none."""
        there = sorted(parts.payloads, key=self.suffixes.index)
        if len(there) > 1 and not self.chosen:
            named = " and ".join(f".{suffix}" for suffix in there)
            ways = " or ".join(f"`member: {suffix}`" for suffix in there)
            return f"has {named}: say which is the sample, {ways} in the recipe (else --member)"
        if there:
            return parts.payloads[there[0]]
        return absence(key, parts.members, self.suffixes)

    def label(self, key: str, parts: _Parts) -> int | str:
        """The label, -1 without any, or why the sample cannot be used. `.cls` goes first."""
        found = parts.labels
        own = [suffix for suffix in found if suffix != "json"]
        if "cls" in own:
            cls: int | str | None = found["cls"]
        else:
            # a two-part payload has a two-part label: input.jpg and target.cls
            picked = next(s for s in self.suffixes if s in parts.payloads)
            twin = f"{picked.rpartition('.')[0]}.cls"
            if "." in picked and twin not in own and len({found[s] for s in own}) > 1:
                named = " and ".join(f".{suffix}" for suffix in own)
                return f"has {named}: rename the one that is its label to .cls"
            cls = found[twin if twin in own else own[0]] if "." in picked and own else None
        about = found.get("json")
        if cls is None or (isinstance(cls, str) and isinstance(about, int)):
            if cls is not None:
                self.problem(key, f"{cls}; .json gives its label", lost=False, note=True)
            return -1 if about is None else about
        if isinstance(cls, int) and isinstance(about, str):
            self.problem(key, f"{about}; .cls gives its label", lost=False, note=True)
        elif isinstance(cls, int) and about is not None and about != cls:
            cause = f".cls says {cls}, .json {about}; .cls is used"
            self.problem(key, cause, lost=False, note=True)
        return cls

    def problem(
        self, key: str | None, cause: str, *, lost: bool = True, note: bool = False
    ) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(key, cause, lost, note))
        else:
            self.dropped += 1
            self.dropped_lost |= lost


class _Rest:
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.head, self.stream = head, stream

    def read(self, size: int) -> bytes:
        if not self.head:
            return self.stream.read(size)
        out, self.head = self.head[:size], self.head[size:]
        return out + self.stream.read(size - len(out)) if len(out) < size else out


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


def _source(value: Any) -> str | None:
    """A source id: a name or a number. Anything else is none, it costs no sample."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return printable(str(value))[:MAX_SOURCE] or None
