"""The paper's own grids: Table 5 (supervised) and B.4.1 (self-supervised).

Supervised: learning rate, weight decay, batch size, learnable logit scale, and the alphas of the
authors' code. Self-supervised: learning rate, width, and the share of the run in which the target
trains alone; its trunk has 5 heads. Models whose width is given by their data keep it.
"""

from __future__ import annotations

from typing import Any

from tune_spaces.base import Context, Knob, Space, Values

SUPERVISED: dict[str, tuple[Any, ...]] = {
    "learning rate": (1e-3, 1e-4),
    "weight decay": (0.0, 0.01, 0.001),
    "batch size": (8, 32),
    "logit scale": ("fixed", "learned"),
}
ALPHAS = (0.2, 0.5, 0.7, 1.0, 1.5)
SELF_SUPERVISED: dict[str, tuple[Any, ...]] = {
    "learning rate": (1e-2, 1e-3, 1e-4),
    "width": (10, 40, 150, 300),
}
ALONE = (0.0, 0.3, 0.5, 0.7)  # share of the run: 0, 30, 50, 70 of 100 epochs
FIELDS = {
    "learning rate": "train.lr",
    "weight decay": "train.weight_decay",
    "batch size": "train.batch_size",
    "logit scale": "model.logit_scale",
    "width": "model.width",
}


def knobs(context: Context) -> list[Knob]:
    """The grid of the recipe's setting."""
    if context.recipe.setting == "supervised":
        shared, own = SUPERVISED, Knob("alpha", ALPHAS)
    else:
        shared, own = SELF_SUPERVISED, Knob(f"share of {context.target} alone", ALONE)
    return [*(Knob(name, values, target=True) for name, values in shared.items()), own]


def settings(values: Values, context: Context) -> dict[str, Any]:
    """The fields of the recipe's setting."""
    fields: dict[str, Any] = {FIELDS[k]: v for k, v in values.items() if k in FIELDS}
    if context.recipe.setting == "supervised":
        return fields | {f"modalities.{n}.weight": values["alpha"] for n in context.auxiliaries}
    steps = round(values[f"share of {context.target} alone"] * context.recipe.train.steps)
    warmup = {"modality": context.target, "steps": steps} if steps else None
    return fields | {"model.heads": 5, "train.warmup": warmup}


SPACE = Space("paper_grid", "The paper's own grids per setting.", knobs, settings)
