"""Which weight an update moves how far: rates per step and part, weight decay by name.

The general loop and the batched heads (uml_core/heads) both ask here, so that they cannot differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from uml_core.specs import TrainSpec

# Positions, tokens of their own (class, register, mask), biases, norms and scales: decay would pull
# them to a value that means nothing. Looked for in the last two parts of a name.
_NO_MATRIX = re.compile(
    r"bias|norm|gamma|(logit|layer)_scale"
    r"|(^|[._])(pos\w*emb\w*|wpe)(\.|$)|(^|[._])pos(itions?|_\w+)?$|tokens?$",
    re.IGNORECASE,
)
_NAMED_BY_USERS = ("stems", "decoders", "logit_scales")  # the next part is a modality's name


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts on a parameter: on matrices, kernels and embeddings alone.

    name       as `named_parameters` of the learner gives it
    parameter  of any shape; one with a single axis longer than 1 is a vector, unless it has two
    """
    if parameter.dim() < 2 or (parameter.dim() > 2 and sum(n > 1 for n in parameter.shape) < 2):
        return False
    parts = name.split(".")
    own = parts[2:] if parts[0] in _NAMED_BY_USERS else parts
    return _NO_MATRIX.search(".".join(own[-2:])) is None


def rules(learner: nn.Module, spec: TrainSpec) -> dict[str, tuple[float, float]]:
    """Name of every parameter -> (factor of its learning rate, its weight decay).

    Of `lr_factors` (the beginning of names -> factor) the longest that fits counts, else 1.
    """
    found = {}
    for name, parameter in learner.named_parameters():
        fitting = [part for part in spec.lr_factors if f"{name}.".startswith(f"{part}.")]
        factor = spec.lr_factors[max(fitting, key=len)] if fitting else 1.0
        found[name] = (factor, spec.weight_decay if decays(name, parameter) else 0.0)
    return found


def parameter_groups(learner: nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    """Groups for an optimiser: `params`, their `weight_decay`, `factor` of their learning rate."""
    of = rules(learner, spec)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        groups.setdefault(of[name], []).append(parameter)
    return [
        {"params": members, "factor": factor, "weight_decay": decay}
        for (factor, decay), members in groups.items()
    ]


def alike(rules: Mapping[str, tuple[float, float]], names: list[str]) -> list[list[str]]:
    """`names` in groups of one rule, in order."""
    groups: dict[tuple[float, float], list[str]] = {}
    for name in names:
        groups.setdefault(rules[name], []).append(name)
    return list(groups.values())


def learning_rate(spec: TrainSpec, step: int, steps: int, lead: int = 0) -> float:
    """The rate of step `step`, before the factors of parts.

    steps  target batches of the run: linear warm-up over the first `lr_warmup` of them, then
           constant or cosine to zero
    lead   steps before the first target batch. They warm up on their own and stay at the peak, so
           that a target batch has the same rate whatever went before it, in every arm
    """
    t = step - lead
    at = step if t < 0 else t
    if at < spec.lr_warmup:
        return spec.lr * (at + 1) / (spec.lr_warmup + 1)
    if t < 0 or spec.lr_schedule == "constant":
        return spec.lr
    share = (t - spec.lr_warmup) / max(1, steps - spec.lr_warmup)
    return spec.lr * 0.5 * (1 + math.cos(math.pi * share))
