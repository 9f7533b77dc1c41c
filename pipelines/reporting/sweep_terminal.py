"""What a person sees of a sweep in the terminal."""

from __future__ import annotations

from typing import TextIO

from rich.text import Text

from pipelines.reporting import sweep_answer
from pipelines.reporting.answer import GAINS, gains, interval, number
from pipelines.reporting.terminal import console, table

SHOWN = 8  # configurations in the table


def print_sweep(sweep: sweep_answer.Sweep, stream: TextIO | None = None) -> None:
    """The best configurations, the knobs, the confirmation, and the answer in one sentence."""
    out = console(stream)
    out.print()
    out.print(Text(sweep_answer.question(sweep), style="bold"))
    out.print()
    out.print(table([sweep_answer.knobs(sweep), "validation %", "GFLOPs"], _trial_rows(sweep)))
    rows = sweep_answer.knob_rows(sweep)
    if rows:
        out.print()
        out.print(table(["knob", "explains alone", "by chance"], rows))
    if sweep["confirmation"]:
        entry = sweep["confirmation"]
        out.print()
        heads = [f"on {len(entry['seeds'])} fresh seeds, test", "points", "95 % interval"]
        body = [
            [GAINS[key], number(g.mean), interval(g).removeprefix("95 % interval ")]
            for key, g in gains(entry).items()
        ]
        out.print(table(heads, body))
    out.print()
    shown = sweep_answer.is_shown(sweep)
    out.print(Text(sweep["sentence"], style="bold green" if shown else "bold"))
    if sweep["adaptive_sentence"]:
        out.print(Text(sweep["adaptive_sentence"]))


def _trial_rows(sweep: sweep_answer.Sweep) -> list[list[str | Text]]:
    """The best finished trials and the baseline."""
    finished = [t for t in sweep["trials"] if t["status"] == "finished" and t["score"]]
    ordered = sorted(finished, key=lambda t: -t["score"]["mean"])
    kept = [t for i, t in enumerate(ordered) if i < SHOWN or t["key"] == sweep["baseline"]]
    rows: list[list[str | Text]] = []
    for trial in kept:
        name = sweep_answer.values(trial)
        if trial["key"] == sweep["baseline"]:
            name += " (baseline)"
        style = "bold" if trial["key"] == sweep["best"]["key"] else ""
        cells = (name, sweep_answer.score(trial), f"{trial['flops'] / 1e9:,.1f}")
        rows.append([Text(cell, style) for cell in cells])
    return rows
