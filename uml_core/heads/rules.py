"""What a method over frozen features finds: a linear rule per seed, calibrated on validation.

Shape legend: S seeds, V validation samples, T test samples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uml_core.heads.problem import Vectors, unit

NEWTON_STEPS = 6


@dataclass(frozen=True)
class Rule:
    """A linear decision per seed: logits = weight u(x - centre) + bias.

    centre (S, D), weight (S, C, D), bias (S, C).
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """x (T, D) -> (S, T, C)."""
        each = zip(self.centre, self.weight, self.bias, strict=True)
        return torch.stack([unit(x - m) @ w.mT + b for m, w, b in each])

    def predict(self, x: Tensor) -> Tensor:
        """x (T, D) -> (S, T) int64 labels."""
        return self.logits(x).argmax(-1)


@dataclass(frozen=True)
class Fitted:
    """What a method found for all seeds of a draw.

    val_nll       (S,) validation negative log-likelihood, in nats, of the chosen setting, its
                  logits times the one factor that suits validation best; nan without validation
    val_accuracy  (S,) percent
    chosen        of each seed: setting -> value
    """

    rule: Rule
    val_nll: Tensor
    val_accuracy: Tensor
    chosen: list[dict[str, Any]]

    def predict(self, x: Tensor) -> Tensor:
        """x (T, D) -> (S, T) int64 labels."""
        return self.rule.predict(x)


Head = Callable[[Vectors], Fitted]


def judged(
    v: Vectors, weight: Tensor, bias: Tensor, chosen: list[dict[str, Any]], scale: bool = True
) -> Fitted:
    """The result of a head: its rule, calibrated on validation unless `scale` is False.

    weight (S, C, D), bias (S, C).
    """
    rule = Rule(v.centre, weight, bias)
    if not scale or not v.val_y.shape[1]:
        nothing = torch.full((len(weight),), torch.nan)
        return Fitted(rule, nothing, nothing, chosen)
    logits = v.val_z @ weight.mT + bias[:, None]
    factor, nll = best_scale(logits, v.val_y)
    hit = (logits.argmax(-1) == v.val_y).double().mean(-1) * 100
    factor = factor.to(weight)
    rule = Rule(v.centre, weight * factor[:, None, None], bias * factor[:, None])
    return Fitted(rule, nll, hit, chosen)


def best_scale(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(a, nll), each (S,) float64: the a > 0 with the least mean NLL of softmax(a logits).

    logits (S, V, C), y (S, V). Newton's method in log a from the best point of a coarse grid. The
    logits' spread over a stays between e^-3 and e^4: where validation has no error no a is best.
    """
    logits = logits - logits.mean(-1, keepdim=True)
    spread = logits.square().mean((1, 2)).sqrt().clamp(min=torch.finfo(logits.dtype).tiny)
    logits = logits / spread[:, None, None]
    right = logits.gather(-1, y[..., None])[..., 0]  # (S, V)

    def nll(log_a: Tensor) -> Tensor:
        a = log_a.exp().to(logits)[:, None]
        return (torch.logsumexp(logits * a[..., None], -1) - a * right).double().mean(-1)

    grid = torch.linspace(-3, 4, 8, dtype=torch.float64)
    log_a = grid[torch.stack([nll(g.expand(len(logits))) for g in grid]).argmin(0)]
    for _ in range(NEWTON_STEPS):
        a = log_a.exp()
        p = torch.softmax(logits * a.to(logits)[:, None, None], -1)
        mean = (p * logits).sum(-1)
        variance = (p * logits.square()).sum(-1) - mean.square()
        slope = a * (mean - right).double().mean(-1)
        curve = a.square() * variance.double().mean(-1)
        step = slope / torch.maximum(curve + slope, curve / 4).clamp(min=1e-12)
        log_a = (log_a - step.clamp(-0.5, 0.5)).clamp(float(grid[0]), float(grid[-1]))
    return log_a.exp() / spread.double(), nll(log_a)
