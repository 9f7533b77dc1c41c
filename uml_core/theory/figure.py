"""theory.png: what the theory says and where the experiment bears it out, for any reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, or wanted, where jobs run

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from uml_core.theory.example import NOISY, SAMPLES, Example
from uml_core.theory.gaussian import GaussianCurves, GaussianVerdict, judge

X_COLOUR, XY_COLOUR, GREY = "#c8553d", "#1f6f8b", "#666666"
SETTING_COLOURS = ("#1f6f8b", "#6a4c93", "#d08c1f", "#3c8d5a")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
}


def draw(example: Example, curves: Sequence[GaussianCurves], path: Path) -> None:
    """Write the figure: theory above, experiment below.

    ``curves``: one entry per setting of the Gaussian experiment, at least one.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(16, 11), dpi=110, layout=_spacing())
        figure.suptitle(
            "When does data of another kind (Y) help to learn about X, although nothing is paired?",
            fontsize=18,
            fontweight="bold",
            x=0.012,
            ha="left",
        )
        theory, experiment = np.asarray(figure.subfigures(2, 1, hspace=0.06))
        _row(
            theory,
            f"THEORY  Exact formulas, linear model: X and Y share {len(example.strength)} "
            "unknown quantities, each has private ones, all samples are noisy",
        )
        setup = curves[0].setup
        _row(
            experiment,
            f"EXPERIMENT  Small autoencoders with a shared core. In training X shows "
            f"{setup.strong} of {setup.shared} shared quantities fully, the others at "
            f"{100 * setup.attenuation:.0f} %; tested on X that shows all",
        )
        above, below = (part.subplots(1, 3) for part in (theory, experiment))
        _variances(above[0], example)
        _rates(above[1], example)
        _budgets(above[2], example)
        verdicts = [judge(one) for one in curves]
        for axes, index in zip(below, _two_settings(verdicts), strict=False):
            _learning(axes, curves[index], verdicts[index])
        _advantage(below[2], curves, verdicts)
        figure.savefig(path)


def _spacing() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.14, wspace=0.05)


def _row(part: SubFigure, text: str) -> None:
    part.suptitle(text, fontsize=12, x=0.012, ha="left", color=GREY)


def _two_settings(verdicts: Sequence[GaussianVerdict]) -> tuple[int, int]:
    """One setting in which X-only catches up and one in which it does not, where they exist."""
    caught = [i for i, v in enumerate(verdicts) if v.caught_up is not None]
    others = [i for i in range(len(verdicts)) if i not in caught]
    first = caught[0] if caught else 0
    return first, others[-1] if others else first


def _variances(axes: Axes, example: Example) -> None:
    axes.set_title("Y makes every shared quantity more certain,\nmost of all what X hardly shows")
    at = np.arange(len(example.strength))
    top = 3 * np.nanmax(example.x_only[np.isfinite(example.x_only)])
    bottom = example.joint.min() / 2
    for offset, values, colour in (
        (-0.2, example.x_only, X_COLOUR),
        (0.2, example.joint, XY_COLOUR),
    ):
        finite = np.isfinite(values)
        axes.bar(at[finite] + offset, values[finite], 0.38, color=colour)
        axes.bar(
            at[~finite] + offset,
            top,
            0.38,
            color="none",
            edgecolor=colour,
            hatch="///",
            linewidth=1,
        )
    for i in at[~np.isfinite(example.x_only)]:
        axes.annotate(
            "X alone:\nimpossible",
            (i - 0.42, top * 0.8),
            ha="right",
            va="top",
            color=X_COLOUR,
            fontsize=9.5,
        )
    _key(axes, "left", (f"{SAMPLES} X", X_COLOUR), (f"{SAMPLES} X + {SAMPLES} Y", XY_COLOUR))
    axes.set(yscale="log", ylim=(bottom, top), ylabel="variance of the estimate (log scale)")
    axes.set_xticks(at, [f"{100 * s:.0f} %" for s in example.strength])
    axes.set_xlabel("six shared quantities, by how strongly X shows them (Y: 50 % each)")


def _rates(axes: Axes, example: Example) -> None:
    axes.set_title("What one X sample is worth in Y samples\ndepends on the quantity")
    at = np.arange(len(example.rates))[::-1]
    lowest = example.rates[example.rates > 0].min() / 4
    highest = 3 * example.rates.max()
    axes.axvspan(lowest, 1, color=XY_COLOUR, alpha=0.1, linewidth=0)
    axes.axvspan(1, highest, color=X_COLOUR, alpha=0.1, linewidth=0)
    axes.axvline(1, color=GREY, linewidth=1)
    for y, rate in zip(at, example.rates, strict=True):
        colour = X_COLOUR if rate > 1 else XY_COLOUR
        axes.plot([1, max(rate, lowest)], [y, y], color=colour, linewidth=2)
        if rate > 0:
            axes.plot(rate, y, "o", color=colour, markersize=8)
            text = f"{rate:.2g}" if rate >= 1 else f"{rate:.2g}  (1 Y = {1 / rate:.2g} X)"
        else:
            text = "0  (only Y shows it)"
        axes.annotate(
            text,
            (max(rate, lowest), y),
            (9, 0) if rate >= 1 else (-9, 0) if rate > 0.1 else (2, 11),
            textcoords="offset points",
            ha="right" if 0.1 < rate < 1 else "left",
            va="center",
            fontsize=9.5,
        )
    axes.text(0.93, len(at) - 0.45, "one Y is worth more", ha="right", color=XY_COLOUR)
    axes.text(1.08, len(at) - 0.45, "one X is", ha="left", color=X_COLOUR)
    axes.set(xscale="log", xlim=(lowest, highest), ylim=(-0.6, len(at) - 0.1))
    axes.set_yticks(at, [f"{100 * s:.0f} %" for s in example.strength])
    axes.set_ylabel("how strongly X shows the quantity")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("Y samples that replace one X sample (log scale)")


