"""Do the modalities pull the shared weights the same way? Norms, cosines and sign agreement.

The shared weights are the only coupling of the method (paper 3.2), so a conflict between
modalities, which the paper leaves open, shows here first. Two losses whose gradients on them have a
positive cosine are lowered by the same small step; with a negative one each step for the one undoes
some of the other. What a cosine is worth shows beside the permuted control, whose auxiliary data
has the same marginals and no meaning: both share one classifier, so even meaningless labels agree
with the target on, say, how large the logits should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from uml_core.analysis.bootstrap import Estimate, bootstrap_mean, t_interval
from uml_core.errors import UserError

if TYPE_CHECKING:
    from uml_core.learner import UnpairedLearner
    from uml_core.modalities.base import Batch

Pair = tuple[str, str]


def _alone(value: Tensor) -> Tensor:
    """The sum over ranks where there is one."""
    return value


@dataclass(frozen=True)
class GradientReport:
    """Gradients of each modality's loss on the shared weights, at one step.

    norm             {modality: Euclidean norm over all shared weights}
    cosine           {(a, b): cosine of the two gradients in [-1, 1]}, 0 where one vanishes
    sign_agreement   {(a, b): share of equal signs among entries where neither is zero}, 0.5 is
                     what unrelated gradients give; 0 where no such entry exists
    step             updates made before it, counted in steps of the schedule
    """

    norm: dict[str, float]
    cosine: dict[Pair, float]
    sign_agreement: dict[Pair, float]
    step: int = 0

    def metrics(self) -> dict[str, float]:
        """Flat names for a tracker: ``grad_norm/image``, ``grad_cosine/image/text`` ..."""
        flat = {f"grad_norm/{m}": v for m, v in self.norm.items()}
        flat |= {f"grad_cosine/{a}/{b}": v for (a, b), v in self.cosine.items()}
        return flat | {f"grad_sign/{a}/{b}": v for (a, b), v in self.sign_agreement.items()}

    def finite(self) -> bool:
        """Whether every number is finite, which a run near divergence does not give."""
        return all(map(math.isfinite, self.metrics().values()))

    def to_json(self) -> dict[str, Any]:
        """``{"step", "norm": {m: v}, "cosine": {"a/b": v}, "sign_agreement": {"a/b": v}}``."""
        pairs = {
            name: {f"{a}/{b}": v for (a, b), v in getattr(self, name).items()}
            for name in ("cosine", "sign_agreement")
        }
        return {"step": self.step, "norm": self.norm, **pairs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GradientReport:
        """The inverse of `to_json`."""

        def pairs(values: Mapping[str, float]) -> dict[Pair, float]:
            return {(a, b): v for key, v in values.items() for a, _, b in [key.partition("/")]}

        cosine, sign = pairs(data["cosine"]), pairs(data["sign_agreement"])
        return cls(dict(data["norm"]), cosine, sign, int(data["step"]))


@dataclass(frozen=True)
class GradientSummary:
    """Means over the reports of one or several runs with 95 % intervals.

    agreement  {(a, b): share of measured steps with a cosine above zero, in [0, 1]}
    cosines    {(a, b): (S,) mean cosine of each run}, for paired comparisons of arms
    runs, reports   how many there are of both
    """

    norm: dict[str, Estimate]
    cosine: dict[Pair, Estimate]
    sign_agreement: dict[Pair, Estimate]
    agreement: dict[Pair, Estimate]
    cosines: dict[Pair, np.ndarray]
    runs: int
    reports: int


def weighted_losses(
    learner: UnpairedLearner,
    parts: Sequence[tuple[str, Batch, float]],
    total: Callable[[Tensor], Tensor] = _alone,
) -> dict[str, Tensor]:
    """{modality: its loss in one step}, a graph each, at the present weights.

    parts  (modality, batch, factor of its mean loss) as the step's update weighs them, so that
           gradient norms are shares of the update
    total  sum over ranks, whose batches are slices of the step's: a rank's losses are then its
           share of the losses of the whole batch
    """
    losses: dict[str, Tensor] = {}
    for name, batch, factor in parts:
        sums, terms = learner([(name, batch)])
        loss = factor * sums[0] / total(terms)[0].clamp(min=1)
        losses[name] = losses[name] + loss if name in losses else loss
    return losses


def gradient_report(
    losses: Mapping[str, Tensor],
    shared: Sequence[Tensor],
    step: int = 0,
    total: Callable[[Tensor], Tensor] = _alone,
) -> GradientReport:
    """Differentiate each modality's scalar loss by the shared parameters alone.

    `.grad` is neither read nor written, and the graphs stay alive, so the training step's own
    backward can follow; they go when the losses go. One float32 gradient of the shared parameters
    per modality is held until the call returns. Losses may share a graph. Parameters a loss does
    not reach count as zero. total: sum over ranks, called once for all gradients together; the
    report is then alike on all ranks. One device synchronisation. Raises UserError without losses
    or parameters.
    """
    names, parameters = list(losses), [p for p in shared if p.requires_grad]
    if not names or not parameters:
        raise UserError("gradients need at least one loss and one shared parameter that trains")
    rows = total(torch.stack([_flat_gradient(loss, parameters) for loss in losses.values()]))
    pairs = list(combinations(range(len(names)), 2))
    squares = (rows @ rows.T).flatten()
    numbers = torch.cat([squares, *(_same_signs(rows[i], rows[j]) for i, j in pairs)]).tolist()
    gram = np.array(numbers[: len(names) ** 2]).reshape(len(names), -1)
    norm = np.sqrt(np.diag(gram))
    cosine, signs = {}, {}
    for (i, j), same in zip(pairs, numbers[len(names) ** 2 :], strict=True):
        scale = norm[i] * norm[j]
        cosine[names[i], names[j]] = float(np.clip(gram[i, j] / scale, -1, 1)) if scale else 0.0
        signs[names[i], names[j]] = same
    return GradientReport(dict(zip(names, norm.tolist(), strict=True)), cosine, signs, step)


def summarise(
    runs: Sequence[Sequence[GradientReport]], repeats: int = 1000, seed: int = 0
) -> GradientSummary:
    """Means over the reports of each run, then over runs (seeds); runs without a report drop out.

    Intervals are t intervals over runs. One run alone has bootstrap intervals over its steps, which
    then count as independent draws: true of the noise of fresh batches, not of a drift over
    training. Raises UserError without any report.
    """
    runs = [run for run in runs if run]
    if not runs:
        raise UserError("no gradient report to summarise")

    def values(field: str, key: Any) -> list[np.ndarray]:
        found = ([getattr(r, field)[key] for r in run if key in getattr(r, field)] for run in runs)
        return [np.array(v) for v in found if v]

    def mean(each: list[np.ndarray]) -> Estimate:
        if len(each) == 1:
            return bootstrap_mean(each[0], repeats, seed)
        return t_interval(np.array([v.mean() for v in each]))

    names = dict.fromkeys(m for run in runs for r in run for m in r.norm)
    pairs = dict.fromkeys(p for run in runs for r in run for p in r.cosine)
    cosines = {p: values("cosine", p) for p in pairs}
    return GradientSummary(
        norm={m: mean(values("norm", m)) for m in names},
        cosine={p: mean(each) for p, each in cosines.items()},
        sign_agreement={p: mean(values("sign_agreement", p)) for p in pairs},
        agreement={p: mean([1.0 * (v > 0) for v in each]) for p, each in cosines.items()},
        cosines={p: np.array([v.mean() for v in each]) for p, each in cosines.items()},
        runs=len(runs),
        reports=sum(map(len, runs)),
    )


def sentence(found: GradientSummary, pair: Pair, control: GradientSummary | None = None) -> str:
    """What a summary says of one pair (target, auxiliary), in words.

    control  the same of the permuted control, run by run with the same seeds
    """
    target, auxiliary = pair
    share = found.agreement[pair]
    over = f"{found.runs} seeds" if found.runs > 1 else f"over {found.reports} steps of one run"
    text = (
        f"{auxiliary} pulls the shared weights the same way as {target} in {100 * share.value:.0f} "
        f"% of the measured steps ({_share_ends(share)}, {over})"
    )
    if control is None or pair not in control.cosine:
        mean = found.cosine[pair]
        return f"{text}; mean cosine {mean.value:.3f} ({_ends(mean)})."
    other = control.agreement[pair]
    text += f", the permuted control in {100 * other.value:.0f} % ({_share_ends(other)}). "
    means = f"{found.cosine[pair].value:.3f} against {control.cosine[pair].value:.3f}"
    a, b = found.cosines[pair], control.cosines[pair]
    if len(a) != len(b) or len(a) < 2:
        return f"{text}Mean cosine {means}."
    gap = t_interval(a - b)
    if gap.low > 0:
        meaning = f"the meaning of {auxiliary} makes it pull more with {target}"
    elif gap.high < 0:
        meaning = f"the meaning of {auxiliary} makes it pull less with {target}"
    else:
        meaning = f"no effect of what {auxiliary} means is seen in it"
    return f"{text}Mean cosine {means}, difference {gap.value:+.3f} ({_ends(gap)}): {meaning}."


def _share_ends(share: Estimate) -> str:
    low, high = (100 * min(max(v, 0.0), 1.0) for v in (share.low, share.high))
    return f"95 % interval {low:.0f} to {high:.0f} %"


def _ends(cosine: Estimate) -> str:
    return f"95 % interval {cosine.low:+.3f} to {cosine.high:+.3f}"


def _flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """(P,) float32 gradient over all parameters, zero where the loss does not reach."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p, dtype=torch.float32).flatten() if g is None else g.float().flatten()
            for p, g in zip(parameters, found, strict=True)
        ]
    )


def _same_signs(a: Tensor, b: Tensor) -> Tensor:
    """(1,) share of entries with equal signs among those where neither is zero."""
    product = a.sign() * b.sign()
    return ((product > 0).sum() / (product != 0).sum().clamp(min=1)).view(1)
