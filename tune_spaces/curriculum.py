"""What comes first: warm-up on the target or on an auxiliary modality alone.

The paper warms up on the target (B.4.1: 0, 30, 50 or 70 of 100 epochs), its code on the auxiliary
modality; both are here. Warm-up on the target takes the first target steps without company, that
on an auxiliary modality comes before the first target step.
"""

from __future__ import annotations

from typing import Any

from tune_spaces.base import Context, Knob, Space, Values

SHARES = (0.1, 0.3, 0.5)  # of the run's target steps
NONE = "none"


def knobs(context: Context) -> list[Knob]:
    """The modality that comes first, and for how long."""
    names = [context.target, *context.recipe.active[1:]]
    if len(names) < 2:
        return []
    return [Knob("warm-up on", (NONE, *names)), Knob("warm-up share", SHARES)]


def settings(values: Values, context: Context) -> dict[str, Any]:
    """The warm-up as the recipe writes it."""
    modality = values["warm-up on"]
    if modality == NONE:
        return {"train.warmup": None}
    steps = max(1, round(values["warm-up share"] * context.recipe.train.steps))
    return {"train.warmup": {"modality": modality, "steps": steps}}


SPACE = Space("curriculum", "Warm-up on the target or an auxiliary modality.", knobs, settings)
