"""Sections of a report that say why: gradients, exchange rate, forecast.

Each function takes plain results and returns one section, or None where a run has no such result.
"""

from __future__ import annotations

from markupsafe import Markup

from pipelines.reporting import answer, plots, sections
from uml_core.analysis.exchange_rate import ExchangeRate
from uml_core.analysis.forecast import Forecast
from uml_core.analysis.gradients import GradientReport, sentence, summarise
from uml_core.analysis.plots import (
    plot_exchange_rate,
    plot_forecast,
    plot_gradient_cosines,
    plot_gradient_norms,
    plot_local_rates,
)


def gradients(target: str, arms: plots.Curves) -> sections.Section | None:
    """How the modalities pull the shared weights over training; None where it was not measured."""
    runs = {
        arm: [[GradientReport.from_json(r) for r in seed] for seed in curve["gradients"]]
        for arm, curve in arms.items()
        if arm in ("uml", "uml_permuted") and curve.get("gradients")
    }
    if not any(runs.get("uml", [])):
        return None
    found = {arm: summarise(reports) for arm, reports in runs.items()}
    uml, control = found["uml"], found.get("uml_permuted")
    pairs = [pair for pair in uml.cosine if pair[0] == target]
    named = {answer.arm_name(arm): reports for arm, reports in runs.items()}
    charts = [
        plots.analysis_chart(plot_gradient_cosines, named),
        plots.analysis_chart(plot_gradient_norms, runs["uml"]),
    ]
    note = "Measured on the batches of a step, before its update."
    if uml.runs > 1:
        note += " Lines are means over seeds, bands their 95 % intervals."
    html = sections.fill("lines", lines=[sentence(uml, pair, control) for pair in pairs])
    html += sections.fill("charts", charts=[Markup(chart) for chart in charts], arms=[], note=note)
    return sections.Section("Do the modalities pull the same way?", html)


def exchange(compare: answer.Compare) -> sections.Section | None:
    """What one target sample is worth in auxiliary samples; None where no grid was measured."""
    if not compare.get("exchange"):
        return None
    told = dict(compare["exchange"])
    target, auxiliary = told.pop("target"), told.pop("auxiliary")
    words = told.pop("words_per_sample")
    found = ExchangeRate.from_json(told)
    charts = [
        plots.analysis_chart(plot_exchange_rate, found, target, auxiliary, "Accuracy (%)"),
        plots.analysis_chart(plot_local_rates, found, target, auxiliary),
    ]
    note = "Left: lines of equal test accuracy, solid as measured, dashed of the fitted plane."
    if words is not None:
        note += f" One {auxiliary} sample has {words:.3g} words."
    html = sections.fill("lines", lines=[found.sentence])
    html += sections.fill("charts", charts=[Markup(chart) for chart in charts], arms=[], note=note)
    columns = [f"{target} per class", *(f"{k:g} {auxiliary}" for k in found.auxiliary_shots)]
    rows = [
        [f"{k:g}", *(f"{a:.1f}" for a in row)]
        for k, row in zip(found.target_shots, found.accuracy, strict=True)
    ]
    caption = "Test accuracy of UML in percent, mean over seeds; 0 is the target alone"
    html += sections.fill("table", caption=caption, columns=columns, rows=rows)
    return sections.Section(f"What is one {target} sample worth?", html)


def forecast(compare: answer.Compare) -> sections.Section | None:
    """What the data said before training, and whether it came true; None without a forecast."""
    told = compare.get("forecast") or {}
    found = {name: Forecast.from_json(f) for name, f in told.get("auxiliaries", {}).items()}
    if not found:
        return None
    lines = [f.sentence for f in found.values()]
    lines += [answer.forecast_outcome(compare), told["record"]["sentence"]]
    html = sections.fill("lines", lines=lines)
    if any(f.geometry is not None for f in found.values()):
        charts = [Markup(plots.analysis_chart(plot_forecast, found))]
        note = (
            "On or above the dashed line with p below 0.05: likely to help. With the whole "
            "interval below the line: unlikely. Else open."
        )
        html += sections.fill("charts", charts=charts, arms=[], note=note)
    return sections.Section("Was it to be expected?", html)
