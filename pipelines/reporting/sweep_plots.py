"""Figures of a sweep: accuracy against the ratio and against the cost; knobs; the learned mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from pipelines.reporting import plots, sweep_answer
from pipelines.reporting.plots import COLOURS
from uml_core.statistics import Gain

# Series of mixes; the reserve of plots.COLOURS, which the report knows as CSS variables.
_SERIES = ("arm-uml", "arm-uml_permuted", "arm-unimodal_direct", "arm-other", "arm-uml_init")
_MARKS = ("o", "s", "^", "D", "v")


def save_frontier(sweep: sweep_answer.Sweep, path: Path) -> None:
    """frontier.png: accuracy against the ratio (or the most telling knob) and against cost."""
    draws = [lambda ax: _against_knob(ax, sweep), lambda ax: _against_cost(ax, sweep)]
    plots.save(draws, sweep_answer.question(sweep), path)


def frontier_charts(sweep: sweep_answer.Sweep) -> list[str]:
    """The two panels of frontier.png as inline SVG."""
    return [plots.inline(_against_knob, sweep), plots.inline(_against_cost, sweep)]


def mix_charts(sweep: sweep_answer.Sweep) -> list[str]:
    """Inline SVG: the ratios that the adaptive run learned and the gains it saw, against steps."""
    mixes = sweep["confirmation"]["adaptive"]["mix"]
    titles = {"ratio": "Learned batches per target batch", "gain": "Predicted gain"}
    return [plots.inline(_learned, mixes, what, title) for what, title in titles.items()]


def axis_knob(sweep: sweep_answer.Sweep) -> str | None:
    """The knob of the horizontal axis: the ratio, else the numeric one that matters most."""
    names = list(sweep["trials"][-1]["values"])
    ratio = [n for n in names if n.endswith(f"batches per {sweep['target']} batch")]
    ranked = [n for n in sweep["importance"]["knobs"] if n in names]
    numeric = [n for n in (*ratio, *ranked, *names) if _numeric(sweep, n)]
    return numeric[0] if numeric else None


def _numeric(sweep: sweep_answer.Sweep, name: str) -> bool:
    found = [t["values"][name] for t in sweep["trials"] if name in t["values"]]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)


def _series(sweep: sweep_answer.Sweep) -> dict[str, list[Mapping[str, Any]]]:
    """Trials with auxiliary data by their mix (one series where there is no such knob)."""
    out: dict[str, list[Mapping[str, Any]]] = {}
    for trial in sweep["trials"]:
        if trial["kind"] == "trial" and trial["score"]:
            out.setdefault(str(trial["values"].get("mix", "trials")), []).append(trial)
    return out


def _against_knob(ax: Axes, sweep: sweep_answer.Sweep) -> None:
    name = axis_knob(sweep)
    places = [t["values"][name] for t in sweep["trials"] if name and name in t["values"]]
    log = bool(places) and min(places) > 0 and max(places) >= 4 * min(places)
    for number, (mix, trials) in enumerate(_series(sweep).items()):
        x = [t["values"][name] if name else i for i, t in enumerate(trials)]
        # Series side by side: a small shift keeps intervals at the same ratio apart.
        x = [v * 1.04**number if log else v for v in x]
        _points(ax, x, trials, number, mix)
    _baseline(ax, sweep)
    if log:
        ax.set_xscale("log")
        ticks = sorted(set(places)) if len(set(places)) <= 8 else None
        if ticks:
            ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
            ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(name or "configuration")
    _finish(ax, "Validation accuracy (%), 95 % intervals")


def _against_cost(ax: Axes, sweep: sweep_answer.Sweep) -> None:
    done: list[tuple[float, float]] = []
    for number, (mix, trials) in enumerate(_series(sweep).items()):
        x = [t["flops"] / 1e9 for t in trials]
        _points(ax, x, trials, number, mix)
        whole = [t for t in trials if t["status"] == "finished"]
        done += [(t["flops"] / 1e9, t["score"]["mean"]) for t in whole]
    alone = [t for t in sweep["trials"] if t["kind"] == "baseline" and t["score"]]
    done += [(t["flops"] / 1e9, t["score"]["mean"]) for t in alone]
    _baseline(ax, sweep)
    best, front = -np.inf, []
    for cost, score in sorted(done):
        if score > best:
            best = score
            front.append((cost, score))
    ax.plot(*zip(*front, strict=True), color=COLOURS["ink"], lw=1, ls=(0, (1, 2)), zorder=1)
    ax.set_xlabel("GFLOPs of one seed (dotted: best at each cost)")
    _finish(ax, "What accuracy costs")


def _points(
    ax: Axes, x: Sequence[float], trials: Sequence[Mapping[str, Any]], number: int, label: str
) -> None:
    shade, mark = COLOURS[_SERIES[number % 5]], _MARKS[number % 5]
    for at, trial in zip(x, trials, strict=True):
        found = Gain.from_json(trial["score"])
        whole = trial["status"] == "finished"
        if whole and found.ci95 is not None:
            ax.plot([at, at], found.ci95, color=shade, lw=4, alpha=0.25, solid_capstyle="butt")
        face = shade if whole else COLOURS["paper"]
        ax.plot([at], [found.mean], mark, ms=6, mfc=face, mec=shade, ls="")
    ax.plot([], [], mark, ms=6, mfc=shade, mec=shade, ls="", label=label)


def _baseline(ax: Axes, sweep: sweep_answer.Sweep) -> None:
    found = next(t for t in sweep["trials"] if t["key"] == sweep["baseline"])
    score = Gain.from_json(found["score"])
    shade = COLOURS["arm-unimodal"]
    if score.ci95 is not None:
        ax.axhspan(*score.ci95, color=shade, alpha=0.15, lw=0)
    ax.axhline(score.mean, color=shade, lw=1.6, label=f"{sweep['target']} alone")


def _finish(ax: Axes, title: str) -> None:
    ax.set_title(title)
    ax.grid(axis="y")
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.margins(x=0.06)
    ax.legend(frameon=False, fontsize=8, loc="best")


def _learned(ax: Axes, mixes: Sequence[Sequence[Mapping[str, Any]]], what: str, title: str) -> None:
    common = min(len(seed) for seed in mixes)  # a seed may have stopped early
    for number, name in enumerate(mixes[0][0][what]):
        steps = [entry["step"] for entry in mixes[0][:common]]
        values = np.array([[entry[what][name] for entry in seed[:common]] for seed in mixes])
        shade = COLOURS[_SERIES[number % 5]]
        low, high = values.min(0), values.max(0)
        ax.fill_between(steps, low, high, color=shade, alpha=0.13, lw=0, step="post")
        ax.step(steps, values.mean(0), color=shade, lw=1.8, where="post", label=name)
    ax.set_xlabel("steps")
    _finish(ax, title)
