"""Target shots x auxiliary shots: how many auxiliary samples is one target sample worth?

The grid of the paper's section 4.4, in powers of two up to what the recipe's data can give. Every
point is trained to its end: the plane that gives the rate needs the whole grid.
"""

from __future__ import annotations

from typing import Any

from tune_spaces.base import Context, Knob, Space, Values

STEPS = 3  # values of each modality's shots


def knobs(context: Context) -> list[Knob]:
    """Shots of the target and, together, of all auxiliary modalities in use."""
    if not context.recipe.active[1:]:
        return []
    most = context.recipe.shots
    target = max(most) if isinstance(most, list) else most
    target = 8 if target is None else max(target, 2 ** (STEPS - 1))
    return [
        Knob(f"{context.target} samples per class", _powers(target), target=True),
        Knob("auxiliary samples per class", _powers(2 * target)),
    ]


def settings(values: Values, context: Context) -> dict[str, Any]:
    """Shots of every modality in use."""
    auxiliary = values["auxiliary samples per class"]
    fields = {f"modalities.{name}.shots": auxiliary for name in context.recipe.active[1:]}
    return {"shots": values[f"{context.target} samples per class"], **fields}


def _powers(most: int) -> tuple[int, ...]:
    return tuple(max(1, most >> i) for i in reversed(range(STEPS)))


SPACE = Space(
    "exchange_rate",
    "Target shots x auxiliary shots: what is one more target sample worth?",
    knobs,
    settings,
    whole=True,
)
