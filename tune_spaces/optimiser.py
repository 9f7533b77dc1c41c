"""Learning rate and weight decay, for the model with auxiliary data and the baseline alike."""

from __future__ import annotations

from typing import Any

from tune_spaces.base import Context, Knob, Space, Values

RATES = (1e-3, 3e-3, 1e-2)
DECAYS = (0.01, 0.1, 0.5)


def knobs(context: Context) -> list[Knob]:
    """Both matter without auxiliary data too."""
    return [
        Knob("learning rate", RATES, (RATES[0], RATES[-1]), log=True, target=True),
        Knob("weight decay", DECAYS, (DECAYS[0], DECAYS[-1]), log=True, target=True),
    ]


def settings(values: Values, context: Context) -> dict[str, Any]:
    """The two fields of `train`."""
    return {
        "train.lr": values["learning rate"],
        "train.weight_decay": values["weight decay"],
    }


SPACE = Space("optimiser", "Learning rate and weight decay.", knobs, settings)
