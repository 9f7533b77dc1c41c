"""One figure per analysis, drawn from its dataclass alone.

Each function returns a `matplotlib.figure.Figure` that the caller saves (``figure.savefig``).
matplotlib is imported on first use and pyplot is not touched, so drawing needs no display and is
safe in any thread. Error bars and bands are the 95 % intervals of the dataclasses.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uml_core.analysis.bootstrap import t_interval
from uml_core.analysis.forecast import THRESHOLD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from uml_core.analysis.alignment import Alignment
    from uml_core.analysis.bootstrap import Estimate
    from uml_core.analysis.decision_plane import DecisionPlane
    from uml_core.analysis.exchange_rate import ExchangeRate
    from uml_core.analysis.forecast import Forecast
    from uml_core.analysis.gradients import GradientReport
    from uml_core.analysis.margins import Margins
    from uml_core.analysis.neurons import Neurons
    from uml_core.analysis.prototypes import Prototypes
    from uml_core.analysis.rank import EffectiveRank
    from uml_core.analysis.separability import Separability

# Okabe-Ito: told apart with any colour vision and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#888888"
MAX_NAMED = 60  # classes of a heat map whose names can still be read
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1)), (0, (7, 2, 1, 2)))


def plot_alignment(named: Mapping[str, Sequence[Alignment]]) -> Figure:
    """One panel per measure, one row per comparison: the value as a dot, and in grey up to what
    shuffled pairs give (their 95 % mark)."""
    by_measure: dict[str, dict[str, Alignment]] = {}
    for name, group in named.items():
        for a in group:
            by_measure.setdefault(a.measure, {})[name] = a
    height = 1.6 + 0.42 * len(named)
    figure, panels = _figure(len(by_measure), height=height, shared_rows=True)
    for axes, (measure, found) in zip(panels, by_measure.items(), strict=True):
        rows = [len(named) - 1 - i for i, name in enumerate(named) if name in found]
        highs = [a.null_high for a in found.values()]
        axes.barh(rows, highs, height=0.7, color=GREY, alpha=0.35, label="shuffled, up to 95 %")
        axes.plot([a.value for a in found.values()], rows, "o", color=COLOURS[0], label="measured")
        for row, a in zip(rows, found.values(), strict=True):
            axes.annotate(
                f"p = {a.p_value:.2g}",
                (1.0, row),
                ha="right",
                va="center",
                fontsize=8,
                color=GREY,
            )
        axes.set_yticks(rows, [_wrapped(name, 26) for name in found])
        axes.set_xlim(0, 1.02)
        axes.set_ylim(-0.6, len(named) - 0.4)
        axes.set_xlabel(f"{measure} (0 unrelated, 1 the same)")
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def plot_margins(arms: Mapping[str, Margins]) -> Figure:
    """Distribution of margins per arm, means with intervals; right of zero is classified right."""
    figure, (axes,) = _figure(1)
    every = np.concatenate([m.margins for m in arms.values()])
    low, high = np.quantile(every, [0.005, 0.995])
    bins = np.linspace(low, high, 41).tolist()
    for colour, (name, m) in zip(COLOURS, arms.items(), strict=False):
        text = f"{name}: mean {m.mean.value:.3g} [{m.mean.low:.3g}, {m.mean.high:.3g}]"
        axes.hist(m.margins, bins, density=True, histtype="step", color=colour, label=text)
        axes.axvspan(m.mean.low, m.mean.high, color=colour, alpha=0.25)
    axes.axvline(0, color=GREY, lw=1)
    axes.set_xlabel("functional margin (left of zero: classified wrongly)")
    axes.set_ylabel("density")
    figure.legend(loc="outside upper left", frameon=False, fontsize=9)
    return figure


def plot_separability(arms: Mapping[str, Separability]) -> Figure:
    """Silhouette (larger is better) and Davies-Bouldin index (smaller is better) per arm."""
    height = 1.4 + 0.4 * len(arms)
    figure, (left, right) = _figure(2, height=height, shared_rows=True)
    _rows(left, {n: s.silhouette for n, s in arms.items()}, "silhouette (larger = better)")
    right_values = {name: s.davies_bouldin for name, s in arms.items()}
    _rows(right, right_values, "Davies-Bouldin (smaller = better)")
    return figure


def plot_ranks(named: Mapping[str, EffectiveRank]) -> Figure:
    """Effective rank per representation; the rows name samples and dimensions."""
    figure, (axes,) = _figure(1, width=6.5, height=1.4 + 0.5 * len(named))
    values = {f"{n}\n{r.samples:,} samples, {r.dimensions} wide": r.rank for n, r in named.items()}
    _rows(axes, values, "effective rank (directions that carry variance)")
    axes.set_xlim(left=0)
    return figure


def plot_prototypes(found: Prototypes, names: Sequence[str] | None = None) -> Figure:
    """Heat map of head rows against auxiliary class means, each row centred on its mean."""
    figure, (axes,) = _figure(1, width=6.0, height=5.4)
    centred = found.matrix - found.matrix.mean(1, keepdims=True)
    limit = float(np.abs(centred).max()) or 1.0
    image = axes.imshow(centred, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(image, ax=axes, label="inner product - row mean")
    if names is not None and len(found.classes) <= MAX_NAMED:
        shown = [names[c] for c in found.classes]
        size = min(7.0, 290 / len(shown))
        axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=size)
        axes.set_yticks(range(len(shown)), shown, fontsize=size)
    axes.set_xlabel("class mean of the auxiliary modality")
    axes.set_ylabel("row of the shared head")
    axes.set_title(
        f"diagonal {found.dominance.value:.2g} sd above its row (p = {found.p_value:.2g}),\n"
        f"largest in {100 * found.hit_rate.value:.0f} % of rows",
        fontsize=10,
    )
    return figure


def plot_decision_plane(found: DecisionPlane, names: Sequence[str]) -> Figure:
    """Samples of both classes in the plane; the vertical line is the boundary (paper F.2)."""
    figure, (axes,) = _figure(1)
    for colour, marker, c in zip(COLOURS, "os", found.classes, strict=False):
        x, y = found.points[found.labels == c].T
        axes.scatter(x, y, s=18, color=colour, marker=marker, alpha=0.7, label=names[c])
    axes.axvline(0, color="black", lw=1)
    a, b = (names[c] for c in found.classes)
    axes.set_xlabel(f"left of the line: called {_wrapped(b, 30)}\nright: called {_wrapped(a, 38)}")
    axes.set_ylabel("what else tells the means apart")
    accuracy = found.accuracy
    axes.set_title(
        f"{100 * accuracy.value:.1f} % on the right side "
        f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]",
        fontsize=10,
    )
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def plot_neurons(found: Neurons, names: Sequence[str] | None = None) -> Figure:
    """Correlations of all units in falling order per group; dashed: largest untrained |r|."""
    figure, (axes,) = _figure(1)
    groups = {"all": found.overall}
    groups |= {(names[c] if names else f"class {c}"): u for c, u in found.by_class.items()}
    for colour, (name, units) in zip(COLOURS, groups.items(), strict=False):
        order = np.argsort(-units.r)
        ranks = np.arange(len(order))
        label = f"{name} (n = {units.samples}, {len(units.multimodal)} units beyond)"
        axes.plot(ranks, units.r[order], color=colour, label=label)
        axes.fill_between(ranks, units.low[order], units.high[order], color=colour, alpha=0.15)
        for sign in (-1, 1):
            axes.axhline(sign * units.baseline, color=colour, ls="--", lw=0.8)
    axes.plot([], [], color=GREY, ls="--", lw=0.8, label="largest |r| before training")
    axes.set_ylim(-1, 1)
    axes.set_xlabel("unit, by falling correlation")
    axes.set_ylabel("Pearson r between modalities")
    axes.legend(fontsize=8)
    return figure


def plot_gradient_cosines(arms: Mapping[str, Sequence[Sequence[GradientReport]]]) -> Figure:
    """Cosine of every pair of modalities over training; arms differ in colour, pairs in dashes.

    arms  name -> one list of reports per seed; bands are t intervals over seeds
    """
    figure, (axes,) = _figure(1)
    for colour, (arm, runs) in zip(COLOURS, arms.items(), strict=False):
        pairs = dict.fromkeys(pair for run in runs for report in run for pair in report.cosine)
        for dash, pair in zip(DASHES, pairs, strict=False):
            curves = [{r.step: r.cosine[pair] for r in run if pair in r.cosine} for run in runs]
            label = " / ".join(pair) if len(arms) == 1 else f"{arm}: {' / '.join(pair)}"
            _over_steps(axes, curves, label, color=colour, ls=dash)
    axes.axhline(0, color=GREY, lw=1)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.05), min(high, 1.05))  # intervals of few seeds may go beyond
    axes.set_title("Cosine of the gradients (below 0: conflict)")
    axes.set_xlabel("step")
    axes.legend(fontsize=9, frameon=False)
    return figure


def plot_gradient_norms(runs: Sequence[Sequence[GradientReport]]) -> Figure:
    """Gradient norm of each modality over training, one list of reports per seed; log scale."""
    figure, (axes,) = _figure(1)
    names = dict.fromkeys(name for run in runs for report in run for name in report.norm)
    for colour, dash, name in zip(COLOURS, DASHES * 2, names, strict=False):
        curves = [{r.step: r.norm[name] for r in run if name in r.norm} for run in runs]
        _over_steps(axes, curves, name, color=colour, ls=dash)
    if all(v > 0 for run in runs for report in run for v in report.norm.values()):
        axes.set_yscale("log")
    axes.set_title("Gradient norm on the shared weights")
    axes.set_xlabel("step")
    axes.legend(fontsize=9, frameon=False)
    return figure


def _over_steps(
    axes: Axes, curves: Sequence[Mapping[int, float]], label: str, *, color: str, ls: Any
) -> None:
    """Mean over seeds of {step: value} with its t interval at the steps that every seed has."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves if curve)))
    values = np.array([[curve[step] for step in steps] for curve in curves if curve])
    axes.plot(steps, values.mean(0), color=color, ls=ls, marker="o", ms=3, label=label)
    if len(values) > 1:
        ends = [t_interval(column) for column in values.T]
        low, high = [e.low for e in ends], [e.high for e in ends]
        axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)


