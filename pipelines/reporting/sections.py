"""The parts of a report: each function takes plain results and returns one Section.

The HTML lies in the macros of templates/report.html; a report is any list of sections.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pipelines.reporting import answer, plots
from pipelines.reporting.terminal import clock
from uml_core.statistics import Gain, mean_interval

_MIME = {
    ".png": "image/png",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
}


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `wide` takes the page's whole width."""

    title: str
    html: Markup
    wide: bool = True


@cache
def _templates() -> jinja2.Environment:
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    env = jinja2.Environment(
        loader=folder,
        autoescape=True,  # names and texts come from other people's files
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    env.globals.update(arm_name=answer.arm_name, colour_name=plots.colour_name, dashes=plots.DASHES)
    return env


def page(**content: Any) -> str:
    """The whole HTML page; see templates/report.html for what it takes."""
    return _templates().get_template("report.html").render(colours=plots.COLOURS, **content)


def fill(macro: str, **content: Any) -> Markup:
    """A macro of templates/fragments.html with its content."""
    return getattr(_templates().get_template("fragments.html").module, macro)(**content)


# -------------------------------------------------------------------------------- the head


def verdict(compare: answer.Compare) -> Markup:
    """The answer as one sentence under a word that says whether a gain was shown."""
    shown = any(answer.is_shown(entry) for entry in answer.results(compare))
    word, text = answer.verdict(compare), answer.sentence(compare)
    return fill("verdict", shown=shown, word=word, sentence=text)


def tiles(entry: answer.Compare) -> Markup:
    """The three differences as large numbers."""
    found = []
    for key, gain in answer.gains(entry).items():
        if key != "init_gain":  # a variant of UML; it stands among the differences below
            label = answer.GAINS[key]
            found.append((label, answer.number(gain.mean), "points", answer.interval(gain)))
    return fill("tiles", tiles=found)


def accuracy_tiles(metrics: Mapping[str, Any]) -> Markup:
    """Test and validation accuracy of one training run as large numbers."""
    best, steps = metrics["best_step"], metrics["steps"]
    found = [
        ("test", f"{metrics['test_accuracy']:.1f}", "%", "read once, with the best weights"),
        ("validation", f"{metrics['val_accuracy']:.1f}", "%", f"at step {best} of {steps}"),
    ]
    return fill("tiles", tiles=found)


def group(title: str, parts: Sequence[Section]) -> Section:
    """Several sections under one heading."""
    return Section(title, Markup("").join(fill("part", part=part) for part in parts))


# ------------------------------------------------------------------------------ the strips


@dataclass(frozen=True)
class Strip:
    """One row of a chart that is drawn in percent of its width, so that it fits any screen."""

    name: str
    colour: str
    note: str
    text: str
    detail: str
    dots: list[tuple[float, str]]
    mean: float
    bar: tuple[float, float] | None  # left and width


class _Scale:
    """Data -> percent of the width, with round ticks."""

    def __init__(self, values: Sequence[float], *, zero: bool = False) -> None:
        low, high = min(values), max(values)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        pad = 0.06 * (high - low) or 1.0
        self.low, self.high = low - pad, high + pad
        ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        inside = [t for t in ticks if self.low <= t <= self.high]
        self.ticks = [(self(t), f"{t:g}".replace("-", "−")) for t in inside]
        self.zero = self(0.0) if zero else None

    def __call__(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def bar(self, gain: Gain) -> tuple[float, float] | None:
        if gain.ci95 is None:
            return None
        left, right = self(gain.ci95[0]), self(gain.ci95[1])
        return left, round(right - left, 2)


def _extent(values: Sequence[float], found: Gain) -> list[float]:
    return [*values, found.mean, *(found.ci95 or ())]


def arms(entry: answer.Compare) -> Section:
    """Every arm with one dot per seed, its mean and its interval, and the numbers behind."""
    seeds = entry["seeds"]
    found = {arm: mean_interval(facts["test_accuracy"]) for arm, facts in entry["arms"].items()}
    every = [_extent(entry["arms"][arm]["test_accuracy"], gain) for arm, gain in found.items()]
    scale = _Scale([v for values in every for v in values])
    strips = []
    for arm, facts in entry["arms"].items():
        values, gain = facts["test_accuracy"], found[arm]
        half = "" if gain.half_width is None else f"± {gain.half_width:.1f}"
        strips.append(
            Strip(
                answer.arm_name(arm),
                plots.colour_name(arm),
                "baseline" if arm == entry["baseline"] else "",
                f"{gain.mean:.1f} %",
                half,
                [(scale(v), f"seed {s}: {v:.1f} %") for s, v in zip(seeds, values, strict=True)],
                scale(gain.mean),
                scale.bar(gain),
            )
        )
    html = fill("strips", strips=strips, scale=scale)
    return Section("Test accuracy per arm", html + fill("seeds_table", entry=entry))


def gains(entry: answer.Compare) -> Section:
    """The differences with their paired intervals and one dot per seed."""
    found = answer.gains(entry)
    sides = {
        key: (answer.SIDES[key][0], answer.SIDES[key][1] or entry["baseline"]) for key in found
    }
    accuracy = {arm: facts["test_accuracy"] for arm, facts in entry["arms"].items()}
    pairs = {k: list(zip(accuracy[a], accuracy[b], strict=True)) for k, (a, b) in sides.items()}
    each = {key: [a - b for a, b in values] for key, values in pairs.items()}
    scale = _Scale([v for key in sides for v in _extent(each[key], found[key])], zero=True)
    strips = []
    for key, gain in found.items():
        ends = gain.ci95 and f"{answer.number(gain.ci95[0])} to {answer.number(gain.ci95[1])}"
        dots = [
            (scale(v), f"seed {s}: {answer.number(v)}")
            for s, v in zip(entry["seeds"], each[key], strict=True)
        ]
        strips.append(
            Strip(
                answer.GAINS[key],
                plots.colour_name(sides[key][0]),
                "",
                answer.number(gain.mean),
                ends or "one seed",
                dots,
                scale(gain.mean),
                scale.bar(gain),
            )
        )
    html = fill("strips", strips=strips, scale=scale)
    html += fill("control_note", control=entry["control"])
    return Section("Differences, seed by seed", html)


# ---------------------------------------------------------------------------------- charts


def by_shots(entries: Sequence[answer.Compare]) -> Section:
    """Accuracy and gain against the number of labelled samples."""
    charts = [Markup(chart) for chart in plots.shots_charts(entries)]
    note = "Bands and the numbers after ± are 95 % intervals over seeds."
    html = fill("charts", charts=charts, arms=list(entries[0]["arms"]), note=note)
    for caption, columns, rows in answer.by_shots(entries):
        html += fill("table", caption=caption, columns=columns, rows=rows)
    return Section("Against the number of labelled samples", html)


def learning_curves(arms: plots.Curves) -> Section:
    """Validation accuracy and, where recorded, training losses against steps."""
    charts = [plots.accuracy_chart(arms), *plots.loss_charts(arms)]
    several = any(len(curve["val_accuracy"]) > 1 for curve in arms.values())
    note = "Lines are means over seeds, bands go from the lowest to the highest seed."
    html = fill(
        "charts",
        charts=[Markup(chart) for chart in charts],
        arms=list(arms) if len(arms) > 1 else [],
        note=note if several else "",
    )
    return Section("Learning curves", html)


# ----------------------------------------------------------------------------- the context


def inputs(shown: Mapping[str, Sequence[Mapping[str, str]]], folder: Path) -> Section:
    """Some training inputs of each modality; pictures and sounds become part of the page."""
    modalities = {
        modality: [
            {
                "name": entry.get("class", ""),
                "text": entry.get("text"),
                "picture": _data_url(folder, entry.get("file")),
                "audio": _data_url(folder, entry.get("audio")),
            }
            for entry in entries
        ]
        for modality, entries in shown.items()
    }
    return Section("What the model saw", fill("inputs", modalities=modalities))


def _data_url(folder: Path, name: str | None) -> str | None:
    if name is None:
        return None
    path = folder / Path(name).name
    return f"data:{_MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def checks(guards: Mapping[str, Any], quarantined: int) -> Section:
    """What the guards found: content in train and test, shared sources, bad samples."""
    rows = [
        (f"{name}: test samples that also occur in train", f"{found['shared']} of {found['test']}")
        for name, found in guards.get("overlap", {}).items()
    ]
    shared = [
        f"{' and '.join(item['modalities'])}: {item['count']} ({item['share']:.0%})"
        for item in guards.get("shared_sources", [])
    ]
    rows.append(("sources shared by two modalities", "; ".join(shared) or "none"))
    rows.append(("samples that could not be read", str(quarantined)))
    warnings = list(guards.get("warnings", []))
    return Section("Checks on the data", fill("checks", rows=rows, warnings=warnings))


def conduct(env: Mapping[str, Any], seconds: float | None, remarks: Sequence[str] = ()) -> Section:
    """What ran where, on which data, for how long, and what went wrong on the way."""
    host = env.get("host", {})
    rows = []
    if seconds is not None:
        rows.append(("wall time", clock(seconds)))
    if env.get("command"):
        rows.append(("command", env["command"]))
    gpus = ", ".join(host.get("gpus", [])) or "no GPU"
    rows.append(("machine", f"{host.get('cores')} cores, {host.get('memory_gb')} GB, {gpus}"))
    rows += _rows({"forecast": env["forecast"]} if env.get("forecast") else {})
    placement = dict(env.get("placement") or {})
    workers = placement.pop("workers", [])
    html = fill("checks", rows=rows + _rows(placement), warnings=remarks)
    if workers:
        html += fill("table", caption="Workers", **_columns(workers))
    data = [
        {
            "data": name,
            "samples": f"{facts['samples']:,}",
            "shards": str(facts["shards"]),
            "sha256": facts["sha256"][:12],
        }
        for name, facts in env.get("data", {}).items()
    ]
    return Section("How it was run", html + fill("table", caption="Data", **_columns(data)))


def recipe(text: str) -> Section:
    """The resolved recipe: the same file gives the same run."""
    return Section("Recipe", fill("code", text=text), wide=False)


def versions(env: Mapping[str, Any]) -> Section:
    """Code and packages."""
    rows = []
    if env.get("git"):
        changed = ", with local changes" if env["git"].get("dirty") else ""
        rows.append(("commit", env["git"]["commit"][:12] + changed))
    rows += list(env.get("versions", {}).items())
    if env.get("dataset_sha256"):
        rows.append(("data sha256", env["dataset_sha256"][:12]))
    return Section("Versions", fill("facts", rows=rows), wide=False)


def numbers(facts: Mapping[str, Any], title: str) -> Section:
    """Any nested numbers as a plain table."""
    return Section(title, fill("facts", rows=_rows(facts)))


def _rows(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in tree.items():
        label = f"{prefix}{str(name).replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += _rows(value, f"{label}, ") if value else [(label, "none")]
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            rows += [row for v in value for row in _rows(v, f"{label}, ")]
        else:
            rows.append((label, _plain(value)))
    return rows


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    body = [[_plain(row.get(name, "")) for name in names] for row in rows]
    return {"columns": [name.replace("_", " ") for name in names], "rows": body}


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        few = ", ".join(_plain(v) for v in value[:12]) or "none"
        return few if len(value) <= 12 else f"{few}, … ({len(value)} values)"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) or "none"
    return str(value)
