"""An evaluation for a person: tables in the terminal, sections of the report.

Everything is made from evaluate.json and the figures beside it, so that `uml report` can write
the page again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from markupsafe import Markup
from rich.text import Text

from pipelines.reporting import answer, sections, terminal
from pipelines.reporting.sections import Section

FIGURES = "figures"
SCALE = 1.4  # screen pixels per point of a figure: its text is then as large as the page's
_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ')
SHOWN_CLASSES = 5  # weakest classes in the terminal

Evaluation = Mapping[str, Any]  # the object of evaluate.json


def title(found: Evaluation) -> str:
    """What was evaluated."""
    return f"What the {found['target']} model learnt {answer.budget(found)}"


def sentence(found: Evaluation) -> str:
    """The main number in words."""
    test, linear = found["test"], found["probes"]["linear"]
    before = found["probes"]["linear, untrained"]["test_accuracy"]["value"]
    text = (
        f"{test['rule'][0].upper()}{test['rule'][1:]}: {_percent(test['accuracy'])} of "
        f"{test['samples']:,} test samples right."
    )
    if test["rule"] != "linear probe":
        text += f" A linear probe on the frozen features: {_percent(linear['test_accuracy'])}."
    return f"{text} The same probe on untrained weights: {before:.1f} %."


def accuracy_rows(found: Evaluation) -> Iterator[tuple[str, str, str, str]]:
    """(what, accuracy, interval, note) of everything that was judged on the own test set."""
    test = found["test"]
    yield test["rule"], *_cells(test["accuracy"]), f"{test['samples']:,} samples"
    for name, probe in found["probes"].items():
        if name == test["rule"].removesuffix(" probe"):
            continue
        chosen = ", ".join(f"{key} = {value:g}" for key, value in probe["chosen"].items())
        label = "linear probe, untrained" if "untrained" in name else f"{name} probe"
        yield label, *_cells(probe["test_accuracy"]), chosen
    for name, view in (found["views"] or {}).items():
        if name == found["target"]:
            continue  # the linear probe above
        yield f"linear probe on {name}", *_cells(view["test_accuracy"]), f"C = {view['C']:g}"
    for point in found["few_shot"]["points"]:
        draws = f"{len(point['accuracies'])} draws"
        yield f"{point['shots']}-shot probe", *_cells(point["mean"]), draws


def shift_rows(found: Evaluation) -> Iterator[tuple[str, str, str, str, str]]:
    """(set, accuracy, own test set, drop in points, judged) of every named test set."""
    for name, shift in found["tests"].items():
        left = shift["skipped"] + shift["unlabelled"]
        judged = f"{shift['samples']:,}" + (f", {left:,} left out" if left else "")
        accuracy, own = (f"{shift[key]['value']:.1f} %" for key in ("accuracy", "own"))
        low, high = (answer.number(v) for v in shift["drop"]["ci95"])
        drop = f"{answer.number(shift['drop']['value'])} ({low} to {high})"
        yield name, accuracy, own, drop, judged


def print_evaluation(found: Evaluation, stream: TextIO | None = None) -> None:
    """The tables of an evaluation and its sentences, within 80 columns."""
    out = terminal.console(stream)
    out.print()
    out.print(Text(title(found), style="bold"))
    out.print()
    columns = ["judged on the test set", "accuracy", "95 % interval", ""]
    out.print(terminal.table(columns, [list(row) for row in accuracy_rows(found)]))
    if found["tests"]:
        out.print()
        columns = ["other test set", "accuracy", "own", "drop (points)", "samples"]
        out.print(terminal.table(columns, [list(row) for row in shift_rows(found)]))
    out.print()
    weakest = sorted(found["test"]["per_class"].items(), key=lambda item: item[1]["recall"])
    rows = [[name, f"{c['recall']:.0f} %", str(c["samples"])] for name, c in weakest]
    out.print(terminal.table(["weakest classes", "right", "samples"], rows[:SHOWN_CLASSES]))
    out.print()
    rows = [[a["name"], a["value"], a["reference"]] for a in found["analyses"].values()]
    out.print(terminal.table(["analysis", "found", "against"], rows))
    for name, why in found["left_out"].items():
        out.print(Text(f"left out: {name}: {why}", style="dim"))
    out.print()
    out.print(Text(sentence(found), style="bold"))


# --------------------------------------------------------------------------------- report


def lead(found: Evaluation) -> Markup:
    """The sentence at the head of the page."""
    return sections.fill("verdict", shown=False, word="Frozen weights", sentence=sentence(found))


def tiles(found: Evaluation) -> Markup:
    """The main accuracies as large numbers."""
    shown = [(found["test"]["rule"], found["test"]["accuracy"])]
    for name in ("linear", "linear, untrained"):
        if name != found["test"]["rule"].removesuffix(" probe"):
            label = f"{name.replace('linear', 'linear probe')}"
            shown.append((label, found["probes"][name]["test_accuracy"]))
    made = [
        (label, f"{value['value']:.1f}", "%", f"95 % interval {_interval(value)}")
        for label, value in shown
    ]
    return sections.fill("tiles", tiles=made)


def body(found: Evaluation, folder: Path) -> list[Section]:
    """All sections; `folder` holds the figures."""
    made = [_accuracies(found)]
    if found["tests"]:
        made.append(_shifts(found))
    for key, analysis in found["analyses"].items():
        figure = folder / FIGURES / f"{key}.svg"
        drawn = figure.read_text(encoding="utf-8") if figure.is_file() else ""
        wide = _VIEW_BOX.search(drawn)
        html = sections.fill(
            "finding",
            analysis=analysis,
            figure=Markup(drawn),
            width=round(float(wide[1]) * SCALE) if wide else 0,
        )
        made.append(Section(analysis["title"], html))
    if found["left_out"]:
        rows = list(found["left_out"].items())
        made.append(Section("What could not be measured", sections.fill("facts", rows=rows)))
    return made


def _accuracies(found: Evaluation) -> Section:
    columns = ["judged by", "accuracy", "95 % interval", ""]
    html = sections.fill("table", caption="", columns=columns, rows=list(accuracy_rows(found)))
    fresh = "other than" if found["few_shot"]["fresh_labels"] else "also among"
    rows = [
        (
            name,
            f"{c['recall']:.0f} %",
            "never called" if c["precision"] is None else f"{c['precision']:.0f} %",
            str(c["samples"]),
        )
        for name, c in found["test"]["per_class"].items()
    ]
    html += sections.fill("per_class", rows=rows)
    note = (
        f"Intervals are bootstraps over test samples; those of k-shot probes are over draws of the "
        f"k samples, which are {fresh} the labelled samples that the model was trained on. Probes "
        "fit a linear rule or a vote of neighbours on features that stay as they are; what they "
        "reach on untrained weights is owed to the inputs and the architecture."
    )
    return Section("On the own test set", html + sections.fill("note", text=note))


def _shifts(found: Evaluation) -> Section:
    columns = ["test set", "accuracy", "own test set", "drop in points (95 %)", "samples"]
    html = sections.fill("table", caption="", columns=columns, rows=list(shift_rows(found)))
    note = (
        "Both sides are judged on the classes that the set's label map names, and only these can "
        "be predicted. A small drop is good: what was learnt carries over to these circumstances. "
        "Samples of other classes, and those without a label, are counted and left out."
    )
    shared = {name: s["overlap"] for name, s in found["tests"].items() if s["overlap"]}
    for name, share in shared.items():
        note += f" {name}: {100 * share:.1f} % of its samples also occur in training."
    return Section("On other test sets", html + sections.fill("note", text=note))


def _cells(value: Mapping[str, Any]) -> tuple[str, str]:
    centre = value.get("value", value.get("mean"))
    return f"{centre:.1f} %", _interval(value)


def _interval(value: Mapping[str, Any]) -> str:
    ends = value["ci95"]
    return "none" if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}"


def _percent(value: Mapping[str, Any]) -> str:
    return f"{value['value']:.1f} % ({_interval(value)})"
