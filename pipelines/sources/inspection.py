"""One shard, read to its end: what is in it, what does not decode, what its index should say."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipelines.sources.decoding import Decoder
from pipelines.sources.parallel import Job
from pipelines.streams import foreign, storage
from pipelines.streams.classes import names_beside
from pipelines.streams.index import Shard, from_json, scan_shard, to_json
from pipelines.streams.members import is_hidden, printable
from pipelines.streams.scan import MAX_MEMBER_BYTES, walk_tar
from uml_core.errors import RunError, UserError
from uml_core.modalities import KINDS
from uml_core.modalities.base import BadSample
from uml_core.modalities.common import load_array

SHOWN = 6  # suffixes that a message names
ROWS, READ_BYTES = 64, 32 << 20  # payloads read at once: at most so many, about so many bytes


def check_shard(job: Job) -> Job:
    """Reads one shard to its end and decodes every sample.

    Returns {"shard": its index entry as it should be, "problems": [[key, cause, lost, note]] (see
    `Problem`), "suffixes": {suffix: members}, "dim": numbers per sample}, or {"problems"} where
    it cannot be read.
    """
    url, kind = job["url"], job["kind"]
    decoder = Decoder(kind, job["options"])
    try:
        with tempfile.TemporaryDirectory(prefix="uml-verify-") as scratch:
            path = _local(url, scratch)
            names = names_beside(storage.folder_of(url))
            shard = scan_shard(path, kind, tuple(job.get("member", ())), names)
            problems = [[p.key, p.cause, p.lost, p.note] for p in shard.problems]
            problems += [[key, cause, True, False] for key, cause in _undecodable(shard, decoder)]
            suffixes = _member_suffixes(path)
    except (OSError, RunError, UserError) as error:
        return {"problems": [[None, f"cannot be read: {error}", True, False]]}
    return {
        "shard": to_json(replace(shard, url=url)),
        "problems": problems,
        "suffixes": suffixes,
        "dim": decoder.dim,
    }


def _local(url: str, scratch: str) -> str:
    """The shard as a local file: a remote one is fetched once and read three times."""
    if not storage.is_remote(url):
        return url
    path = os.path.join(scratch, "shard.tar")
    with storage.open_stream(url) as stream, open(path, "wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return path


def _undecodable(shard: Shard, decoder: Decoder) -> Iterator[tuple[str, str]]:
    start = 0
    while start < len(shard):
        stop, total = start, 0
        while stop < len(shard) and stop - start < ROWS and total < READ_BYTES:
            total += int(shard.sizes[stop])
            stop += 1
        rows = slice(start, stop)
        payloads = storage.read_ranges(
            shard.url, shard.offsets[rows].tolist(), shard.sizes[rows].tolist()
        )
        for row, data in enumerate(payloads, start):
            cause = decoder.cause(data, shard.suffixes[row])
            if cause is not None:
                yield shard.keys[row], cause
        start = stop


def _member_suffixes(path: str) -> dict[str, int]:
    """Members per suffix; those before the damage, where a tar is damaged."""
    counts: Counter[str] = Counter()

    def visit(tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        if member.isreg() and not is_hidden(member.name):
            counts[printable(_suffix(member))] += 1

    with open(path, "rb") as stream:
        walk_tar(stream, visit)  # why it is not whole the scan has said
    return dict(counts)


def kinds_in(url: str) -> dict[str, str]:
    """The kinds that the first sample with any could be of -> the suffix that says so. A text
    beside a picture or a sound is its caption, and not what it is called by."""
    found: dict[str, str] = {}
    first: list[str] = []

    def visit(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
        if is_hidden(member.name):
            return False
        key = member.name.removesuffix(member.name.rpartition("/")[2].partition(".")[2])
        if first and key != first[0]:
            return True
        suffix = _suffix(member)
        last = suffix.rpartition(".")[2]
        fitting = [kind for kind, cls in KINDS.items() if last in cls.suffixes]
        if not fitting or not member.isreg() or not 0 < member.size <= MAX_MEMBER_BYTES:
            return False
        if last in ("npy", "npz"):
            file = tar.extractfile(member)
            try:
                array, _ = load_array(b"" if file is None else file.read(), last)
            except BadSample:
                return False
            fitting = ["sequence" if array.ndim > 1 and len(array) > 1 else "vector"]
        found.setdefault(fitting[0], suffix)
        first[:] = [key]
        return False

    try:
        with storage.open_stream(url) as stream:
            walk_tar(stream, visit)
    except (OSError, RunError):
        return {}  # the check of the shard says what is wrong with it
    return {kind: suffix for kind, suffix in found.items() if kind != "text"} or found


def why_no_kind(url: str) -> str:
    """Why nothing in a tar tells its kind: what it is instead, or which members it has."""
    found: dict[str, None] = {}

    def visit(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
        if member.isreg() and not is_hidden(member.name):
            found[printable(_suffix(member)[:40])] = None
        return len(found) >= SHOWN

    try:
        with storage.open_stream(url) as stream:
            cause = foreign.no_tar(head := stream.read(foreign.HEAD_BYTES))
            if cause is None and head:
                with storage.open_stream(url) as again:
                    walk_tar(again, visit)
    except (OSError, RunError) as error:
        cause = f"cannot be read: {error}"
    there = " ".join(f".{suffix}" for suffix in found if suffix)
    return cause or f"no member tells its kind{f', only {there}' if there else ''}"


def _suffix(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def index_differences(entry: Any, shard: Shard) -> list[str]:
    """What an entry of index.json says otherwise than the scanned tar."""
    listed = from_json(entry, shard.url)
    if listed is None:
        return ["its entry is malformed: remove index.json, it is built again"]
    if listed.sha256 != shard.sha256:
        return [
            f"the file has changed since it was indexed: sha256 {shard.sha256[:12]}, not "
            f"{listed.sha256[:12]}; {len(shard)} samples, listed are {len(listed)}"
        ]
    if listed.kind != shard.kind:
        return []  # another member of the same samples is listed
    return [f"{name} differ from the tar" for name in _COLUMNS if not _equal(name, entry, shard)]


_COLUMNS = (
    "samples",
    "bytes",
    "class_histogram",
    "keys",
    "labels",
    "offsets",
    "sizes",
    "suffixes",
    "hashes",
    "sources",
)


def _equal(name: str, entry: Mapping[str, Any], shard: Shard) -> bool:
    return bool(entry.get(name) == to_json(shard)[name])
