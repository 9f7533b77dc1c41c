"""Figures of results: one drawing for the PNG file and, with CSS colours, for the report.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; arms also differ in line
style. `svg` replaces each colour by a CSS variable of the same name, so that a figure inside the
report follows its light or dark scheme.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.files import replaced
from pipelines.reporting import answer
from uml_core.analysis.arms import ArmGeometry
from uml_core.few_shot import FewShotCurve
from uml_core.statistics import Gain, mean_interval

# name of the CSS variable -> colour on white; every colour must be unique for `svg` to work
COLOURS = {
    "ink": "#1c2430",
    "muted": "#66707f",
    "grid": "#e3e6ea",
    "paper": "#fefefe",
    "arm-unimodal": "#767d89",
    "arm-unimodal_direct": "#009e73",
    "arm-uml": "#0072b2",
    "arm-uml_init": "#56b4e9",
    "arm-uml_permuted": "#d55e00",
    "arm-other": "#aa4499",
}
DASHES = {
    "unimodal": "6 0",
    "unimodal_direct": "2 2",
    "uml": "8 0",
    "uml_init": "8 3",
    "uml_permuted": "5 2",
}
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlecolor": COLOURS["ink"],
    "axes.linewidth": 0.8,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "grid.color": COLOURS["grid"],
    "figure.facecolor": COLOURS["paper"],
    "axes.facecolor": COLOURS["paper"],
    "svg.fonttype": "none",
    "svg.hashsalt": "uml",
}
Curves = Mapping[str, Mapping[str, Any]]  # arms of curves.json


def colour_name(arm: str) -> str:
    """The CSS variable of an arm's colour."""
    name = f"arm-{arm}"
    return name if name in COLOURS else "arm-other"


def colour(arm: str) -> str:
    """An arm's colour on white."""
    return COLOURS[colour_name(arm)]


def save_comparison(compare: answer.Compare, path: Path) -> None:
    """compare.png: arms and gains side by side, or both against the number of shots."""
    entries = answer.results(compare)
    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=(10, 3.4), layout="constrained")
        left, right = fig.subplots(1, 2)
        if len(entries) == 1:
            _arms(left, entries[0])
            _gains(right, entries[0])
        else:
            _accuracy_by_shots(left, entries)
            _gain_by_shots(right, entries)
            left.legend(frameon=False, fontsize=9)
            right.legend(frameon=False, fontsize=9)
        fig.suptitle(answer.question(compare), fontsize=12, x=0.01, ha="left")
        with replaced(path) as scratch:
            fig.savefig(scratch, format="png", dpi=150)


def shots_charts(entries: Sequence[answer.Compare]) -> list[str]:
    """Two inline SVG: accuracy and gain against the number of shots, with interval bands."""
    return [inline(_accuracy_by_shots, entries), inline(_gain_by_shots, entries)]


def accuracy_chart(arms: Curves) -> str:
    """Inline SVG: validation accuracy against steps, mean and range over seeds per arm."""

    def draw(ax: Axes) -> None:
        for arm, curve in arms.items():
            _band(ax, arm, curve["steps"], seed_matrix(curve["val_accuracy"]))
        ax.set_title("Validation accuracy (%)")
        ax.set_xlabel("steps on the target")

    return inline(draw)


def loss_charts(arms: Curves) -> list[str]:
    """Inline SVG per modality: training loss against steps, mean and range over seeds per arm."""
    names = dict.fromkeys(name for curve in arms.values() for name in curve.get("loss", {}))

    def draw(ax: Axes, modality: str) -> None:
        for arm, curve in arms.items():
            if modality in curve.get("loss", {}):
                _band(ax, arm, curve["steps"], seed_matrix(curve["loss"][modality]))
        ax.set_title(f"Training loss, {modality}")
        ax.set_xlabel("steps on the target")

    return [inline(draw, name) for name in names]


def analysis_chart(draw: Callable[..., Figure], *args: Any, width: float = 4.9) -> str:
    """Inline SVG of a figure of uml_core.analysis.plots, in the style of the others here."""
    with mpl.rc_context(_STYLE):
        fig = draw(*args)
        fig.set_size_inches(width, 3.1)
        return svg(fig)


def seed_matrix(per_seed: Sequence[Sequence[float | None]]) -> np.ndarray:
    """(seeds, steps) floats of curves that may stop early: a stopped seed keeps its last value."""
    longest = max(len(values) for values in per_seed)
    rows = []
    for values in per_seed:
        row = [np.nan if v is None else float(v) for v in values]
        rows.append(row + [row[-1] if row else np.nan] * (longest - len(row)))
    return np.array(rows)


