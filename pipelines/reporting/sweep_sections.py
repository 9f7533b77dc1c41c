"""The parts of a sweep's report; see `sections` for what a part is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from pipelines.reporting import sweep_answer, sweep_plots
from pipelines.reporting.sections import Section, fill
from pipelines.reporting.terminal import clock


def verdict(sweep: sweep_answer.Sweep) -> Markup:
    """The answer as one sentence under a word that says whether a gain was shown."""
    return fill(
        "verdict",
        shown=sweep_answer.is_shown(sweep),
        word=sweep_answer.verdict(sweep),
        sentence=sweep["sentence"],
    )


def frontier(sweep: sweep_answer.Sweep) -> Section:
    """Accuracy against the ratio and against the cost, the baseline as a line."""
    note = (
        f"Each mark is one configuration: the mean over {len(sweep['seeds'])} seeds on validation "
        "samples; bars and the band of the line are 95 % intervals. Hollow: stopped early."
    )
    charts = [Markup(chart) for chart in sweep_plots.frontier_charts(sweep)]
    return Section("Accuracy, ratio and cost", fill("charts", charts=charts, arms=[], note=note))


def knobs(sweep: sweep_answer.Sweep) -> Section:
    """Which knobs mattered, and the exchange rate where the space allows one."""
    rows = [list(row) for row in sweep_answer.knob_rows(sweep)]
    html = Markup("")
    if rows:
        at = sweep["importance"]["validation"]
        columns = ["knob", "explains alone", "by chance"]
        html += fill("table", caption="", columns=columns, rows=rows)
        html += fill(
            "note",
            text="Share of the differences between configurations (omega squared) at the last "
            f"validation that all of them reached (number {at}); p by random reordering.",
        )
    else:
        html += fill("note", text="Too few different configurations to tell.")
    if sweep["exchange"]:
        html += fill("note", text=sweep["exchange"]["sentence"] + " Measured on validation.")
    return Section("Which knobs mattered", html)


def adaptive(sweep: sweep_answer.Sweep) -> Section:
    """The mix learned during the run against the best fixed one, on the confirmation's seeds."""
    html = fill("note", text=sweep["adaptive_sentence"])
    mixes = sweep["confirmation"]["adaptive"]["mix"]
    if mixes and all(mixes):
        chart = [Markup(chart) for chart in sweep_plots.mix_charts(sweep)]
        note = (
            "Lines are means over seeds, bands go from the lowest to the highest seed. The gain is "
            "the cosine of a modality's gradient with that of the validation loss, weighted by its "
            "size (uml_core/adaptive.py)."
        )
        html += fill("charts", charts=chart, arms=[], note=note)
    return Section("A mix learned during the run", html)


def trials(sweep: sweep_answer.Sweep) -> Section:
    """Every trial with what it cost."""
    ordered = sorted(sweep["trials"], key=lambda t: -(t["score"] or {"mean": -1.0})["mean"])
    target = sweep["target"]
    columns = ["trial", "knobs", "validation, %", "state", f"{target} samples", "GFLOPs", "time"]
    caption = f"Knobs: {sweep_answer.knobs(sweep)}. Cost and time are those of one seed and of all."
    html = fill("table", caption=caption, columns=columns, rows=[_row(t, sweep) for t in ordered])
    failed = [t for t in sweep["trials"] if t["status"] == "failed"]
    for trial in failed:
        html += fill("note", text=f"{trial['key']} failed: {trial['error']}")
    return Section("Trials", html)


def _row(trial: Mapping[str, Any], sweep: sweep_answer.Sweep) -> list[str]:
    state = trial["status"]
    if state == "stopped":
        state = f"stopped at {trial['spent']} %"
    best = trial["key"] in (sweep["best"]["key"], sweep["baseline"])
    return [
        f"{trial['key']}{' (best)' if best else ''}",
        sweep_answer.values(trial),
        sweep_answer.score(trial),
        state,
        f"{trial['target_samples']:,}",
        f"{trial['flops'] / 1e9:,.1f}",
        clock(trial["seconds"]),
    ]
