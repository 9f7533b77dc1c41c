"""The whole decision for heads over frozen features: arms, choice, controls, evidence.

One number of shots at a time, all seeds at once. Target-only arms choose their settings on the
validation samples; the baseline is the one of least mean validation NLL. A method is chosen in the
same way (`auto`) among those that use the auxiliary, and is set against every target-only arm and
against its own controls: auxiliary labels deranged per seed, and kappa = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from uml_core.compare.claim import Evidence, evidence
from uml_core.errors import UserError
from uml_core.heads.aux_shift import Rows, text_shift
from uml_core.heads.bridge import Bridge
from uml_core.heads.linear import lda, logistic, prototypes
from uml_core.heads.problem import Control, Draw, Problem
from uml_core.heads.rules import Fitted, Head

CONTROLS: tuple[Control, ...] = ("permuted", "zero")
HEADS: dict[str, Head] = {"logistic": logistic, "lda": lda, "prototypes": prototypes}
Method = Callable[[Draw, Control | None, Fitted], Fitted]  # draw, control, baseline's fit


@dataclass(frozen=True)
class Decision:
    """What was found at one number of shots.

    hits      arm -> (S, T) whether each test sample was right; a method's controls are called
              METHOD_permuted and METHOD_zero
    val_nll   arm -> mean over seeds, in nats
    chosen    arm -> the settings of each seed
    baseline  the target-only arm of least validation NLL: its difference is the gain's number
    method    the arm that `auto` took
    evidence  of the method, against all target-only arms and its controls
    """

    hits: dict[str, np.ndarray]
    val_nll: dict[str, float]
    chosen: dict[str, list[dict]]
    baseline: str
    method: str
    evidence: Evidence


def shifts(rows: Sequence[Rows], bridge: Bridge | None = None) -> dict[str, Method]:
    """The arms `text_shift` by way of each of `rows`, over logistic regression."""

    def method(way: Rows) -> Method:
        def fit(draw: Draw, control: Control | None, plain: Fitted) -> Fitted:
            return text_shift(draw, way, logistic, bridge, control, plain)

        return fit

    return {f"text_shift:{way}": method(way) for way in rows}


@dataclass
class _Arms:
    """The arms of one draw, as they are fitted."""

    problem: Problem
    fitted: dict[str, Fitted] = field(default_factory=dict)
    hits: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self, name: str, found: Fitted) -> None:
        """Judges an arm on the test samples, once."""
        self.fitted[name] = found
        right: Tensor = found.predict(self.problem.test.x) == self.problem.test.y
        self.hits[name] = right.numpy()

    def best(self, names: Sequence[str]) -> str:
        """The arm of least mean validation NLL; ties: the first."""
        return min(names, key=lambda name: float(self.fitted[name].val_nll.mean()))


def decide_heads(
    problem: Problem,
    shots: int,
    seeds: Sequence[int],
    methods: Mapping[str, Method],
    heads: Mapping[str, Head] = HEADS,
) -> Decision:
    """Fits every arm at `shots` per class and sets the method that validation takes against all.

    methods  arms that use the auxiliary (`shifts`); every one starts from the logistic head
    heads    the target-only arms, "logistic" among them
    Raises UserError where there is nothing to decide.
    """
    if not methods or "logistic" not in heads:
        raise UserError(
            "a decision needs a method and the logistic head among the target-only arms"
        )
    draw = problem.draw(shots, seeds)
    arms = _Arms(problem)
    for name, head in heads.items():
        arms.take(name, head(draw.vectors))
    plain = arms.fitted["logistic"]
    for name, method in methods.items():
        arms.take(name, method(draw, None, plain))
    chosen = arms.best(list(methods))
    controls = []
    for control in CONTROLS:
        arms.take(f"{chosen}_{control}", methods[chosen](draw, control, plain))
        controls.append(f"{chosen}_{control}")
    return Decision(
        hits=arms.hits,
        val_nll={name: float(found.val_nll.mean()) for name, found in arms.fitted.items()},
        chosen={name: found.chosen for name, found in arms.fitted.items()},
        baseline=arms.best(list(heads)),
        method=chosen,
        evidence=evidence(chosen, [*heads, *controls], arms.hits),
    )
