"""Whether an entry of `index.json` still fits its shard.

The size alone says nothing: tars are padded to 10 KiB, so one that was written anew with other
labels is often as long. An entry is used

- where the shard's size and stamp (mtime and ctime, or ETag) are those that were noted when its
  content was last known to fit, by the writer or by an earlier check;
- in a store, where the shard is older than the index by the store's own clock;
- else (a copied folder, a checkout, another machine) where the shard has the entry's sha256: one
  plain read, which is noted, so that it happens once per place.

Notes lie in the cache folder: an index.json is the same for the same samples, wherever it lies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from pipelines.files import cache_folder, write_text
from pipelines.streams import storage
from uml_core.addresses import within
from uml_core.errors import RunError

TICK = 0.02  # seconds; file systems tell apart what is written further apart (most by 0.004)


def settled(url: str) -> storage.Stat:
    """Size and stamp of a shard such that whoever writes it from now on gives it another stamp."""
    found = storage.stat(url)
    if found.changed is not None and abs(time.time() - found.changed) < TICK:
        time.sleep(TICK)
        return storage.stat(url)
    return found


class Trust:
    """What is known of the shards of one folder; safe to use from several threads."""

    def __init__(self, folder: str, index: str) -> None:
        self.path, self.notes = _notes(folder)
        self.fresh: dict[str, list[Any]] = {}
        self.indexed: float | None = None
        if storage.is_remote(folder):
            with contextlib.suppress(OSError, RunError):  # there is none
                self.indexed = storage.stat(within(folder, index)).changed

    def fits(self, url: str, stat: storage.Stat, sha256: str) -> bool:
        """Whether the shard at `url`, as `stat` tells it, has the content of this hash."""
        name, note = storage.name_of(url), [stat.size, stat.stamp, sha256]
        if stat.stamp and self.notes.get(name) == note:
            return True
        if self.indexed is not None and stat.changed is not None and stat.changed < self.indexed:
            return True
        if _sha256(url) != sha256:
            return False
        if stat.stamp:
            self.fresh[name] = note
        return True

    def save(self) -> None:
        """Notes what was found to fit since the start."""
        if self.fresh:
            _save(self.path, self.notes | self.fresh)


def written(folder: str, shards: Mapping[str, tuple[str, int, str]]) -> None:
    """Notes shards that were just written and scanned: name -> (path, bytes, sha256)."""
    if not shards:
        return
    path, notes = _notes(folder)
    for name, (url, size, sha256) in shards.items():
        stat = storage.stat(url)
        if stat.size == size:
            notes[name] = [size, stat.stamp, sha256]
    time.sleep(TICK)  # what is written to them after this has another stamp
    _save(path, notes)


def _notes(folder: str) -> tuple[str, dict[str, Any]]:
    """(where the notes of a folder lie, name -> [size, stamp, sha256])."""
    place = folder if storage.is_remote(folder) else os.path.abspath(folder)
    name = hashlib.blake2b(place.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    path = os.path.join(cache_folder("stamps"), f"{name}.json")
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        found = None
    return path, found if isinstance(found, dict) else {}


def _save(path: str, notes: Mapping[str, Any]) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_text(path, json.dumps(notes, sort_keys=True))
    except (OSError, UnicodeError):
        pass  # a read-only home costs the check again next time, nothing else


def _sha256(url: str) -> str:
    with storage.open_stream(url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
