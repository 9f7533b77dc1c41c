"""Do the modalities pull the shared weights the same way? Norms, cosines and sign agreement.

The shared weights are the only coupling of the method (paper 3.2), so a conflict between
modalities, which the paper leaves open, shows here first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from uml_core.analysis.bootstrap import Estimate, bootstrap_mean
from uml_core.errors import UserError


@dataclass(frozen=True)
class GradientReport:
    """Gradients of each modality's loss on the shared weights, at one step.

    norm             {modality: Euclidean norm over all shared weights}
    cosine           {(a, b): cosine of the two gradients in [-1, 1]}, 0 where one vanishes
    sign_agreement   {(a, b): share of equal signs among entries where neither is zero}, 0.5 is
                     what unrelated gradients give; 0 where no such entry exists
    """

    norm: dict[str, float]
    cosine: dict[tuple[str, str], float]
    sign_agreement: dict[tuple[str, str], float]

    def metrics(self) -> dict[str, float]:
        """Flat names for a tracker: ``grad_norm/image``, ``grad_cosine/image/text`` ..."""
        flat = {f"grad_norm/{m}": v for m, v in self.norm.items()}
        flat |= {f"grad_cosine/{a}/{b}": v for (a, b), v in self.cosine.items()}
        return flat | {f"grad_sign/{a}/{b}": v for (a, b), v in self.sign_agreement.items()}


@dataclass(frozen=True)
class GradientSummary:
    """Means over the reports of a run with bootstrap intervals over steps.

    conflict   {(a, b): share of steps with a cosine below zero}
    """

    norm: dict[str, Estimate]
    cosine: dict[tuple[str, str], Estimate]
    sign_agreement: dict[tuple[str, str], Estimate]
    conflict: dict[tuple[str, str], Estimate]
    steps: int


def gradient_report(losses: Mapping[str, Tensor], shared: Sequence[Tensor]) -> GradientReport:
    """Differentiate each modality's scalar loss by the shared parameters alone.

    `.grad` is neither read nor written, and the graphs stay alive, so the training step's own
    backward can follow; they go when the losses go. One gradient of the shared parameters per
    modality is held until the call returns. Losses may share a graph. Parameters a loss does
    not reach count as zero. Sums are float32; one device synchronisation.
    Raises UserError without losses or parameters.
    """
    names, parameters = list(losses), [p for p in shared if p.requires_grad]
    if not names or not parameters:
        raise UserError("gradients need at least one loss and one shared parameter that trains")
    gradients = {
        name: torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for name, loss in losses.items()
    }
    pairs = list(combinations(names, 2))
    zero = parameters[0].new_zeros((), dtype=torch.float32)
    squares = [_dot(gradients[m], gradients[m], zero) for m in names]
    dots = [_dot(gradients[a], gradients[b], zero) for a, b in pairs]
    signs = [_same_signs(gradients[a], gradients[b], zero) for a, b in pairs]
    numbers = torch.stack([*squares, *dots, *signs]).tolist()
    norm = {m: v**0.5 for m, v in zip(names, numbers, strict=False)}
    dot_of = dict(zip(pairs, numbers[len(names) :], strict=False))
    agreement = dict(zip(pairs, numbers[len(names) + len(pairs) :], strict=True))
    cosine = {}
    for a, b in pairs:
        scale = norm[a] * norm[b]
        cosine[a, b] = min(1.0, max(-1.0, dot_of[a, b] / scale)) if scale > 0 else 0.0
    return GradientReport(norm, cosine, agreement)


def summarise(
    reports: Sequence[GradientReport], repeats: int = 1000, seed: int = 0
) -> GradientSummary:
    """Means over steps; reports must name the same modalities.

    Steps count as independent draws, which holds for the noise of fresh batches but not for a
    drift over training: read the intervals beside the curve.
    """
    if not reports:
        raise UserError("no gradient report to summarise")

    def mean(values: Sequence[float]) -> Estimate:
        return bootstrap_mean(np.array(values), repeats, seed)

    pairs = list(reports[0].cosine)
    return GradientSummary(
        norm={m: mean([r.norm[m] for r in reports]) for m in reports[0].norm},
        cosine={p: mean([r.cosine[p] for r in reports]) for p in pairs},
        sign_agreement={p: mean([r.sign_agreement[p] for r in reports]) for p in pairs},
        conflict={p: mean([float(r.cosine[p] < 0) for r in reports]) for p in pairs},
        steps=len(reports),
    )


Gradient = Sequence[Tensor | None]


def _dot(a: Gradient, b: Gradient, zero: Tensor) -> Tensor:
    total = zero
    for p, q in zip(a, b, strict=True):
        if p is not None and q is not None:
            total = total + torch.dot(p.flatten().float(), q.flatten().float())
    return total


def _same_signs(a: Gradient, b: Gradient, zero: Tensor) -> Tensor:
    same, counted = zero, zero
    for p, q in zip(a, b, strict=True):
        if p is not None and q is not None:
            product = p.sign() * q.sign()
            same = same + (product > 0).sum()
            counted = counted + (product != 0).sum()
    return same / counted.clamp(min=1)
