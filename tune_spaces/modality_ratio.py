"""How much of which other modality: batches per target batch, and how they are shared out.

The ratios are those of the paper's ablation (3.10 of its appendix tables 27 and 28). With several
auxiliary modalities the mix is a point of the simplex over them: each corner takes one alone, the
others follow the temperature law share ~ samples^(1/T): T = 1 takes them by size, a high T evenly.
"""

from __future__ import annotations

from typing import Any

from tune_spaces.base import Context, Knob, Space, Values

RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
TEMPERATURES = (1.0, 3.0)
EVEN = "even"


def knobs(context: Context) -> list[Knob]:
    """The ratio and, with more than one auxiliary modality, the mix."""
    names = context.auxiliaries
    if not names:
        return []
    what = names[0] if len(names) == 1 else "auxiliary"
    ratio = Knob(f"{what} batches per {context.target} batch", RATIOS)
    if len(names) == 1:
        return [ratio]
    mixes = [f"{name} only" for name in names]
    if len({context.samples[name] for name in names}) > 1:  # else every temperature is even
        mixes += [f"by size, T = {t:g}" for t in TEMPERATURES]
    return [ratio, Knob("mix", (*mixes, EVEN))]


def settings(values: Values, context: Context) -> dict[str, Any]:
    """The ratio of every auxiliary modality."""
    names = context.auxiliaries
    ratio = next(v for name, v in values.items() if name != "mix")
    mix = shares(values.get("mix", f"{names[0]} only"), context)
    return {f"modalities.{name}.ratio": ratio * mix[name] for name in names}


def shares(mix: str, context: Context) -> dict[str, float]:
    """The point of the simplex that a mix names: modality -> share, summing to 1."""
    names = context.auxiliaries
    if mix == EVEN:
        weights = dict.fromkeys(names, 1.0)
    elif mix.startswith("by size"):
        temperature = float(mix.rpartition("= ")[2])
        weights = {name: context.samples[name] ** (1 / temperature) for name in names}
    else:
        weights = {name: float(mix == f"{name} only") for name in names}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


SPACE = Space(
    "modality_ratio",
    "How much of which other modality: batches per target batch, and the mix of several.",
    knobs,
    settings,
)
