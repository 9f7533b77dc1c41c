"""Shards: deterministic tars with an index, and the `Index` that a modality is read through.

A sample is `<key>.<ext>` with its label in `<key>.cls` or `<key>.json`; any WebDataset reader
reads what is written here. The same samples give the same bytes: members in the order of the
samples, their suffixes sorted, no times, no owners.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from unicodedata import normalize

import numpy as np

from pipelines.files import replaced, write_text
from pipelines.streams import gaps, storage
from pipelines.streams.classes import CLASSES_NAME, read_classes
from pipelines.streams.index import (
    Shard,
    load_shards,
    merge_index,
    scan_shard,
    suffixes_of,
)
from pipelines.streams.scan import MAX_JSON_BYTES, MAX_MEMBER_BYTES, Problem
from pipelines.streams.slow import noted
from pipelines.streams.storage import expand
from uml_core.addresses import within
from uml_core.errors import RunError, UserError

__all__ = [
    "Index",
    "Problem",
    "Sample",
    "Shard",
    "expand",
    "load_index",
    "read_rows",
    "subset",
    "write_classes",
    "write_index",
    "write_shard",
    "write_shards",
    "write_subset",
]

PER_SHARD = 10_000
SHARD_BYTES = 256 << 20  # a shard is closed at this size even with fewer samples


@dataclass(frozen=True)
class Sample:
    """One sample to be written.

    key     unique in its shard, no dot in its last component
    suffix  of the payload, lower case, without the dot; data: the payload's bytes
    label   class index, None = unlabelled
    source  where it comes from (kept in `<key>.json`), for leak checks
    text    a text that belongs to a payload that is not text (kept in `<key>.txt`)
    extra   further fields of `<key>.json`
    """

    key: str
    suffix: str
    data: bytes
    label: int | None = None
    source: str | None = None
    text: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def members(self) -> list[tuple[str, bytes]]:
        """(suffix, bytes) of all its members, sorted. Raises UserError on what cannot be read."""
        parts = {self.suffix: self.data}
        if self.label is not None:
            parts["cls"] = str(int(self.label)).encode()
        about: dict[str, Any] = dict(self.extra)
        if self.source is not None:
            about["source"] = self.source
        if about:
            if self.label is not None:
                about["label"] = int(self.label)
            parts["json"] = json.dumps(about, sort_keys=True).encode()
        if self.text is not None:
            parts["txt"] = self.text.encode()
        self._check(parts)
        return sorted(parts.items())

    def _check(self, parts: Mapping[str, bytes]) -> None:
        clean = all(part not in ("", ".", "..") for part in self.key.split("/"))
        if not clean or "." in self.key.rpartition("/")[2] or not self.key.isprintable():
            raise UserError(f"{self.key!r} cannot be a key: no dots, no empty parts")
        if not re.fullmatch(r"[a-z0-9]+", self.suffix) or self.suffix in ("cls", "json"):
            raise UserError(f"{self.key}: '{self.suffix}' cannot be a payload's suffix")
        if self.text is not None and self.suffix == "txt":
            raise UserError(f"{self.key}: a text payload cannot have a second text")
        if not 0 < len(self.data) <= MAX_MEMBER_BYTES:
            raise UserError(
                f"{self.key}: {len(self.data)} bytes; 1 to {MAX_MEMBER_BYTES} are legal"
            )
        if len(parts.get("json", b"")) > MAX_JSON_BYTES:
            raise UserError(f"{self.key}: its json has more than {MAX_JSON_BYTES} bytes")
        if self.label is not None and self.label < 0:
            raise UserError(f"{self.key}: label {self.label} is negative")


@dataclass(frozen=True, eq=False)
class Index:
    """All samples of one modality split (or a selection of them), addressed by row 0..N-1.

    shards   in order; rows run through them
    classes  names in label order from classes.json beside the shards, None without one
    picked   (N,) the rows of the shards that this index consists of; None = all of them
    origins  of an index made by `write_subset`: (url, key) that each sample was copied from
    """

    shards: tuple[Shard, ...]
    classes: tuple[str, ...] | None = None
    picked: np.ndarray | None = None
    origins: tuple[tuple[str, str], ...] | None = None

    def __len__(self) -> int:
        return self.num_samples

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(shard) for shard in self.shards)])

    @property
    def num_samples(self) -> int:
        return int(self._starts[-1]) if self.picked is None else len(self.picked)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64, -1 = unlabelled."""
        return self._array([shard.labels for shard in self.shards])

    @cached_property
    def offsets(self) -> np.ndarray:
        """(N,) int64: first byte of each payload in its tar."""
        return self._array([shard.offsets for shard in self.shards])

    @cached_property
    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of each payload."""
        return self._array([shard.sizes for shard in self.shards])

    @cached_property
    def shard_ids(self) -> np.ndarray:
        """(N,) int64: which shard each row lies in."""
        return self._array([np.full(len(s), i) for i, s in enumerate(self.shards)])

    @cached_property
    def keys(self) -> list[str]:
        return self._list([shard.keys for shard in self.shards])

    @cached_property
    def suffixes(self) -> list[str]:
        return self._list([shard.suffixes for shard in self.shards])

    @cached_property
    def hashes(self) -> list[str]:
        """Content hashes of the payloads."""
        return self._list([shard.hashes for shard in self.shards])

    @cached_property
    def sources(self) -> list[str | None]:
        return self._list([shard.sources for shard in self.shards])

    @property
    def problems(self) -> list[tuple[str, Problem]]:
        """(url, problem) of everything that the scan of the shards found wrong."""
        return [(shard.url, problem) for shard in self.shards for problem in shard.problems]

    @property
    def encoder(self) -> dict[str, Any] | None:
        """What made the features of all shards; None for raw data and for features of several."""
        found = [shard.encoder for shard in self.shards]
        return found[0] if found and all(one == found[0] for one in found) else None

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Rows per shard; what a plan with windows needs."""
        counts = np.bincount(self.shard_ids, minlength=len(self.shards))
        return tuple(int(count) for count in counts)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex characters: changes with any sample, label or the selection of rows."""
        digest = hashlib.blake2b(digest_size=8)
        for shard in self.shards:
            member = f":{','.join(shard.member)}" if shard.member else ""
            digest.update(f"{shard.sha256}:{shard.kind}:{len(shard)}{member};".encode())
        if self.picked is not None:
            digest.update(self.picked.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def urls(self) -> frozenset[str]:
        """The shards that the samples came from."""
        if self.origins is not None:
            return frozenset(url for url, _ in self.origins)
        return frozenset(shard.url for shard in self.shards)

    def origin(self, row: int) -> tuple[str, str]:
        """(url, key) of a row in the shards that the user knows."""
        shard, place = self.locate(row)
        if self.origins is not None:  # then there is one shard
            return self.origins[place]
        return shard.url, shard.keys[place]

    def locate(self, row: int) -> tuple[Shard, int]:
        """The shard of a row and its place there. Raises IndexError."""
        if not 0 <= row < self.num_samples:
            raise IndexError(row)
        whole = row if self.picked is None else int(self.picked[row])
        shard = int(np.searchsorted(self._starts, whole, side="right")) - 1
        return self.shards[shard], whole - int(self._starts[shard])

    def _array(self, columns: list[np.ndarray]) -> np.ndarray:
        whole = np.concatenate([np.zeros(0, np.int64), *columns]).astype(np.int64)
        return whole if self.picked is None else whole[self.picked]

    def _list(self, columns: list[list]) -> list:
        whole = [value for column in columns for value in column]
        return whole if self.picked is None else [whole[row] for row in self.picked]


def load_index(
    pattern: str | Sequence[str],
    root: str,
    kind: str,
    member: str | Sequence[str] | None = None,
    wanted: gaps.Wanted | None = None,
) -> Index:
    """The samples of all shards that `pattern` names (see `expand`), for one modality kind.

    member  the payload's suffix where samples have several of the kind, or several, the most
            wanted first
    wanted  as in `load_shards`; default: whether the pattern's wildcards would take it

    Raises UserError: shards missing, without any sample of this kind, or class lists that differ.
    """
    urls = expand(pattern, root)
    wanted = gaps.matching(pattern, root) if wanted is None else wanted
    shards = load_shards(urls, kind, chosen_members(kind, member), wanted)
    problems = [_emptiness(shard) for shard in shards if len(shard) == 0]
    folders = dict.fromkeys(storage.folder_of(url) for url in urls)
    lists = {folder: names for folder in folders if (names := read_classes(folder))}
    if len(set(lists.values())) > 1:
        problems.append("class lists differ: " + ", ".join(within(f, CLASSES_NAME) for f in lists))
    if problems:
        raise UserError(problems)
    return Index(tuple(shards), next(iter(lists.values()), None))


def chosen_members(kind: str, member: str | Sequence[str] | None) -> tuple[str, ...]:
    """The suffixes that a person asks for, as `Shard.member`. Raises UserError for other kinds'."""
    given = () if member is None else (member,) if isinstance(member, str) else tuple(member)
    wanted = tuple(one.lower().lstrip(".") for one in given)
    known = suffixes_of(kind)
    wrong = [one for one in wanted if one.rpartition(".")[2] not in known]
    if wrong:
        raise UserError(
            f"member {', '.join(wrong)}: no suffix of kind {kind}: {' '.join(known)}, or one that "
            f"ends so, such as input.{known[0]}"
        )
    return wanted