def _budgets(axes: Axes, example: Example) -> None:
    axes.set_title(
        f"How to split {SAMPLES} samples depends on\nwhat X is needed for, and on Y's noise"
    )
    looks = {
        "full_strength": (XY_COLOUR, "-", "to rebuild X that shows\nall six fully"),
        "noisy_y": (X_COLOUR, (0, (4, 2)), f"the same if Y is {NOISY} x noisier"),
        "like_training": (X_COLOUR, "-", "to rebuild X like its training data"),
    }
    places = {"full_strength": (6, 1.6), "noisy_y": (8, 1.95), "like_training": (26, 0.62)}
    share = np.arange(SAMPLES + 1)
    for name, (colour, line, text) in looks.items():
        budget = example.budgets[name]
        axes.plot(share, budget.errors, color=colour, linestyle=line, linewidth=2)
        axes.plot(budget.n_y, budget.error, "o", color=colour, markersize=9)
        where, factor = places[name]
        axes.text(where, budget.errors[where] * factor, text, color=colour, fontweight="bold")
        best = f"best: {budget.n_y} Y" if budget.n_y else "best: all X"
        below = name == "like_training"
        axes.annotate(
            best,
            (budget.n_y, budget.error),
            (0, -16 if below else 9),
            textcoords="offset points",
            color=colour,
            ha="left" if name == "noisy_y" else "center",
        )
    finite = np.concatenate([b.errors[np.isfinite(b.errors)] for b in example.budgets.values()])
    axes.set(yscale="log", xlim=(-2, 100), ylim=(finite.min() / 2.5, finite.min() * 120))
    axes.set_xlabel(f"samples of Y among the {SAMPLES}  (left edge: all X)")
    axes.set_ylabel("expected error of rebuilt X (log scale)")


def _key(axes: Axes, side: str, *lines: tuple[str, str]) -> None:
    """Coloured words in an upper corner instead of a legend box."""
    for row, (text, colour) in enumerate(lines):
        axes.text(
            0.03 if side == "left" else 0.98,
            0.94 - 0.07 * row,
            text,
            transform=axes.transAxes,
            ha=side,
            color=colour,
            fontweight="bold" if colour != GREY else "normal",
        )


def _learning(axes: Axes, curves: GaussianCurves, verdict: GaussianVerdict) -> None:
    setup = curves.setup
    ending = (
        f"Here X alone catches up (step {verdict.caught_up})"
        if verdict.caught_up is not None
        else f"Here X alone is still behind after {setup.steps} steps"
    )
    if verdict.first_ahead is None:
        ending = "Here Y gives no clear advantage"
    axes.set_title(f"{ending}:\nautoencoder {setup.width} wide, signal scale {setup.scale:g}")
    shown = slice(1, None)  # the untrained model at step 0 would set the scale
    for values, colour in ((curves.x_only[:, shown], X_COLOUR), (curves.uml[:, shown], XY_COLOUR)):
        steps, low, high = curves.steps[shown], values.min(0), values.max(0)
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(steps, values.mean(0), color=colour, linewidth=2)
    axes.plot(
        curves.steps[shown] / 2,
        curves.x_only[:, shown].mean(0),
        color=X_COLOUR,
        linewidth=1.4,
        linestyle=(0, (2, 2)),
    )
    top = curves.x_only[:, 1].mean()
    low = min(curves.x_only.min(), curves.uml.min())
    half = setup.samples // 2
    _key(
        axes,
        "right",
        (f"{setup.samples} X", X_COLOUR),
        (f"{half} X + {half} Y", XY_COLOUR),
        ("dotted: X alone with two steps for one,", GREY),
        ("so that both process equally many samples", GREY),
        (f"band: range of {len(setup.seeds)} seeds", GREY),
    )
    if verdict.caught_up is not None:
        axes.axvline(verdict.caught_up, ymax=0.6, color=GREY, linewidth=1, linestyle=":")
    axes.set(xlim=(0, setup.steps), ylim=(low * 0.9, top * 1.15))
    axes.set_xlabel("training steps")
    axes.set_ylabel("error on new X (mean square)")


def _advantage(
    axes: Axes, curves: Sequence[GaussianCurves], verdicts: Sequence[GaussianVerdict]
) -> None:
    axes.set_title(
        "Where the claim holds: above the line, Y helps\n(band: 95 % interval over seeds)"
    )
    axes.axhline(0, color=GREY, linewidth=1)
    ends: list[tuple[float, str, str]] = []
    for one, verdict, colour in zip(curves, verdicts, SETTING_COLOURS, strict=False):
        steps = np.array(list(verdict.gains))
        scale = 100 / one.x_only.mean(0)
        mean = np.array([g.mean for g in verdict.gains.values()]) * scale
        half = np.array([g.half_width or 0.0 for g in verdict.gains.values()]) * scale
        axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.13, linewidth=0)
        axes.plot(steps, mean, color=colour, linewidth=2)
        ends.append((mean[-1], f"width {one.setup.width}, scale {one.setup.scale:g}", colour))
    _label_ends(axes, curves[0].setup.steps, ends)
    axes.set(xlim=(0, curves[0].setup.steps * 1.45), xlabel="training steps")
    axes.set_xticks(np.linspace(0, curves[0].setup.steps, 4))
    axes.set_ylabel("error saved by Y, % of the error of X alone")


def _label_ends(axes: Axes, step: int, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, place = 0.05 * (high - low), -np.inf
    for value, text, colour in sorted(ends):
        place = max(value, place + gap)
        axes.text(step * 1.02, place, text, color=colour, va="center")
