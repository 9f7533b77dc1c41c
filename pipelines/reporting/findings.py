"""What an analysis says, in words, numbers and one figure: the same for terminal and report.

Every finding carries one sentence on what was found and one on what would be good or bad, for a
reader who has never seen the measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipelines.reporting import plots
from pipelines.reporting.answer import arm_name, number
from uml_core.analysis import plots as drawings
from uml_core.analysis.alignment import Alignment
from uml_core.analysis.arms import SMALLER_IS_BETTER, ArmGeometry
from uml_core.analysis.bootstrap import Estimate
from uml_core.analysis.suite import TRAINED, UNTRAINED, Suite
from uml_core.few_shot import FewShotCurve
from uml_core.statistics import Gain

MEASURE_NAMES = {
    "margin": "margin",
    "silhouette": "silhouette",
    "davies_bouldin": "Davies-Bouldin",
    "rank": "effective rank",
}


@dataclass(frozen=True)
class Finding:
    """One analysis for a person.

    key      names its figure's file
    name     what the measure is called; title: the question it answers
    value    the short form for a table: value, and what it stands against
    says     what was found; reading: what would be good or bad
    numbers  everything behind it, in plain types
    draw     makes the figure
    table    (columns, rows) of what a sentence cannot hold
    """

    key: str
    name: str
    title: str
    value: str
    reference: str
    says: str
    reading: str
    numbers: Any
    draw: Callable[[], Figure]
    table: tuple[list[str], list[list[str]]] | None = None


def findings(
    target: str,
    classes: Sequence[str],
    suite: Suite,
    curve: FewShotCurve,
    arms: ArmGeometry | None,
    baseline: str | None,
) -> list[Finding]:
    """All findings in the order in which they are shown.

    baseline: the target-only arm of a comparison that the others are held against.
    """
    made: list[Finding | None] = [
        _few_shot(target, classes, curve),
        _arms(arms, baseline) if arms is not None and baseline is not None else None,
        _plane(classes, suite),
        _margins(suite),
        _separability(suite),
        *_prototypes(classes, suite),
        _alignment(target, suite),
        *_neurons(target, classes, suite),
        _ranks(target, suite),
    ]
    return [finding for finding in made if finding is not None]


def _few_shot(target: str, classes: Sequence[str], curve: FewShotCurve) -> Finding | None:
    if not curve.points:
        return None
    first, last = curve.points[0], curve.points[-1]
    draws = len(first.accuracies)
    says = (
        f"A linear probe on the frozen {target} features reaches {_gain(first.mean, ' %')} from "
        f"{first.shots} labelled {_samples(first.shots)} per class"
    )
    if last is not first:
        says += f" and {_gain(last.mean, ' %')} from {last.shots}"
    return Finding(
        "few_shot",
        "few-shot probe",
        "How many labels do the features need?",
        f"{last.mean.mean:.1f} % at {last.shots}",
        f"{first.mean.mean:.1f} % at {first.shots}",
        f"{says}, over {draws} draws of the samples.",
        f"Higher is better, and a curve that starts high is best: the features then separate the "
        f"classes almost without labels. Guessing gives {100 / len(classes):.2g} %.",
        {"points": plain(curve.points), "left_out": curve.left_out},
        lambda: plots.few_shot_figure(curve, 100 / len(classes)),
    )


def _arms(arms: ArmGeometry, baseline: str) -> Finding:
    against = [arm for arm in (baseline, "uml_permuted") if arm in arms.differences["margin"]]
    others = " and ".join(arm_name(arm) for arm in against)
    rows = [
        [name, *(_gain(arms.differences[measure][arm], "", sign=True) for arm in against)]
        for measure, name in MEASURE_NAMES.items()
    ]
    shown = [MEASURE_NAMES[m] for m in MEASURE_NAMES if _better(arms, m, against)]
    seeds = len(arms.seeds)
    over = f"paired over {seeds} seeds" if seeds > 1 else "one seed, paired over test samples"
    if shown:
        says = f"With the other data, {' and '.join(shown)} are better than in {others}"
    else:
        says = f"With the other data no measure is better than in both of {others}"
    return Finding(
        "arms",
        "arms side by side",
        "Does the other data change the geometry?",
        f"{len(shown)} of 3 better" if shown else "none better",
        others,
        f"{says} (95 % intervals, {over}, the same {arms.samples:,} test samples for all).",
        "Good is a larger margin and silhouette and a smaller Davies-Bouldin index than both "
        "others, with intervals that leave out zero: then classes lie further apart because of "
        "what the other data means. What the control gains as well is owed to its amount alone. "
        "More or fewer directions (rank) are neither good nor bad in themselves.",
        {
            "reference": arms.reference,
            "seeds": arms.seeds,
            "samples": arms.samples,
            "values": arms.values,
            "differences": {
                m: {arm: gain.to_json() for arm, gain in by.items()}
                for m, by in arms.differences.items()
            },
        },
        lambda: plots.geometry_figure(arms, MEASURE_NAMES),
        (["UML minus ...", *map(arm_name, against)], rows),
    )


def _better(arms: ArmGeometry, measure: str, against: Sequence[str]) -> bool:
    """Whether UML is better than each of `against` with intervals that leave out zero."""
    if measure == "rank" or not against:
        return False
    ends = [arms.differences[measure][arm].ci95 for arm in against]
    if measure in SMALLER_IS_BETTER:
        return all(ci is not None and ci[1] < 0 for ci in ends)
    return all(ci is not None and ci[0] > 0 for ci in ends)


def _plane(classes: Sequence[str], suite: Suite) -> Finding | None:
    if suite.plane is None or suite.confusion.pair is None or suite.confusion.share is None:
        return None
    found, share = suite.plane, suite.confusion.share
    a, b = (classes[c] for c in suite.confusion.pair)
    return Finding(
        "plane",
        "most confused pair",
        f"The most confused pair: {a} and {b}",
        f"{100 * share.value:.0f} % mixed up",
        f"{len(found.labels)} samples",
        f"{_percent(share)} of the test samples of {a} and {b} are called the other one, more "
        "than of any two other classes.",
        "Each mark is a test sample, the line is where the decision between the two flips. Good "
        "is two clouds on their own sides; a mark beyond the line is an error. The pair was "
        "picked as the worst, so new data tends to look better.",
        {
            "classes": [a, b],
            "share": plain(share),
            "accuracy_between_the_two": plain(found.accuracy),
            "gap": plain(found.gap),
            "samples": len(found.labels),
        },
        lambda: drawings.plot_decision_plane(found, list(classes)),
    )


def _margins(suite: Suite) -> Finding:
    after, before = suite.margins[TRAINED], suite.margins[UNTRAINED]
    return Finding(
        "margins",
        "functional margin",
        "How far from the boundary do samples lie?",
        _short(after.mean.value),
        f"untrained {_short(before.mean.value)}",
        f"The mean functional margin of the test samples is {_estimate(after.mean)}, and "
        f"{_percent(after.positive_share)} lie on the right side; before training it is "
        f"{_estimate(before.mean)}.",
        "The margin is the distance of a sample from the boundary to the nearest wrong class, "
        "negative where it is classified wrongly. Good is mass to the right of zero; a mass close "
        "to zero means decisions that little noise would flip.",
        {
            state: {
                "mean": plain(m.mean),
                "positive_share": plain(m.positive_share),
                "samples": len(m.margins),
            }
            for state, m in suite.margins.items()
        },
        lambda: drawings.plot_margins(suite.margins),
    )


def _separability(suite: Suite) -> Finding | None:
    if not suite.separability:
        return None
    after, before = suite.separability[TRAINED], suite.separability[UNTRAINED]
    return Finding(
        "separability",
        "silhouette",
        "Do classes form groups?",
        _short(after.silhouette.value),
        f"untrained {_short(before.silhouette.value)}",
        f"The silhouette is {_estimate(after.silhouette)} after training and "
        f"{_short(before.silhouette.value)} before; the Davies-Bouldin index is "
        f"{_estimate(after.davies_bouldin)} and {before.davies_bouldin.value:.3g}.",
        "The silhouette runs from −1 to 1: near 1 every class is a tight group far from the "
        "others, around 0 groups overlap, below 0 samples lie nearer to another class than to "
        "their own. The Davies-Bouldin index compares the width of groups with their distance: "
        "small is good.",
        {
            state: {
                "silhouette": plain(s.silhouette),
                "davies_bouldin": plain(s.davies_bouldin),
                "samples": len(s.rows),
            }
            for state, s in suite.separability.items()
        },
        lambda: drawings.plot_separability(suite.separability),
    )


def _prototypes(classes: Sequence[str], suite: Suite) -> Iterator[Finding]:
    for name, found in suite.prototypes.items():
        clear = found.p_value < 0.05
        verdict = "more than chance explains" if clear else "no more than chance explains"
        numbers = {
            "dominance": plain(found.dominance),
            "dominance_at_random": found.null_high,
            "p_value": found.p_value,
            "hit_rate": plain(found.hit_rate),
            "classes": len(found.classes),
        }
        draw = partial(drawings.plot_prototypes, found, list(classes))
        yield Finding(
            f"prototypes-{name}",
            f"class prototypes, {name}",
            f"Does the head mean the same classes in {name}?",
            f"diagonal {_short(found.dominance.value)} sd",
            f"at random {_short(found.null_high)} sd",
            f"The row of a class points at that class's {name} samples by "
            f"{_estimate(found.dominance)} standard deviations above the other classes, "
            f"{verdict} (p = {found.p_value:.2g}); it is the largest of its row in "
            f"{_percent(found.hit_rate)} of the classes.",
            "Good is a dark red diagonal: the shared head then expects each class in the same "
            f"place for both modalities. Without one, {name} and the target use it separately.",
            numbers,
            draw,
        )


def _alignment(target: str, suite: Suite) -> Finding | None:
    between = {name: group for name, group in suite.alignment.items() if f"{target} and" in name}
    if not suite.alignment:
        return None
    after = next((n for n in between if n.endswith(TRAINED) and not n.endswith(UNTRAINED)), None)
    if after is None:
        name, (cka, _) = next(iter(suite.alignment.items()))
        says = f"Training kept {cka.value:.2f} of the geometry (linear CKA of {name})."
        value, reference = f"{cka.value:.2f}", "1 = unchanged"
    else:
        cka, before = between[after][0], between[after.replace(TRAINED, UNTRAINED)][0]
        beyond = "above" if cka.p_value < 0.05 else "not above"
        says = (
            f"{_what(after)} agree to {cka.value:.2f} (linear CKA), {beyond} what shuffled pairs "
            f"give (up to {cka.null_high:.2f}, p = {cka.p_value:.2g}); before training they agree "
            f"to {before.value:.2f}."
        )
        value = f"CKA {cka.value:.2f}"
        reference = f"shuffled {cka.null_high:.2f}"
    return Finding(
        "alignment",
        "alignment",
        "Do the modalities share a geometry?",
        value,
        reference,
        says,
        "0 is unrelated, 1 the same geometry. Good is a dot to the right of the grey bar, which "
        "shows how far chance reaches, and to the right of the untrained network: then the same "
        "classes lie close in both modalities because of what was learnt. Mutual kNN asks the "
        "same of nearest neighbours. The row that compares the target before and after training "
        "tells how much training moved.",
        {name: [plain(a) for a in group] for name, group in suite.alignment.items()},
        lambda: drawings.plot_alignment(suite.alignment),
    )


def _what(comparison: str) -> str:
    """'image and text, class means, trained' -> 'The class means of image and text'."""
    modalities, what, _ = comparison.split(", ")
    return f"The {what} of {modalities}" if what == "class means" else f"{modalities} of pairs"


def _neurons(target: str, classes: Sequence[str], suite: Suite) -> Iterator[Finding]:
    for name, found in suite.neurons.items():
        units = found.overall
        draw = partial(drawings.plot_neurons, found, list(classes))
        yield Finding(
            f"neurons-{name}",
            f"multimodal units, {name}",
            f"Are there units that answer alike to {target} and {name}?",
            f"{len(units.multimodal)} of {len(units.r)} units",
            f"untrained |r| {units.baseline:.2f}",
            f"{len(units.multimodal)} of {len(units.r)} units answer alike to a thing seen as "
            f"{target} and as {name}: their correlation lies beyond the largest of an untrained "
            f"network ({units.baseline:.2f}) with its whole interval. The strongest reaches "
            f"{_estimate(units.largest)}, over {units.samples:,} pairs that were used for this "
            "measurement alone.",
            "Good is a curve that rises above the upper dashed line: such units stand for the "
            "thing and not for how it was recorded. A curve between the dashed lines shows "
            "nothing that chance and the architecture do not give.",
            {
                "all": _units(units),
                **{classes[c]: _units(u) for c, u in found.by_class.items()},
            },
            draw,
        )


def _units(units: Any) -> dict[str, Any]:
    return {
        "multimodal_units": units.multimodal.tolist(),
        "units": len(units.r),
        "largest": plain(units.largest),
        "untrained_largest": units.baseline,
        "pairs": units.samples,
        "r": np.round(units.r, 4).tolist(),
    }


def _ranks(target: str, suite: Suite) -> Finding | None:
    after = suite.ranks.get(f"{target}, {TRAINED}")
    if after is None:
        return None
    before = suite.ranks.get(f"{target}, {UNTRAINED}")
    was = "" if before is None else f", {before.rank.value:.1f} before training"
    return Finding(
        "ranks",
        "effective rank",
        "How many directions does the representation use?",
        f"{after.rank.value:.1f} of {after.dimensions}",
        "" if before is None else f"untrained {before.rank.value:.1f}",
        f"The {target} features spread over {_estimate(after.rank)} of {after.dimensions} "
        f"directions{was}.",
        "A very small number is bad: the representation has collapsed onto a few directions and "
        "many classes must share them. Beyond that more is not better by itself; compare rows "
        "with the same number of samples.",
        {
            name: {"rank": plain(r.rank), "samples": r.samples, "dimensions": r.dimensions}
            for name, r in suite.ranks.items()
        },
        lambda: drawings.plot_ranks(suite.ranks),
    )


# ---------------------------------------------------------------------------------- words


def _samples(count: int) -> str:
    return "sample" if count == 1 else "samples"


def _estimate(found: Estimate) -> str:
    return f"{_short(found.value)} (95 % interval {_short(found.low)} to {_short(found.high)})"


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _percent(found: Estimate) -> str:
    ends = "" if found.low == found.high else f" ({100 * found.low:.0f} to {100 * found.high:.0f})"
    return f"{100 * found.value:.0f} %{ends}"


def _gain(gain: Gain, unit: str, *, sign: bool = False) -> str:
    digits = _signed if sign else (lambda v: number(v, sign=False))
    text = f"{digits(gain.mean)}{unit}"
    if gain.ci95 is None:
        return text
    return f"{text} ({digits(gain.ci95[0])} to {digits(gain.ci95[1])})"


def _signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−")


def plain(value: Any) -> Any:
    """A result in JSON's types: an `Estimate` as {"value", "ci95"}, a `Gain` as compare.json."""
    if isinstance(value, Estimate):
        return {"value": value.value, "ci95": [value.low, value.high]}
    if isinstance(value, Gain):
        return value.to_json()
    if isinstance(value, Alignment):
        return asdict(value)
    if is_dataclass(value):
        return {name: plain(part) for name, part in vars(value).items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value
