"""What a sweep has done so far, in a file that a kill at any moment leaves usable.

One JSON line per event, appended and flushed by the driver: a trial starts, reports, has a
checkpoint, ends. A resumed sweep reads it: ended trials are taken as they are, the others go on
from their last checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.tuning.trial import Trial
from uml_core.errors import UserError

NAME = "journal.jsonl"
ENDED = ("finished", "stopped", "diverged")  # a failed trial is tried again by --resume


@dataclass
class Record:
    """One trial as far as it got.

    status  running, finished, stopped (early, by the search), diverged or failed
    """

    trial: Trial
    reports: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: str | None = None
    status: str = "running"
    error: str | None = None

    @property
    def last(self) -> dict[str, Any]:
        """The newest report; empty before the first."""
        return self.reports[-1] if self.reports else {}

    @property
    def score(self) -> float:
        """Mean over seeds of the best validation accuracy so far, percent."""
        return float(self.last.get("val_accuracy", 0.0))

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in ENDED


class Journal:
    """The records of a sweep by key, and the file they are kept in."""

    def __init__(self, out: Path) -> None:
        self.path = out / NAME
        self.records: dict[str, Record] = {}
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            for line in whole:
                self._take(json.loads(line))
            self.path.write_text("".join(whole), encoding="utf-8")  # a torn line spoils the next

    def start(self, trial: Trial) -> None:
        """A trial begins, or goes on after a resume."""
        self._add({"kind": "start", "trial": trial.to_json()})

    def report(self, key: str, metrics: dict[str, Any]) -> None:
        """A validation; one that was reported before the kill is not taken twice."""
        record = self.records[key]
        if record.last.get("step", -1) < metrics["step"] or "test_accuracies" in metrics:
            self._add({"kind": "report", "key": key, "metrics": metrics})

    def checkpoint(self, key: str, path: str) -> None:
        """Where the trial could go on from."""
        if self.records[key].checkpoint != path:
            self._add({"kind": "checkpoint", "key": key, "path": path})

    def end(self, key: str, status: str, error: str | None = None) -> None:
        """A trial has ended."""
        self._add({"kind": "end", "key": key, "status": status, "error": error})

    def of(self, trials: Iterable[Trial]) -> list[Record]:
        """The records of these trials, in their order."""
        return [self.records[trial.key] for trial in trials if trial.key in self.records]

    def prune(self, keep: int) -> None:
        """Removes the checkpoints of ended trials that are not among the `keep` best finished."""
        finished = [r for r in self.records.values() if r.status == "finished"]
        best = sorted(finished, key=lambda r: -r.score)[:keep]
        for record in self.records.values():
            test = record.trial.test  # the confirmation's weights become the exported model
            if record.ended and record.checkpoint and record not in best and not test:
                shutil.rmtree(record.checkpoint, ignore_errors=True)

    def _add(self, event: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            try:
                trial = Trial(**event["trial"])
            except TypeError as error:
                raise UserError(
                    f"{self.path} was written by another version of the project: finish the sweep "
                    "with that version, or start it anew in another --out"
                ) from error
            known = self.records.get(trial.key)
            self.records[trial.key] = Record(
                trial,
                [] if known is None else known.reports,
                None if known is None else known.checkpoint,
            )
            return
        record = self.records[event["key"]]
        match event["kind"]:
            case "report":
                record.reports.append(event["metrics"])
            case "checkpoint":
                record.checkpoint = event["path"]
            case "end":
                record.status, record.error = event["status"], event["error"]