def subset(index: Index, rows: Sequence[int] | np.ndarray) -> Index:
    """A view on some rows of an index, in the order given; nothing is copied."""
    chosen = np.asarray(rows, dtype=np.int64)
    return replace(index, picked=chosen if index.picked is None else index.picked[chosen])


def read_rows(index: Index, rows: Sequence[int] | np.ndarray) -> list[bytes]:
    """Payload bytes of the rows, in their order; one open per shard.

    A payload that its shard no longer holds in full comes back shorter than `index.sizes`.
    """
    chosen = np.asarray(rows, dtype=np.int64)
    urls = [shard.url for shard in index.shards]
    return read_places(urls, index.shard_ids[chosen], index.offsets[chosen], index.sizes[chosen])


def read_places(
    urls: Sequence[str], shard_ids: np.ndarray, offsets: np.ndarray, sizes: np.ndarray
) -> list[bytes]:
    """Bytes at (shard, offset, size), in the order given; one open per shard."""
    out: list[bytes] = [b""] * len(shard_ids)
    for shard in np.unique(shard_ids):
        where = np.flatnonzero(shard_ids == shard)
        with noted(urls[shard]):
            parts = storage.read_ranges(urls[shard], offsets[where], sizes[where])
        for i, part in zip(where, parts, strict=True):
            out[i] = part
    return out