def save(draws: Sequence[Callable[[Axes], None]], title: str, path: Path) -> None:
    """A PNG file with one panel per drawing, side by side."""
    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=(10, 3.8), layout="constrained")
        panels = np.atleast_1d(fig.subplots(1, len(draws)))
        for draw, ax in zip(draws, panels, strict=True):
            draw(ax)
        fig.suptitle(title, fontsize=12, x=0.01, ha="left")
        fig.savefig(path, dpi=150)


def few_shot_figure(curve: FewShotCurve, chance: float) -> Figure:
    """Test accuracy against the samples per class: draws, mean and interval; dotted: chance."""
    fig = Figure(figsize=(6.5, 3.4), layout="constrained")
    ax = fig.subplots()
    shade = COLOURS["arm-uml"]
    places = np.arange(len(curve.points))
    means = [point.mean.mean for point in curve.points]
    for place, point in zip(places, curve.points, strict=True):
        values = np.asarray(point.accuracies)
        spread = 0.05 * (np.arange(len(values)) % 3 - 1)
        ax.plot(place + spread, values, "o", ms=4, alpha=0.45, mew=0, color=shade)
        if point.mean.ci95 is not None:
            ax.plot([place] * 2, point.mean.ci95, color=shade, lw=7, alpha=0.22)
    ax.plot(places, means, color=shade, lw=2)
    for place, mean in zip(places, means, strict=True):
        ax.annotate(f"{mean:.1f}", (place, mean), xytext=(0, 9), textcoords="offset points")
    ax.axhline(chance, color=COLOURS["muted"], ls=":", lw=1.2)
    ax.annotate(
        "chance", (places[-1], chance), xytext=(0, 4), textcoords="offset points", ha="right"
    )
    ax.set_xticks(places, [str(point.shots) for point in curve.points])
    ax.set_xlabel("labelled samples per class (the scale is not linear)")
    ax.set_title("Test accuracy of a linear probe (%): draws, mean, 95 % interval")
    ax.set_ylim(bottom=0)
    ax.grid(axis="y")
    return fig


def geometry_figure(arms: ArmGeometry, names: Mapping[str, str]) -> Figure:
    """One panel per measure, one row per arm: seeds, mean and interval."""
    fig = Figure(figsize=(10, 1.6 + 0.9 * len(next(iter(arms.values.values())))))
    fig.set_layout_engine("constrained")
    panels = fig.subplots(2, 2, sharey=True)
    for ax, (measure, name) in zip(panels.flat, names.items(), strict=True):
        rows = list(arms.values[measure].items())[::-1]
        for row, (arm, values) in enumerate(rows):
            _interval(ax, row, arms.means[measure][arm], colour(arm))
            spread = 0.16 * (np.arange(len(values)) % 3 - 1)
            ax.plot(values, row + spread, "o", ms=4.5, alpha=0.55, mew=0, color=colour(arm))
        ax.set_yticks(range(len(rows)), [answer.arm_name(arm) for arm, _ in rows])
        ax.set_ylim(-0.6, len(rows) - 0.4)
        good = {"rank": "neither way better", "davies_bouldin": "smaller = better"}
        ax.set_title(f"{name[0].upper()}{name[1:]} ({good.get(measure, 'larger = better')})")
        ax.grid(axis="x")
    return fig


def save_figure(make: Callable[[], Figure], stem: Path) -> None:
    """Draws in the report's style; writes <stem>.png to look at and <stem>.svg for the page."""
    with mpl.rc_context(_STYLE):
        fig = make()
        fig.savefig(stem.with_suffix(".png"), dpi=150)
        fig.set_layout_engine("none")  # it is laid out; doing it again would take as long
        stem.with_suffix(".svg").write_text(svg(fig), encoding="utf-8")


def inline(draw: Any, *args: Any) -> str:
    """A drawing on one pair of axes as an SVG element for the report."""
    # Half a page wide: on a phone the figure shrinks little, so its text stays readable.
    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=(4.9, 3.1), layout="constrained")
        draw(fig.subplots(), *args)
        return svg(fig)


