"""The answer of a sweep in words, for terminal, report and MLflow alike.

All functions take the object of sweep.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.reporting.answer import number, points
from uml_core.statistics import Gain, gain_shown

Sweep = Mapping[str, Any]


def question(sweep: Sweep) -> str:
    """What the sweep asks."""
    others = " and ".join(sweep["auxiliaries"])
    return f"How much {others} should the {sweep['target']} model be mixed with?"


def is_shown(sweep: Sweep) -> bool:
    """Whether the gain may be claimed: confirmed, above the baseline and above the control."""
    if not sweep["confirmed"]:
        return False
    entry = sweep["confirmation"]
    return gain_shown(*(Gain.from_json(entry[k]) for k in ("gain", "gain_over_control")))


def verdict(sweep: Sweep) -> str:
    """The answer in a few words."""
    if not sweep["confirmed"]:
        return "Not confirmed"
    return "Gain shown" if is_shown(sweep) else "No gain shown"


def mix(sweep: Sweep) -> str:
    """``"2 text batches per image batch"`` and what else the best point sets."""
    target, ratios = sweep["target"], sweep["best"]["ratios"]
    parts = [
        f"{value:.3g} {name} {'batch' if value == 1 else 'batches'}"
        for name, value in ratios.items()
    ]
    text = f"{' and '.join(parts) or 'no other data'} per {target} batch"
    known = {"mix", *(k for k in sweep["best"]["values"] if k.endswith(f"per {target} batch"))}
    rest = [
        f"{name} {_short(value)}"
        for name, value in sweep["best"]["values"].items()
        if name not in known
    ]
    return f"{text}, {', '.join(rest)}" if rest else text


def cost(sweep: Sweep) -> str:
    """What every trial got alike."""
    if sweep["budget"] == "flops":
        return "at the same cost in FLOPs"
    return f"with the same {sweep['target']} samples"


def sentence(sweep: Sweep) -> str:
    """The answer: numbers of the confirmation, or a plain warning that there was none."""
    target = sweep["target"]
    if not sweep["confirmed"]:
        gain = Gain.from_json(sweep["gain"])
        text = (
            f"Not confirmed: the best of {sweep['tried']} configurations takes {mix(sweep)} and "
            f"stands {points(gain)} above {target} alone on the validation samples that chose it; "
            "the best of many flatters itself."
        )
    else:
        entry = sweep["confirmation"]
        gain, over = Gain.from_json(entry["gain"]), Gain.from_json(entry["gain_over_control"])
        measured = (
            f"{points(gain)} over {target} alone {cost(sweep)}, {points(over)} over the permuted "
            f"control, on {len(entry['seeds'])} seeds that the sweep did not use"
        )
        if is_shown(sweep):
            text = f"Mix {mix(sweep)}: {measured}."
        else:
            text = f"No gain could be shown. The best mix found, {mix(sweep)}, gives {measured}."
    return " ".join([text, *_more(sweep)])


def _more(sweep: Sweep) -> list[str]:
    more = []
    equal, finished = len(sweep["equals"]), sweep["finished"] - 1
    if finished > 0:
        more.append(
            f"Of {finished} other configurations trained to their end {equal} cannot be told from "
            "it on validation."
        )
    if sweep.get("exchange"):
        more.append(sweep["exchange"]["sentence"])
    return more


def adaptive(sweep: Sweep) -> str | None:
    """How the learned mix did against the best fixed one at equal total cost; None without it."""
    found = (sweep.get("confirmation") or {}).get("adaptive")
    if not found:
        return None
    against = Gain.from_json(found["gain_over_best"])
    measured = f"{points(against)} against the best fixed mix"
    spent = found["flops"] / sweep["confirmation"]["arms"]["uml"]["flops"]
    at = f"at {spent:.2f} times its FLOPs"
    if against.above_zero:
        return f"The mix learned during the run does better: {measured}, {at}."
    if against.ci95 is not None and against.ci95[1] < 0:
        return f"The mix learned during the run does worse: {measured}, {at}."
    return f"The mix learned during the run cannot be told from it: {measured}, {at}."


def knob_rows(sweep: Sweep) -> list[tuple[str, str, str]]:
    """(knob, share of the differences it explains, how easily chance explains as much)."""
    rows = []
    for name, found in sweep["importance"]["knobs"].items():
        p = found["p"]
        rows.append(
            (name, f"{100 * found['share']:.0f} %", f"p {'< 0.001' if p < 1e-3 else f'= {p:.2g}'}")
        )
    return rows


def knobs(sweep: Sweep) -> str:
    """The names of the knobs, in the order in which `values` writes their values."""
    names = dict.fromkeys(name for trial in sweep["trials"] for name in trial["values"])
    return ", ".join(names)


def values(entry: Mapping[str, Any]) -> str:
    """A trial's knob values; a baseline says that it has no other data."""
    parts = [_short(value) for value in entry["values"].values()]
    if entry["kind"] == "baseline":
        parts.append("no other data")
    return ", ".join(parts)


def score(entry: Mapping[str, Any]) -> str:
    """``"31.9 ± 2.4"``: mean validation accuracy with its half interval."""
    if not entry["score"]:
        return "none"
    found = Gain.from_json(entry["score"])
    half = "" if found.half_width is None else f" ± {found.half_width:.1f}"
    return f"{number(found.mean, sign=False)}{half}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
