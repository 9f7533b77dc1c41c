"""Samples that could not be used: remembered in a file, counted against a budget."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable
from pathlib import Path

from pipelines.files import append_line
from uml_core.errors import RunError

FILE = "quarantine.jsonl"  # in a job's folder
LEAST = 4  # small sets may lose this many whatever the share says


class Quarantine:
    """The bad samples of one modality; `path` may be shared by modalities, ranks and restarts.

    path    a file of JSON lines {"modality", "url", "key", "error"}, or None: kept in memory;
            lines with a "split" are of `record` and do not count here
    rows    samples the modality has
    budget  below 1: the share of rows that may be bad (at least 4); from 1 on: their number

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
    ) -> None:
        self.path = None if path is None else Path(path)
        self.modality, self.rows = modality, rows
        self.limit = int(budget) if budget >= 1 else max(LEAST, int(budget * rows))
        if budget == 0:
            self.limit = 0
        self.errors: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._read_to = 0
        self._load()

    def __len__(self) -> int:
        return len(self.errors)

    def __contains__(self, sample: tuple[str, str]) -> bool:
        """Whether (url, key) is known to be bad."""
        return sample in self.errors

    def bad(self, url: str, key: str, error: str) -> None:
        """Records a sample, once. Raises RunError when the budget is used up."""
        with self._lock:
            if (url, key) in self.errors:
                return
            self._load()
            if (url, key) not in self.errors:
                self.errors[url, key] = error
                self._write({"modality": self.modality, "url": url, "key": key, "error": error})
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

    def _write(self, line: dict[str, str]) -> None:
        if self.path is None:
            return
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
        for line in whole.splitlines():
            try:
                found = json.loads(line)
                if found["modality"] == self.modality and "split" not in found:
                    self.errors[found["url"], found["key"]] = found["error"]
            except (ValueError, KeyError, TypeError):
                continue  # a line cut off by a full disk or a kill


def record(path: Path, modality: str, split: str, found: Iterable[tuple[str, str, str]]) -> None:
    """Writes down, once each, what the scan of a split's shards left out: (url, key, error).

    It never was part of the index, so it counts against no budget.
    """
    known = _places(path)
    for url, key, error in found:
        if (url, key) not in known:
            line = {"modality": modality, "split": split, "url": url, "key": key, "error": error}
            append_line(path, json.dumps(line))


def count(path: Path) -> int:
    """Samples in a quarantine file, each once."""
    return len(_places(path))


def _places(path: Path) -> set[tuple[str, str]]:
    found = set()
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # cut off by a kill
            entry = json.loads(line)
            found.add((entry["url"], entry["key"]))
    return found
