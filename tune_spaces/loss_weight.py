"""How much the loss of each auxiliary modality counts: the paper's lambda, its code's alpha.

The values are those of the authors' code (their README and finetune.yaml together); random search
draws from the whole stretch between. With several modalities in use each has a weight of its own.
"""

from __future__ import annotations

from typing import Any

from tune_spaces.base import Context, Knob, Space, Values

ALPHAS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)


def knobs(context: Context) -> list[Knob]:
    """One weight per auxiliary modality."""
    span = (ALPHAS[0], ALPHAS[-1])
    return [Knob(_name(name), ALPHAS, span, log=True) for name in _turned(context)]


def settings(values: Values, context: Context) -> dict[str, Any]:
    """The weights as the recipe writes them."""
    return {f"modalities.{name}.weight": values[_name(name)] for name in _turned(context)}


def _turned(context: Context) -> list[str]:
    return context.recipe.active[1:] or context.auxiliaries


def _name(modality: str) -> str:
    return f"weight of the {modality} loss"


SPACE = Space(
    "loss_weight", "How much the loss of each auxiliary modality counts.", knobs, settings
)