def plot_exchange_rate(
    found: ExchangeRate, target: str = "image", auxiliary: str = "text", title: str | None = None
) -> Figure:
    """Level lines of the measured accuracies (solid) and of the plane (dashed).

    title: default: the finding in words.
    """
    figure, (axes,) = _figure(1)
    levels = np.linspace(found.accuracy.min(), found.accuracy.max(), 9)[1:-1]
    if levels[-1] > levels[0]:
        x, y = found.auxiliary_shots, found.target_shots
        lines = axes.contour(x, y, found.accuracy, levels=levels, cmap="viridis")
        axes.clabel(lines, fmt="%.3g %%", fontsize=8)
        plane = (
            found.intercept.value
            + found.target_slope.value * y[:, None]
            + found.auxiliary_slope.value * x
        )
        axes.contour(x, y, plane, levels=levels, cmap="viridis", linestyles="dashed", alpha=0.6)
    grid_x, grid_y = np.meshgrid(found.auxiliary_shots, found.target_shots)
    axes.plot(grid_x.ravel(), grid_y.ravel(), ".", color=GREY)
    axes.set_xlabel(f"{auxiliary} samples per class")
    axes.set_ylabel(f"{target} samples per class")
    if title is None:
        axes.set_title(_wrapped(f"{found.sentence} Dashed: the plane."), fontsize=8)
    else:
        axes.set_title(title)
    return figure


