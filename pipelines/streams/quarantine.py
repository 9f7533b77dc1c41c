"""Samples that could not be used: remembered in a file, counted against a budget."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.files import append_line
from uml_core.addresses import redacted
from uml_core.errors import RunError

FILE = "quarantine.jsonl"  # in a job's folder
LEAST = 4  # small sets may lose this many whatever the share says
STREAM, EVALUATION, SCAN = "stream", "evaluation", "scan"  # where a bad sample is found


def limit_of(budget: float, rows: int) -> int:
    """How many of so many samples may be bad. budget: see `Quarantine`."""
    if budget == 0:
        return 0
    return int(budget) if budget >= 1 else max(LEAST, int(budget * rows))


class Quarantine:
    """The bad samples of one set; `path` may be shared by modalities, ranks and restarts.

    path      a file of JSON lines {"modality", "found_in", "url", "key", "error"}, or None: kept
              in memory. Urls stand in it without their secrets
    budget    below 1: the share of rows that may be bad (at least 4); from 1 on: their number
    rows      samples the set has
    found_in  STREAM or EVALUATION; `record` writes the lines of SCAN
    urls      of the set's shards, to which the budget applies; None: of all

    Safe to use from several threads. What other ranks write to the same file is taken over when
    the next bad sample is met, so that the budget holds for all of them together.
    """

    def __init__(
        self,
        path: str | Path | None,
        budget: float = 0.01,
        *,
        modality: str = "",
        rows: int = 0,
        found_in: str = STREAM,
        urls: Collection[str] | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.modality, self.rows, self.found_in = modality, rows, found_in
        self.limit = limit_of(budget, rows)
        self.errors: dict[tuple[str, str], str] = {}
        self._urls = None if urls is None else _by_shown(urls)
        self._lock = threading.Lock()
        self._read_to = 0
        self._load()

    def __len__(self) -> int:
        return len(self.errors)

    def __contains__(self, sample: tuple[str, str]) -> bool:
        """Whether (url, key) is known to be bad."""
        return sample in self.errors

    def bad(self, url: str, key: str, error: str) -> None:
        """Records a sample, once. Raises RunError when the budget is used up.

        Also where that happened before: a job that goes on has no new budget.
        """
        with self._lock:
            if (url, key) not in self.errors:
                self._load()
            if (url, key) not in self.errors:
                self.errors[url, key] = error
                self._write(url, key, error)
            if len(self.errors) > self.limit:
                raise RunError(
                    self.advice(
                        f"{len(self.errors)} of {self.rows} samples cannot be used, at most "
                        f"{self.limit} may be (the last: {key} in {url}: {error})"
                    )
                )

    def advice(self, what: str) -> str:
        """What happened and what the user can do about it."""
        where = f" All are listed in {self.path}." if self.path else ""
        return (
            f"{self.modality}: {what}.{where} `uml verify` checks all shards; mend them, or raise "
            "quarantine_budget, and run the same command with --resume"
        )

    def _write(self, url: str, key: str, error: str) -> None:
        if self.path is not None:
            line = _line(self.modality, self.found_in, url, key, error)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, json.dumps(line))

    def _load(self) -> None:
        """Takes over the lines that were added to the file since it was last read."""
        if self.path is None or not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read_to)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in _lines(whole):
            mine = (line["modality"], line["found_in"]) == (self.modality, self.found_in)
            url = line["url"] if self._urls is None else self._urls.get(line["url"])
            if mine and url is not None:
                self.errors[url, line["key"]] = line["error"]


def record(path: Path, modality: str, found: Iterable[tuple[str, str | None, str]]) -> None:
    """Writes down, once each, what the scan of shards left out: (url, key, cause).

    It never was part of an index, so it counts against no budget of a stream.
    """
    there = {tuple(line.values()) for line in recorded(path)}
    lines = (_line(modality, SCAN, url, key, cause) for url, key, cause in found)
    for line in lines:
        if tuple(line.values()) not in there:
            append_line(path, json.dumps(line))


def recorded(path: Path) -> list[dict[str, Any]]:
    """The lines of a quarantine file; empty without one."""
    return list(_lines(path.read_bytes())) if path.exists() else []


def count(path: Path) -> int:
    """Samples (and damaged ends of shards) that a run left out."""
    return len({(line["modality"], line["url"], line["key"]) for line in recorded(path)})


_FIELDS = ("modality", "found_in", "url", "key", "error")


def _line(*values: str | None) -> dict[str, str | None]:
    shown = [value and redacted(value) for value in values]
    return dict(zip(_FIELDS, shown, strict=True))


def _by_shown(urls: Collection[str]) -> dict[str, str]:
    """How a url is shown -> the url. Those that look alike are left out: what is known of them is
    found again."""
    count = Counter(map(redacted, urls))
    return {shown: url for url in urls if count[shown := redacted(url)] == 1}


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    for text in data.splitlines():
        try:
            found = json.loads(text)
            line = {name: found[name] for name in _FIELDS}
        except (ValueError, KeyError, TypeError):
            continue  # a line cut off by a full disk or a kill
        if all(isinstance(value, str | None) for value in line.values()):
            yield line
