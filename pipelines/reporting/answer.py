"""The answer in words: one place for the sentences that terminal, report and MLflow show.

All functions take the object of compare.json (or one entry of its ``results``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uml_core.analysis import track_record
from uml_core.analysis.forecast import LIKELY, OPEN, UNLIKELY, Forecast
from uml_core.statistics import Gain, gain_shown, mean_interval

Compare = Mapping[str, Any]

ARM_NAMES = {
    "unimodal": "target only",
    "unimodal_direct": "target only, direct",
    "uml": "UML",
    "uml_init": "UML, class-mean head",
    "uml_permuted": "control, permuted",
}
GAINS = {
    "gain": "UML − target only",
    "init_gain": "UML, class-mean head − target only",
    "gain_over_control": "UML − control",
    "control_gain": "control − target only",
}
SIDES = {  # of each difference; None: the baseline
    "gain": ("uml", None),
    "init_gain": ("uml_init", None),
    "gain_over_control": ("uml", "uml_permuted"),
    "control_gain": ("uml_permuted", None),
}
_THINGS = {
    "image": "images",
    "text": "texts",
    "audio": "recordings",
    "sequence": "sequences",
    "vector": "vectors",
}


def arm_name(arm: str) -> str:
    """What a person calls an arm."""
    return ARM_NAMES.get(arm, arm.replace("_", " "))


def number(value: float, *, sign: bool = True) -> str:
    """One decimal, more where that would hide on which side of zero a value lies."""
    for digits in (1, 2, 3):
        text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
        if float(text) or value == 0:
            return text.replace("-", "−")
    return "0.0"


def interval(gain: Gain) -> str:
    """``"95 % interval +1.9 to +4.3"``, or why there is none."""
    if gain.ci95 is None:
        return "one seed, no interval"
    return f"95 % interval {number(gain.ci95[0])} to {number(gain.ci95[1])}"


def points(gain: Gain) -> str:
    """``"+3.1 points (95 % interval +1.9 to +4.3)"``."""
    return f"{number(gain.mean)} points ({interval(gain)})"


def auxiliary(compare: Compare) -> str:
    """``"text and audio"``: the modalities that were added; unnamed where it is not recorded."""
    names = list(compare.get("auxiliary") or [])
    if not names:
        return "data of other modalities"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def budget(compare: Compare) -> str:
    """``"at 8 labelled images per class"``."""
    shots, things = compare["shots"], _things(compare["target"])
    share = compare.get("label_fraction")
    if shots is None and share:
        return f"with labels for {100 * share:.3g} % of the {things}"
    if shots is None:
        return "with all labelled data"
    if shots == 1:
        things = things.removesuffix("s")
    return f"at {shots} labelled {things} per class"


def _things(target: str) -> str:
    """What the samples of a modality are called."""
    return _THINGS.get(target, f"{target} samples")


def forecast_line(found: Mapping[str, Forecast]) -> str:
    """What was forecast before training, per auxiliary modality, and what that is worth."""
    if not found:
        return "none, the auxiliary data has no labels"
    verdicts = {
        LIKELY: "is likely to help",
        UNLIKELY: "is unlikely to help",
        OPEN: "may help or not",
    }
    parts = []
    for name, one in found.items():
        basis = "too few classes"
        if one.geometry is not None:
            basis = f"shared class geometry {one.geometry.value:.2f}, p = {one.p_value:.2g}"
        parts.append(f"{name} {verdicts[one.verdict]} ({basis})")
    return f"{'; '.join(parts)}. The rule: {track_record.brief(track_record.cases())}."


def forecast_outcome(compare: Compare) -> str:
    """Whether the forecast came true, for a comparison that has one."""
    verdict = compare["forecast"]["verdict"]
    shown = any(is_shown(entry) for entry in results(compare))
    came = "a gain was shown" if shown else "no gain was shown"
    if verdict == OPEN:
        return f"The forecast left it open; {came}."
    right = (verdict == LIKELY) == shown
    return f"The forecast was {'right' if right else 'wrong'}: {verdict} to help, and {came}."


def results(compare: Compare) -> list[Compare]:
    """The entries of a comparison over several shot counts, or the one comparison itself."""
    if "results" not in compare:
        return [compare]
    shared = {key: value for key, value in compare.items() if key != "results"}
    return [shared | entry for entry in compare["results"]]


def is_shown(compare: Compare) -> bool:
    """Whether this entry's gain may be claimed."""
    return gain_shown(*(Gain.from_json(compare[k]) for k in ("gain", "gain_over_control")))


def gains(entry: Compare) -> dict[str, Gain]:
    """The differences that an entry has, in the order of `GAINS`."""
    return {key: Gain.from_json(entry[key]) for key in GAINS if key in entry}


def plus_minus(found: Gain, *, sign: bool = False) -> str:
    """``"77.4 ±2.6"``: a mean and half its interval's width."""
    mean = number(found.mean, sign=sign)
    return mean if found.half_width is None else f"{mean} ±{found.half_width:.1f}"


