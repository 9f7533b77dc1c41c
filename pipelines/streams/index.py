"""`index.json`: what lies in the shards of a folder, so that no job has to scan them again.

Our own writer leaves it beside the shards. Foreign shards are scanned on first use and their
index is kept in a cache folder, never beside them. An index is only a copy of what is in the
tars and is not trusted: one that is malformed or does not fit its shard is not used. What fits is
said in trust.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from pipelines.files import cache_folder, replaced
from pipelines.streams import gaps, storage
from pipelines.streams.classes import CLASSES_NAME, names_beside
from pipelines.streams.labels import MAX_LABEL
from pipelines.streams.scan import (
    MAX_LINKED,
    MAX_MEMBER_BYTES,
    Problem,
    scan_tar,
)
from pipelines.streams.trust import Trust, settled, written
from uml_core.addresses import within
from uml_core.errors import RunError, UserError

VERSION = 1
CACHE_VERSION = 3  # changes whenever a scan finds otherwise in the same bytes
INDEX_NAME = "index.json"
MAX_INDEX_BYTES = 4 << 30


@dataclass(frozen=True)
class Shard:
    """One tar and its samples, column by column.

    url      absolute path or url
    kind     the modality kind whose payload was picked
    keys     sample keys; labels (N,) int64, -1 = unlabelled
    offsets  (N,) int64: first byte of the payload inside the tar; sizes (N,) int64 its bytes
    suffixes lower case, without the dot; hashes: of the payload's content (`content_hash`)
    sources  `source` (or `src`) of `<key>.json`, None where there is none
    bytes    size of the tar; sha256 of the tar
    problems what the scan could not use
    encoder  of features that `uml embed` wrote: what made them (`uml_core.encoders`), else None
    member   suffixes of the payload that a person chose, the most wanted first; () = by kind
    """

    url: str
    kind: str
    keys: list[str]
    labels: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    suffixes: list[str]
    hashes: list[str]
    sources: list[str | None]
    bytes: int
    sha256: str
    problems: tuple[Problem, ...] = ()
    encoder: dict[str, Any] | None = None
    member: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def class_histogram(self) -> dict[str, int]:
        """Samples per label, unlabelled ones left out; keys are strings as in index.json."""
        counts = Counter(self.labels[self.labels >= 0].tolist())
        return {str(label): counts[label] for label in sorted(counts)}


def scan_shard(
    url: str, kind: str, member: tuple[str, ...] = (), classes: Sequence[str] | None = None
) -> Shard:
    """The shard at `url` as it is now, with its problems. Reads all of it once.

    member   as in `Shard`; classes: names in label order, for labels that are names
    """
    digest = _Digest(storage.open_stream(url))
    with digest.file:
        entries, problems = scan_tar(
            digest,  # type: ignore[arg-type]
            member or suffixes_of(kind),
            chosen=bool(member),
            classes=classes,
        )
        while digest.read(1 << 20):
            pass
    return Shard(
        url=url,
        kind=kind,
        keys=[e.key for e in entries],
        labels=np.array([e.label for e in entries], dtype=np.int64),
        offsets=np.array([e.offset for e in entries], dtype=np.int64),
        sizes=np.array([e.size for e in entries], dtype=np.int64),
        suffixes=[e.suffix for e in entries],
        hashes=[e.hash for e in entries],
        sources=[e.source for e in entries],
        bytes=digest.count,
        sha256=digest.sha.hexdigest(),
        problems=tuple(problems),
        member=member,
    )


def suffixes_of(kind: str) -> tuple[str, ...]:
    """Payload suffixes of a modality kind (imported late: read tasks do without torch)."""
    from uml_core.modalities import KINDS

    return KINDS[kind].suffixes


def to_json(shard: Shard) -> dict[str, Any]:
    """A shard as it stands in index.json."""
    return {
        "kind": shard.kind,
        "samples": len(shard),
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "class_histogram": shard.class_histogram,
        "keys": shard.keys,
        "labels": shard.labels.tolist(),
        "offsets": shard.offsets.tolist(),
        "sizes": shard.sizes.tolist(),
        "suffixes": shard.suffixes,
        "hashes": shard.hashes,
        "sources": shard.sources,
        "problems": [[p.key, p.cause, p.lost, *([True] if p.note else [])] for p in shard.problems],
        **({} if shard.encoder is None else {"encoder": shard.encoder}),
        **({"member": list(shard.member)} if shard.member else {}),
    }


def from_json(entry: Any, url: str) -> Shard | None:
    """A shard out of index.json; None where the entry is not well-formed (it is not trusted)."""
    try:
        shard = Shard(
            url=url,
            kind=_typed(entry["kind"], str),
            keys=_column(entry["keys"], str),
            labels=_integers(entry["labels"]),
            offsets=_integers(entry["offsets"]),
            sizes=_integers(entry["sizes"]),
            suffixes=_column(entry["suffixes"], str),
            hashes=_column(entry["hashes"], str),
            sources=_column(entry["sources"], str, type(None)),
            bytes=_typed(entry["bytes"], int),
            sha256=_typed(entry["sha256"], str),
            problems=tuple(
                Problem(
                    _typed(key, str, type(None)),
                    _typed(cause, str),
                    *(_typed(flag, bool) for flag in flags[:2]),
                )
                for key, cause, *flags in entry.get("problems", [])
            ),
            encoder=_typed(entry.get("encoder"), dict, type(None)),
            member=tuple(_column(entry.get("member", []), str)),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    columns = (
        shard.labels,
        shard.offsets,
        shard.sizes,
        shard.suffixes,
        shard.hashes,
        shard.sources,
    )
    if any(len(column) != len(shard) for column in columns):
        return None
    if len(shard) and (
        shard.labels.min() < -1
        or shard.labels.max() > MAX_LABEL
        or shard.offsets.min() < 0
        or shard.sizes.min() < 0
        or shard.sizes.max() > MAX_MEMBER_BYTES
        or (shard.offsets > shard.bytes - shard.sizes).any()
        or _multiplies(shard)
    ):
        return None
    return shard


def _multiplies(shard: Shard) -> bool:
    """Whether payloads overlap otherwise than by links, or by more links than a scan follows."""
    _, first = np.unique(shard.offsets, return_index=True)
    total = int(shard.sizes.sum())
    return int(shard.sizes[first].sum()) > shard.bytes or total > (MAX_LINKED + 1) * shard.bytes


def read_json(url: str, limit: int) -> Any:
    """Parsed JSON, or None where the file is missing, too large or not JSON."""
    try:
        return json.loads(storage.read_beside(url, limit) or b"")
    except (OSError, UserError, RunError, ValueError, RecursionError):
        return None


def index_entries(folder: str) -> dict[str, Any]:
    """What the index.json of a folder lists, by file name; empty without one that is ours."""
    found = read_json(within(folder, INDEX_NAME), MAX_INDEX_BYTES)
    good = isinstance(found, dict) and found.get("version") == VERSION
    shards = found.get("shards") if good else None
    return shards if isinstance(shards, dict) else {}


def load_shards(
    urls: Sequence[str],
    kind: str,
    member: tuple[str, ...] = (),
    wanted: gaps.Wanted = lambda url: False,
) -> list[Shard]:
    """Shards from the index beside them or from the cache; scanned where neither holds them.

    An entry of the index is used where it is known to fit its tar as that is now (`Trust`).
    member  as in `Shard`
    wanted  whether a shard that is listed but gone should have been among them: then UserError
    """
    classes: dict[str, tuple[str, ...] | None] = {}
    folders: dict[str, Any] = {}
    trust = {}
    for folder in dict.fromkeys(storage.folder_of(url) for url in urls):
        folders[folder] = index_entries(folder)
        trust[folder] = Trust(folder, INDEX_NAME)
        classes[folder] = names_beside(folder)

    def load(url: str) -> Shard:
        stat, folder = settled(url), storage.folder_of(url)
        entry = folders[folder].get(storage.name_of(url))
        shard = from_json(entry, url) if entry is not None else None
        like = (
            shard is not None
            and (shard.kind, shard.member) == (kind, member)
            and shard.bytes == stat.size
        )
        if shard is not None and like and trust[folder].fits(url, stat, shard.sha256):
            return shard
        return _cached(url, kind, stat, member, classes[folder])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(load, urls))
    for one in trust.values():
        one.save()
    if lost := gaps.gone(folders, {shard.url: shard.sha256 for shard in found}, wanted):
        raise UserError(gaps.gone_sentence(lost))
    return found


def check_own(folder: str) -> None:
    """Raises UserError where the folder's index.json or classes.json is not of our making.

    Other libraries call their files so too (MosaicML's MDS, LitData, wids): replacing one would
    destroy the data set that it describes.
    """
    path = os.path.join(folder, INDEX_NAME)
    if os.path.lexists(path):
        found = read_json(path, MAX_INDEX_BYTES)
        if not isinstance(found, dict) or not isinstance(found.get("shards"), dict):
            raise UserError(
                f"{path} is not ours: the folder belongs to another library's data, or the file is "
                "damaged. Choose another --out"
            )
    path = os.path.join(folder, CLASSES_NAME)
    if os.path.lexists(path):
        names = read_json(path, MAX_INDEX_BYTES)
        if not isinstance(names, list) or not all(isinstance(n, str | int) for n in names):
            raise UserError(f"{path} is no list of class names, and not ours: choose another --out")


def check_out_folder(folder: str, names: Sequence[str]) -> None:
    """Raises UserError where shards must not go: a folder with files that are not ours.

    Into a new or empty folder they may, and beside shards and a class list of ours.

    names  what lies in the folder, but for the marks of running jobs
    """
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder} is a file: give a folder as --out")
    check_own(folder)
    if names and not {INDEX_NAME, CLASSES_NAME} & set(names):
        raise UserError(f"{folder} holds other files: choose another --out, or remove them")


def merge_index(folder: str, shards: Iterable[Shard] = ()) -> str:
    """Writes `shards`, just scanned, into the folder's index.json, drops what is gone.

    Returns its path.
    """
    path = os.path.join(folder, INDEX_NAME)
    check_own(folder)
    found = read_json(path, MAX_INDEX_BYTES)
    entries = dict(found["shards"]) if found is not None else {}
    shards = list(shards)
    entries |= {storage.name_of(shard.url): to_json(shard) for shard in shards}
    kept = {n: entries[n] for n in sorted(entries) if os.path.isfile(os.path.join(folder, n))}
    write_json(path, {"version": VERSION, "shards": kept})
    written(folder, {storage.name_of(s.url): (s.url, s.bytes, s.sha256) for s in shards})
    return path


def write_json(path: str, content: Any) -> None:
    """Compact JSON, whole or not at all."""
    with replaced(path) as scratch, open(scratch, "w", encoding="utf-8") as file:
        json.dump(content, file, separators=(",", ":"))
        file.write("\n")


def _cached(
    url: str,
    kind: str,
    stat: storage.Stat,
    member: tuple[str, ...],
    classes: tuple[str, ...] | None,
) -> Shard:
    parts = (CACHE_VERSION, kind, *member, repr(classes), url, stat.size, stat.stamp)
    name = "|".join(map(str, parts)).encode("utf-8", "surrogateescape")
    folder = cache_folder("index")
    path = os.path.join(folder, hashlib.blake2b(name, digest_size=16).hexdigest() + ".json")
    known = read_json(path, MAX_INDEX_BYTES) if stat.stamp else None  # else it may be another's
    shard = from_json(known, url)
    if shard is not None and shard.bytes == stat.size:
        return shard
    shard = scan_shard(url, kind, member, classes)
    if not stat.stamp:
        return shard
    try:
        os.makedirs(folder, exist_ok=True)
        write_json(path, to_json(shard))
    except OSError:
        pass  # a read-only home costs the scan again next time, nothing else
    return shard


class _Digest:
    """A stream that is hashed and counted as it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha, self.count = file, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.sha.update(data)
        self.count += len(data)
        return data


def _typed(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise TypeError(type(value))
    return value


def _column(values: Any, *types: type) -> list:
    return [_typed(value, *types) for value in _typed(values, list)]


def _integers(values: Any) -> np.ndarray:
    return np.array(_column(values, int), dtype=np.int64)