def write_shard(path: str, samples: Iterable[Sample], kind: str) -> Shard:
    """Writes one tar, whole or not at all, and returns what the index will say of it.

    Raises UserError for keys that repeat, suffixes that the kind does not have, or no sample.
    """
    suffixes, seen = suffixes_of(kind), set()
    with replaced(path) as scratch:
        with tarfile.open(scratch, "w", format=tarfile.GNU_FORMAT) as tar:
            for sample in samples:
                if sample.key in seen:
                    raise UserError(f"{path}: the key {sample.key} occurs twice")
                if sample.suffix not in suffixes:
                    raise UserError(f"{path}: {sample.key}.{sample.suffix} is no {kind} file")
                seen.add(sample.key)
                for suffix, data in sample.members():
                    _add(tar, f"{sample.key}.{suffix}", data)
        if not seen:
            raise UserError(f"{path}: there is no sample to write")
    shard = scan_shard(os.path.abspath(path), kind)
    if shard.problems or len(shard) != len(seen):
        raise RunError(f"{path} cannot be read back: {shard.problems[:3]}; check the disk")
    return shard


def write_shards(
    samples: Iterable[Sample], folder: str, prefix: str, kind: str, per_shard: int = PER_SHARD
) -> list[str]:
    """Writes `<prefix>-000000.tar` ... into `folder` and adds them to its index.json.

    A shard is closed at `per_shard` samples or about 256 MB. Returns the paths.
    """
    os.makedirs(folder, exist_ok=True)
    shards = [
        write_shard(os.path.join(folder, f"{prefix}-{number:06d}.tar"), group, kind)
        for number, group in enumerate(_groups(samples, per_shard))
    ]
    if not shards:
        raise UserError(f"{folder}/{prefix}: there is no sample to write")
    merge_index(folder, shards)
    return [shard.url for shard in shards]


