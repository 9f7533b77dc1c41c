"""What a person sees in the terminal: answers, progress, notes and errors.

Answers go to stdout; everything else goes to stderr, so that ``--json`` stays readable by
programs. Without a terminal there is neither colour nor a moving bar. Errors and notes come at
once: sentences and statistics of an answer are imported where there is an answer. Urls are shown
without their secrets.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from uml_core.addresses import redacted

if TYPE_CHECKING:
    from pipelines.reporting import answer

WIDTH = 80
ACROSS = 5  # numbers of shots that fit beside each other


def console(stream: TextIO | None = None) -> Console:
    """A console of at most 80 columns on `stream` (default: the present stdout)."""
    made = Console(file=stream or sys.stdout, highlight=False, markup=False)
    made.width = min(made.width, WIDTH)
    return made


def note(text: str) -> None:
    """One line for the person who watches, on stderr; paths and urls in it are never broken."""
    console(sys.stderr).print(Text(redacted(text), style="dim"), soft_wrap=True)


def print_errors(problems: Sequence[str]) -> None:
    """All problems of a user's input as one list, on stderr."""
    out = console(sys.stderr)
    title = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    out.print(Text(f"{title}; nothing was written:", style="bold red"))
    for problem in problems:
        # soft_wrap: a path that is broken over two lines cannot be copied
        out.print(Text(f"  - {redacted(problem)}"), soft_wrap=True)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, narrow: bool = False
) -> Table:
    """A small table, the first column to the left and the others to the right.

    narrow  one space between columns instead of three
    """
    made = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        safe_box=True,
        padding=(0, 0) if narrow else (0, 1),
    )
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def print_answer(compare: answer.Compare, stream: TextIO | None = None) -> None:
    """The arms of a comparison, its gains, and the answer in one sentence."""
    from pipelines.reporting import answer

    out = console(stream)
    entries = answer.results(compare)
    out.print()
    out.print(Text(answer.question(compare), style="bold"))
    if len(entries) == 1:
        out.print()
        out.print(table(["arm", "test accuracy", "seeds"], _arm_rows(entries[0])))
        out.print()
        out.print(table(["difference", "points", "95 % interval"], _gain_rows(entries[0])))
    else:
        for start in range(0, len(entries), ACROSS):
            _print_by_shots(out, entries[start : start + ACROSS])
    out.print()
    shown = any(answer.is_shown(entry) for entry in entries)
    out.print(Text(answer.sentence(compare), style="bold green" if shown else "bold"))
    if compare.get("exchange"):
        _print_exchange(out, compare["exchange"])


def _print_by_shots(out: Console, entries: Sequence[answer.Compare]) -> None:
    """Accuracies and differences of several numbers of shots, side by side."""
    from pipelines.reporting import answer

    for title, columns, rows in answer.by_shots(entries):
        out.print()
        out.print(Text(title))
        shown = [[Text(c, "bold" if row[0] == "UML" else "") for c in row] for row in rows]
        out.print(table(columns, shown, narrow=True))
    out.print()
    out.print(Text(f"± half of a 95 % interval over {len(entries[0]['seeds'])} seeds"))


def _print_exchange(out: Console, found: Mapping[str, Any]) -> None:
    """The grid of accuracies behind an exchange rate, and the rate in words."""
    out.print()
    target, auxiliary = found["target"], found["auxiliary"]
    columns = [f"{target} \\ {auxiliary}", *(f"{k:g}" for k in found["auxiliary_shots"])]
    rows = [
        [f"{k:g} per class", *(f"{a:.1f} %" for a in row)]
        for k, row in zip(found["target_shots"], found["accuracy"], strict=True)
    ]
    out.print(table(columns, rows))
    out.print()
    out.print(Text(found["sentence"], style="bold"))


def _arm_rows(entry: answer.Compare) -> list[list[str | Text]]:
    from pipelines.reporting import answer
    from uml_core.statistics import mean_interval

    rows: list[list[str | Text]] = []
    for arm, facts in entry["arms"].items():
        found = mean_interval(facts["test_accuracy"])
        text = f"{found.mean:.1f} %"
        if found.half_width is not None:
            text = f"{found.mean:.1f} ± {found.half_width:.1f} %"
        name = f"{answer.arm_name(arm)} (baseline)" if arm == entry["baseline"] else None
        style = "bold" if arm == "uml" else ""
        rows.append(
            [
                Text(name or answer.arm_name(arm), style),
                Text(text, style),
                str(len(facts["test_accuracy"])),
            ]
        )
    return rows


def _gain_rows(entry: answer.Compare) -> list[list[str | Text]]:
    from pipelines.reporting import answer

    rows: list[list[str | Text]] = []
    for key, gain in answer.gains(entry).items():
        ends = "none" if gain.ci95 is None else " to ".join(map(answer.number, gain.ci95))
        rows.append([answer.GAINS[key], answer.number(gain.mean), ends])
    return rows


def print_paths(paths: dict[str, Path | str], stream: TextIO | None = None) -> None:
    """Where to look next, one line per thing; paths are never broken."""
    out = console(stream)
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        out.print(Text(f"{name:<{width}}  {redacted(str(path))}"), soft_wrap=True)


class Progress:
    """Progress of long work on stderr: a moving bar, or a line now and then without a terminal.

        with Progress("Training", total=600, unit="steps") as progress:
            progress.update(120, note="uml, seed 3")

    total: None where the end is not known. every: seconds between lines without a terminal.
    """

    def __init__(
        self, title: str, total: int | None = None, unit: str = "", every: float = 15.0
    ) -> None:
        self.title, self.total, self.unit, self.every = title, total, unit, every
        self.done = 0
        self._note = ""
        self._out = console(sys.stderr)
        self._bar: RichProgress | None = None
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        self._began = self._said = time.monotonic()
        if self._out.is_terminal:
            self._bar = RichProgress(
                *([SpinnerColumn()] if self.total is None else []),
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                *([] if self.total is None else [TextColumn("left"), TimeRemainingColumn()]),
                console=self._out,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total)
        return self

    def advance(self, amount: int = 1, note: str = "") -> None:
        """`amount` more units are done."""
        self.update(self.done + amount, note)

    def update(self, done: int, note: str = "") -> None:
        """`done` units are done in all."""
        self.done, self._note = done, note
        if self._bar is not None:
            title = f"{self.title}: {note}" if note else self.title
            self._bar.update(self._task, completed=done, description=title)
        elif time.monotonic() - self._said >= self.every:
            self._line()

    def say(self, text: str) -> None:
        """A line that stays above the bar."""
        out = self._bar.console if self._bar is not None else self._out
        out.print(Text(redacted(text)), soft_wrap=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._line()

    def _line(self) -> None:
        now = time.monotonic()
        self._said = now
        passed = now - self._began
        of = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.title}: {self.done}{of} {self.unit}".rstrip(), f"{clock(passed)} passed"]
        if self.total is not None and 0 < self.done < self.total:
            left = passed / self.done * (self.total - self.done)
            parts.append(f"about {clock(left)} left")
        if self._note:
            parts.append(self._note)
        self._out.print(Text(redacted(", ".join(parts))), soft_wrap=True)


def clock(seconds: float) -> str:
    """``"1:02:03"``, or ``"2:03"`` below an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