def by_shots(entries: Sequence[Compare]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Accuracies and differences against the number of shots: (title, columns, rows) of tables.

    The form is that of the paper's Table 17: a row per method, a column per number of shots.
    """
    columns = [f"k = {shots}" for shots in _shots(entries)]
    rows = []
    for arm in entries[0]["arms"]:
        cells = [plus_minus(mean_interval(e["arms"][arm]["test_accuracy"])) for e in entries]
        marks = ["*" if e["baseline"] == arm else "" for e in entries]
        rows.append([arm_name(arm), *(f"{m}{c}" for m, c in zip(marks, cells, strict=True))])
    each = [gains(entry) for entry in entries]
    against = [
        [arm_name(SIDES[key][0]), *(plus_minus(found[key], sign=True) for found in each)]
        for key in each[0]
        if SIDES[key][1] is None
    ]
    over = [plus_minus(found["gain_over_control"], sign=True) for found in each]
    things = f"{_things(entries[0]['target'])} per class"
    return [
        (f"Test accuracy in percent at k labelled {things} (* baseline)", ["arm", *columns], rows),
        (
            "Difference to the baseline in points, paired over seeds",
            ["arm", *columns],
            [*against, ["UML − control", *over]],
        ),
    ]


def verdict(compare: Compare) -> str:
    """The answer in a few words."""
    entries = results(compare)
    shown = [entry for entry in entries if is_shown(entry)]
    if not shown:
        return "No gain shown"
    if len(shown) == len(entries):
        return "Gain shown"
    rest = [entry for entry in entries if entry not in shown]
    return f"Gain shown at {_listed(_shots(shown))}, not at {_listed(_shots(rest))}"


def question(compare: Compare) -> str:
    """What the comparison asks."""
    entries = results(compare)
    first = entries[0]
    asked = f"Does unpaired {auxiliary(first)} make the {first['target']} model better"
    if len(entries) == 1:
        return f"{asked} {budget(first)}?"
    return f"{asked} {budget({**first, 'shots': _listed(_shots(entries))})}?"


def sentence(compare: Compare) -> str:
    """The answer: a gain is claimed only where `gain_shown` allows it, else none was shown."""
    entries = results(compare)
    return _one(entries[0]) if len(entries) == 1 else _many(entries)


def _one(entry: Compare) -> str:
    gain, over = Gain.from_json(entry["gain"]), Gain.from_json(entry["gain_over_control"])
    target, other = entry["target"], auxiliary(entry)
    seeds = len(entry["seeds"])
    measured = f"{points(gain)} against the target alone, {points(over)} against the control"
    if gain.ci95 is None:
        return (
            f"No gain could be shown: one seed gives no interval. With unpaired {other} the "
            f"{target} model is at {number(gain.mean)} points against the target alone and "
            f"{number(over.mean)} points against the control."
        )
    if gain_shown(gain, over):
        return (
            f"Yes, unpaired {other} makes the {target} model better {budget(entry)}: "
            f"{measured}, {seeds} seeds."
        )
    if gain.ci95[1] < 0:
        why = f"unpaired {other} makes the {target} model worse {budget(entry)}"
    elif gain.above_zero:
        why = (
            f"unpaired {other} lifts the {target} model {budget(entry)}, but not clearly above "
            "the control whose auxiliary data mean nothing"
        )
    else:
        why = f"with unpaired {other} {budget(entry)} the interval contains zero"
    return f"No gain could be shown: {why}: {measured}, {seeds} seeds."


def _many(entries: Sequence[Compare]) -> str:
    shown = [entry for entry in entries if is_shown(entry)]
    target, other = entries[0]["target"], auxiliary(entries[0])
    if not shown:
        return (
            f"No gain could be shown: with unpaired {other} the {target} model is not clearly "
            f"above both the target alone and the control at any of {_listed(_shots(entries))} "
            "labelled samples per class."
        )
    gains = [Gain.from_json(entry["gain"]).mean for entry in shown]
    low, high = number(min(gains), sign=False), number(max(gains), sign=False)
    size = f"by {low} points" if len(shown) == 1 else f"by {low} to {high} points"
    text = (
        f"Yes, unpaired {other} makes the {target} model better {size} at "
        f"{_listed(_shots(shown))} labelled samples per class"
    )
    rest = [entry for entry in entries if entry not in shown]
    return f"{text}; at {_listed(_shots(rest))} no gain could be shown." if rest else f"{text}."


def _shots(entries: Sequence[Compare]) -> list[str]:
    return ["all" if entry["shots"] is None else str(entry["shots"]) for entry in entries]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """What a person should know of how a run (metrics.json) or a comparison went."""
    found = []
    if facts.get("skipped_updates"):
        found.append(_skipped(facts["skipped_updates"]))
    for entry in results(facts) if "arms" in facts or "results" in facts else ():
        for arm, of in entry["arms"].items():
            skipped = sum(of.get("skipped_updates", ()))
            if skipped:
                found.append(f"{arm_name(arm)}: {_skipped(skipped)}")
            for fit in of.get("diverged", ()):
                setting = ", ".join(f"{k}={v:g}" for k, v in fit["setting"].items())
                found.append(
                    f"{arm_name(arm)}{f' with {setting}' if setting else ''}: seed {fit['seed']} "
                    f"diverged at step {fit['step']}; such a setting is chosen only where no other "
                    "is left"
                )
    if facts.get("quarantined"):
        count = facts["quarantined"]
        samples = "1 sample" if count == 1 else f"{count} samples"
        found.append(f"{samples} could not be used; see quarantine.jsonl")
    if facts.get("restarts"):
        times = "once" if facts["restarts"] == 1 else f"{facts['restarts']} times"
        found.append(f"the worker group had to be started again {times}; nothing is lost by that")
    return found


def _skipped(count: int) -> str:
    updates = "1 update was" if count == 1 else f"{count} updates were"
    return f"{updates} left out, loss or gradient was not finite (train.on_nan=skip)"