def svg(fig: Figure) -> str:
    """A figure as an SVG element for a page that defines the colours as CSS variables."""
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for name, value in COLOURS.items():
        text = text.replace(value, f"var(--{name})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Ids are per figure; several figures share one page.
    salt = f"f{zlib.crc32(text.encode()):08x}"
    text = re.sub(r'\bid="([^"]+)"', rf'id="{salt}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{salt}-", text)
    return text


def _band(ax: Axes, arm: str, steps: Sequence[float], values: np.ndarray) -> None:
    steps = list(steps)[: values.shape[1]]
    there = ~np.isnan(values).all(axis=0)
    x, kept = np.asarray(steps, dtype=float)[there], values[:, there]
    on, off = (float(part) for part in DASHES.get(arm, "3 1").split())
    style: Any = "-" if off == 0 else (0, (on, off))
    width = 2.2 if arm == "uml" else 1.6
    ax.fill_between(
        x, np.nanmin(kept, axis=0), np.nanmax(kept, axis=0), color=colour(arm), alpha=0.13, lw=0
    )
    ax.plot(x, np.nanmean(kept, axis=0), color=colour(arm), ls=style, lw=width)
    ax.grid(axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.margins(x=0.01)


def _arms(ax: Axes, entry: answer.Compare) -> None:
    for row, (arm, facts) in enumerate(reversed(entry["arms"].items())):
        values = np.asarray(facts["test_accuracy"])
        found = mean_interval(values)
        _interval(ax, row, found, colour(arm))
        spread = 0.16 * (np.arange(len(values)) % 3 - 1)
        ax.plot(values, row + spread, "o", ms=4.5, alpha=0.55, mew=0, color=colour(arm))
    names = [answer.arm_name(arm) for arm in reversed(entry["arms"])]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set_title("Test accuracy (%): seeds, mean, 95 % interval")
    ax.grid(axis="x")


def _gains(ax: Axes, entry: answer.Compare) -> None:
    found = list(answer.gains(entry).items())[::-1]
    for row, (key, gain) in enumerate(found):
        _interval(ax, row, gain, colour(answer.SIDES[key][0]))
    ax.axvline(0, color=COLOURS["ink"], lw=0.8)
    ax.set_yticks(range(len(found)), [answer.GAINS[key] for key, _ in found])
    ax.set_ylim(-0.6, len(found) - 0.4)
    ax.set_title("Difference (points): mean, 95 % interval")
    ax.grid(axis="x")


def _interval(ax: Axes, row: float, found: Gain, shade: str) -> None:
    if found.ci95 is not None:
        ax.plot(found.ci95, [row, row], color=shade, lw=7, alpha=0.25, solid_capstyle="butt")
    ax.plot([found.mean] * 2, [row - 0.2, row + 0.2], color=shade, lw=2.5)


def _places(ax: Axes, entries: Sequence[answer.Compare]) -> list[int]:
    ax.set_xticks(range(len(entries)), [str(e["shots"] or "all") for e in entries])
    ax.set_xlabel(f"labelled {entries[0]['target']} samples per class")
    ax.grid(axis="y")
    return list(range(len(entries)))


def _accuracy_by_shots(ax: Axes, entries: Sequence[answer.Compare]) -> None:
    x = _places(ax, entries)
    for arm in entries[0]["arms"]:
        found = [mean_interval(entry["arms"][arm]["test_accuracy"]) for entry in entries]
        _trend(ax, x, found, arm, answer.arm_name(arm))
    ax.set_title("Test accuracy (%)")


def _gain_by_shots(ax: Axes, entries: Sequence[answer.Compare]) -> None:
    x = _places(ax, entries)
    each = [answer.gains(entry) for entry in entries]
    for key in each[0]:
        arm, other = answer.SIDES[key]
        if other is None:
            _trend(ax, x, [found[key] for found in each], arm, answer.GAINS[key])
    ax.axhline(0, color=COLOURS["ink"], lw=0.8)
    ax.set_title("Difference to the target alone (points)")


def _trend(ax: Axes, x: Sequence[int], found: Sequence[Gain], arm: str, label: str) -> None:
    on, off = (float(part) for part in DASHES.get(arm, "3 1").split())
    style: Any = "-" if off == 0 else (0, (on, off))
    mean = [f.mean for f in found]
    low = [f.mean if f.ci95 is None else f.ci95[0] for f in found]
    high = [f.mean if f.ci95 is None else f.ci95[1] for f in found]
    ax.fill_between(x, low, high, color=colour(arm), alpha=0.15, lw=0)
    ax.plot(x, mean, "o", ls=style, color=colour(arm), lw=2, ms=4.5, label=label)
