"""What a check of shards found: problems by their cause, and how a terminal shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from pipelines.streams import storage
from uml_core.addresses import redacted


class Found(NamedTuple):
    """A problem; lost: a run leaves the sample out and lists it in quarantine.jsonl."""

    shard: str  # or what data it concerns
    key: str | None
    cause: str
    lost: bool


@dataclass
class Findings:
    """Everything found."""

    problems: list[Found] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def add(self, where: str, key: str | None, cause: str, lost: bool = False) -> None:
        self.problems.append(Found(where, key, cause, lost))


def by_cause(problems: Sequence[Found]) -> list[tuple[Found, int]]:
    """The first problem of every cause and how often it occurs; names and numbers may differ."""
    found: dict[str, list[Any]] = {}
    for problem in problems:
        found.setdefault(_VALUES.sub("", problem.cause), [problem, 0])[1] += 1
    return [(first, count) for first, count in found.values()]


_VALUES = re.compile(r"'[^']*'|\d+|(?<=such as ).*$")


def table(causes: Sequence[tuple[Found, int]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, safe_box=True)
    repeated = any(count > 1 for _, count in causes)
    if repeated:
        table.add_column("times", justify="right")
    table.add_column("shard", overflow="fold", max_width=24)
    table.add_column("key", overflow="fold", max_width=20)
    table.add_column("cause", overflow="fold")
    for (where, key, cause, _), count in causes:
        name = os.path.basename(where) if os.path.isabs(where) else storage.name_of(where)
        row = [name if "/" in where else where, key or "-", cause]
        table.add_row(*([str(count)] if repeated else []), *map(redacted, row))
    return table