def write_index(folder: str, shards: Iterable[Shard] = ()) -> str:
    """Adds shards written by `write_shard` (by tasks, say) to the folder's index.json.

    Entries of files that are gone are dropped. Returns the path of index.json.
    """
    return merge_index(folder, shards)


def write_classes(folder: str, names: Sequence[str]) -> str:
    """Writes classes.json (names in label order) beside the shards; returns its path.

    One that is there with the same names stays as it is; raises UserError for other names.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, CLASSES_NAME)
    if os.path.lexists(path):
        found = read_classes(folder) or ()
        if [normalize("NFC", n.strip()) for n in found] != list(names):
            raise UserError(f"{path} holds other names: choose another folder")
        return path
    write_text(path, json.dumps(list(names), ensure_ascii=False, indent=1) + "\n")
    return path


def write_subset(index: Index, rows: Sequence[int] | np.ndarray, path: str) -> Index:
    """Writes the rows as one small shard of its own with an index beside it; returns its index.

    Keys stay as they are; where two shards use the same key, the later ones get a number, and what
    no file name may hold is replaced.
    """
    part, kind = subset(index, rows), index.shards[0].kind
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    shard = write_shard(path, _copies(part), kind)
    merge_index(os.path.dirname(shard.url), [shard])
    origins = tuple(part.origin(row) for row in range(len(part)))
    return Index((shard,), index.classes, origins=origins)


def _copies(index: Index) -> Iterator[Sample]:
    used: set[str] = set()
    for row, data in enumerate(read_rows(index, range(len(index)))):
        if len(data) < index.sizes[row]:
            raise RunError(f"{index.locate(row)[0].url} ends before {index.keys[row]}: cut off?")
        key = stem = _clean_key(index.keys[row])
        number = 1
        while key in used:
            number += 1
            key = f"{stem}_{number}"
        used.add(key)
        label = int(index.labels[row])
        yield Sample(
            key, index.suffixes[row], data, None if label < 0 else label, index.sources[row]
        )


def _clean_key(key: str) -> str:
    """A key that `Sample` takes: keys of foreign shards may hold anything."""
    parts = [part for part in key.split("/") if part not in ("", ".", "..")]
    return "".join(c if c.isprintable() else "_" for c in "/".join(parts)) or "sample"


def _groups(samples: Iterable[Sample], per_shard: int) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += len(sample.data)
        if len(group) >= per_shard or size >= SHARD_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults: mtime 0, uid and gid 0, no owner names
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def _emptiness(shard: Shard) -> str:
    found = sorted(shard.problems, key=lambda problem: problem.note)
    causes = [f"{p.key}: {p.cause}" if p.key else p.cause for p in found[:1]]
    more = f" (and {len(found) - 1} more problems)" if len(found) > 1 else ""
    wanted = " ".join(shard.member or suffixes_of(shard.kind))
    return f"{shard.url} has no {shard.kind} sample ({wanted}): {'; '.join(causes)}{more}"
