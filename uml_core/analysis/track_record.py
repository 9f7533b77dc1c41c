"""How the forecast of forecast.py has fared in this project's own comparisons.

track_record.json holds one case per finished comparison: what was forecast before training and
what was then measured (docs/track_record.py collects them). Which comparisons count was settled
before they were run, and none is left out. The three variants of the shapes world (sound alone, a
text target, a sound target) had been looked at on seeds 0 to 2 before; recorded are the fresh seeds
101 to 105. `known` marks data sets whose outcome was known when the rule's threshold was set: they
are no test of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from uml_core.analysis.forecast import LIKELY, HitRate, hit_rate
from uml_core.statistics import Gain, gain_shown

FEW = 20  # decided cases below which a hit rate means little
FULL = 95.0  # percent: a target that is right so often alone has little to gain, which no rule sees
FILE = "track_record.json"


@dataclass(frozen=True)
class Case:
    """One comparison: how it was run, its forecast, its outcome.

    command, date, commit, seeds   what it takes to run it again
    geometry                       auxiliary -> rank correlation of class similarities, or None
    verdict                        the forecast: likely, unlikely or open
    alone                          test accuracy of the target alone, in percent
    gain, gain_over_control        of UML, in points, with intervals
    known                          whether the threshold was set knowing this data set's outcome
    """

    recipe: str
    command: str
    date: str
    commit: str
    target: str
    shots: int | None
    seeds: tuple[int, ...]
    geometry: dict[str, float | None]
    verdict: str
    alone: float
    gain: Gain
    gain_over_control: Gain
    known: bool

    @property
    def gained(self) -> bool:
        """Whether a gain could be claimed, by the rule of every comparison."""
        return gain_shown(self.gain, self.gain_over_control)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """A case from plain types, as track_record.json holds them."""
        gains = {name: Gain.from_json(data[name]) for name in ("gain", "gain_over_control")}
        return cls(**{**data, **gains, "seeds": tuple(data["seeds"])})


@cache
def cases() -> tuple[Case, ...]:
    """All cases of this project."""
    text = (resources.files("uml_core.analysis") / FILE).read_text(encoding="utf-8")
    return tuple(map(Case.from_json, json.loads(text)))


def rate(found: Sequence[Case]) -> HitRate:
    """How often the forecast was right among the cases in which it decided."""
    return hit_rate([case.verdict for case in found], [case.gained for case in found])


def sentence(found: Sequence[Case]) -> str:
    """The hit rate in words, with what it is worth."""
    all_of, new = rate(found), rate([case for case in found if not case.known])
    if all_of.right is None:
        return "The rule has decided no comparison of this project yet."
    text = f"The rule was right in {right(all_of)} of {all_of.decided} comparisons of this project"
    text += f" ({_interval(all_of)}) and left {all_of.open} open"
    if new.decided < all_of.decided:
        text += f"; not counting data it was made from, in {right(new)} of {new.decided}"
    missed = [case for case in found if case.verdict == LIKELY and not case.gained]
    full = sum(case.alone >= FULL for case in missed)
    if full:
        hopes = f"In {full} of its {len(missed)} false hopes"
        text += f". {hopes} the target alone was right in {FULL:.0f} % and more"
    return f"{text}. {'Too few cases to trust it.' if all_of.decided < FEW else ''}".strip()


def brief(found: Sequence[Case]) -> str:
    """The same in a few words."""
    all_of = rate(found)
    if all_of.right is None:
        return "never tested"
    few = ", too few to trust" if all_of.decided < FEW else ""
    return f"right in {right(all_of)} of {all_of.decided} of this project's comparisons{few}"


def right(found: HitRate) -> int:
    """Decided cases in which the forecast was right."""
    return 0 if found.right is None else round(found.right.value * found.decided)


def _interval(found: HitRate) -> str:
    assert found.right is not None
    return f"95 % interval {100 * found.right.low:.0f} to {100 * found.right.high:.0f} %"