def plot_local_rates(found: ExchangeRate, target: str = "image", auxiliary: str = "text") -> Figure:
    """The rate in every cell of the grid with its interval; cells without one stay empty."""
    figure, (axes,) = _figure(1)
    rows, columns = len(found.target_shots) - 1, len(found.auxiliary_shots) - 1
    for number, cell in enumerate(found.local):
        i, j = divmod(number, columns)
        rate, colour, text = cell.rate, GREY, "not identifiable"
        if cell.harmful:
            colour, text = COLOURS[1], f"more {auxiliary}\ndoes harm"
        elif rate.value is not None:
            colour, text = COLOURS[0], f"{rate.value:.3g}\n{rate.low:.3g} to {rate.high:.3g}"
        axes.fill_between([j, j + 1], i, i + 1, color=colour, alpha=0.2, lw=0)
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(columns + 1), [f"{k:g}" for k in found.auxiliary_shots])
    axes.set_yticks(range(rows + 1), [f"{k:g}" for k in found.target_shots])
    axes.set_xlim(0, columns)
    axes.set_ylim(0, rows)
    axes.grid(color=GREY, lw=0.5)
    axes.set_xlabel(f"{auxiliary} samples per class")
    axes.set_ylabel(f"{target} samples per class")
    axes.set_title(f"{auxiliary} samples per {target} sample, cell by cell")
    return figure


def plot_forecast(found: Mapping[str, Forecast]) -> Figure:
    """Shared class geometry per auxiliary modality against the rule's threshold."""
    figure, (axes,) = _figure(1)
    known = {f"{n}\n{f.verdict}": f.geometry for n, f in found.items() if f.geometry is not None}
    _dots(axes, known, "")
    axes.set_title("Rank correlation of class similarities")
    axes.axhline(THRESHOLD, color=GREY, ls="--", lw=1)
    axes.axhline(0, color=GREY, lw=0.5)
    return figure


def _figure(
    columns: int, width: float = 5.0, height: float = 3.8, shared_rows: bool = False
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns, sharey=shared_rows)))


def _rows(axes: Axes, values: Mapping[str, Estimate], label: str) -> None:
    """Values with their intervals, one row each, the first on top."""
    places = np.arange(len(values))[::-1]
    for place, e in zip(places, values.values(), strict=True):
        axes.plot([e.low, e.high], [place, place], color=COLOURS[0], lw=6, alpha=0.25)
        axes.plot([e.value], [place], "o", color=COLOURS[0])
    axes.set_yticks(places, list(values))
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.set_xlabel(label)


def _dots(axes: Axes, values: Mapping[str, Estimate], label: str) -> None:
    places = np.arange(len(values))
    centre = np.array([e.value for e in values.values()])
    low = np.array([e.low for e in values.values()])
    high = np.array([e.high for e in values.values()])
    ends = np.maximum([centre - low, high - centre], 0)
    axes.errorbar(places, centre, yerr=ends, fmt="o", color=COLOURS[0], capsize=4)
    axes.set_xticks(places, list(values))
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylabel(label)


def _wrapped(text: str, width: int = 80) -> str:
    return "\n".join(textwrap.wrap(text, width))
