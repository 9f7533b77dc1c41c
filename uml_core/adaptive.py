"""`ratio: adaptive`: the mix of modalities is learned during one run.

What is known. Online data mixing treats domains as the arms of a bandit (ODM, Albalak et al.
2023, Exp3) whose reward is a loss: that finds domains that are still hard, not those that help a
target. DoReMi (Xie et al. 2023) learns weights with a proxy model before the run. Auxiliary
learning asks the right question: is the auxiliary gradient a descent direction of the target's
loss? (Du et al. 2018 gate by the sign of its cosine; DoGE, Fan et al. 2024, turns the inner product
with the target domain's gradient into domain weights by exponentiated gradient.) A bandit needs
many rewards; a small run has a dozen validations. A gradient tells the same for every modality at
once, whether or not it was drawn, so this is DoGE's rule, in full information, on the weights that
the modalities share.

At every validation, with g_v the gradient of the target's loss on validation samples and g_m that
of modality m on its last training batches, both on the shared weights:

    gain_m = cos(g_v, g_m) * |g_m| / (|g_m| + |g_t|)     predicted gain of the validation loss:
                                                         direction, and what m still has to give
    score_m += rate * gain_m / max over steps so far of |gain|
    share   = (1 - floor) softmax(score, 0) + floor / (M + 1)

g_t is the target's gradient on training batches; the zero in the softmax stands for "the target
alone", whose share takes no batch. The ratio of m until the next validation is share_m over the
price of its batches, scaled so that equal shares spend `mean` batches per target batch in all.

Cost. A run never spends more than `mean` batches per target batch over its whole length: what is
spent early is missing later, and no validation may plan more than `HURRY` times the even pace of
what is left. So a run with a fixed ratio `mean` is its equal-cost counterpart (with prices in
FLOPs, where batches differ), and streams know the most they can be asked for. No modality gets
more than `most` batches per target batch at any time, however cheap it is. A warm-up on one of them
comes before the first target batch and is paid for beside, as where ratios are fixed. The gradients
cost some passes per validation (`PROBE_BATCHES`).

Every decision is a pure function of weights and batches: the same on all ranks (gradients are
summed over them), the same for the same seed, and part of the checkpoint as plain numbers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from uml_core.loop import Fit
from uml_core.modalities.base import Batch
from uml_core.schedule import Ratio, Schedule
from uml_core.specs import Recipe

Numbered = tuple[int, Batch]
Next = Callable[[str], Numbered]
HURRY = 1.5
PROBE_BATCHES = 4  # batches per modality behind each gradient; more cost more and tell more


@dataclass
class Adaptive:
    """The policy of one run: ratios so far, and how the next ones are decided.

    ratios   modality -> ratio as `Schedule` takes it; adaptive ones grow with every decision
    scores   modality -> accumulated predicted gain (logits of the shares)
    history  one entry per decision: step, gains, ratios
    """

    schedule: Schedule
    names: list[str]
    mean: float
    price: dict[str, float]
    rate: float
    floor: float
    most_at_once: float
    validate_every: int
    ratios: dict[str, Ratio] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    largest: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    recent: dict[str, deque[Numbered]] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> Adaptive | None:
        """The policy of a recipe's run; None where every ratio is fixed."""
        names = recipe.adaptive
        if not names:
            return None
        spec, plain = recipe.train.adaptive, recipe.schedule()
        every = recipe.train.validate_every
        price = {name: spec.price.get(name, 1.0) for name in names}
        made = cls(plain, names, spec.mean, price, spec.rate, spec.floor, spec.most, every)
        made.ratios = dict(plain.ratios)
        made.scores = dict.fromkeys(names, 0.0)
        made.schedule = replace(plain, ratios=made.ratios)  # grows as `ratios` does
        return made

    def most(self) -> dict[str, int]:
        """Batches of every modality that the run can ask for at most."""
        taken = self.schedule.consumed(self.schedule.total)
        before = self.schedule.consumed(self.schedule.lead)  # a warm-up is no part of the budget
        budget = self.mean * self.schedule.steps
        # One batch of rounding per adaptive modality beside the budget that all of them share.
        return taken | {
            name: before[name] + math.ceil(budget / self.price[name]) + 1 for name in self.names
        }

    # ------------------------------------------------------------------------ in a run

    def watch(self, next_batch: Next) -> Next:
        """`next_batch` that keeps the last batches of every modality for the gradients."""

        def kept(name: str) -> Numbered:
            found = next_batch(name)
            self.recent.setdefault(name, deque(maxlen=PROBE_BATCHES)).append(found)
            return found

        return kept

    @staticmethod
    def rewound(cursor: Mapping[str, int]) -> dict[str, int]:
        """Where the streams of a resumed run start, so that `refill` can have its batches."""
        return {name: max(0, taken - PROBE_BATCHES) for name, taken in cursor.items()}

    def refill(self, next_batch: Next, cursor: Mapping[str, int]) -> None:
        """Takes the batches before `cursor` from streams that start at `rewound(cursor)`."""
        kept = self.watch(next_batch)
        for name, first in self.rewound(cursor).items():
            for _ in range(first, cursor[name]):
                kept(name)

    def around(
        self,
        evaluate: Callable[[Fit], float],
        validation: Sequence[Batch],
        target: str,
        position: Callable[[], int],
    ) -> Callable[[Fit], float]:
        """`evaluate` that also decides the next ratios.

        validation  samples of the target (a rank's part) that are never trained on
        position    steps finished when `evaluate` is called
        """

        def both(fit: Fit) -> float:
            accuracy = evaluate(fit)
            # Of one rank: ranks whose ratios differ in an ulp would ask for other batches.
            self.decide(position(), fit.world.decided(self.gains(fit, validation, target)))
            return accuracy

        return both

    def gains(self, fit: Fit, validation: Sequence[Batch], target: str) -> dict[str, float]:
        """Predicted gain of the validation loss per modality, between -1 and 1."""
        few = [(0, batch) for batch in list(validation)[:PROBE_BATCHES]]
        towards = shared_gradient(fit, target, few)
        own = shared_gradient(fit, target, self.recent.get(target, ()))
        out = {}
        for name in self.names:
            theirs = shared_gradient(fit, name, self.recent.get(name, ()))
            norms = float(towards.norm() * theirs.norm())
            if norms == 0:
                out[name] = 0.0
                continue
            to_give = float(theirs.norm() / (theirs.norm() + own.norm()))
            out[name] = float(torch.dot(towards, theirs)) / norms * to_give
        return out

    def decide(self, step: int, gains: Mapping[str, float]) -> None:
        """Takes note of the gains after `step` steps and fixes the ratios from there on."""
        at = step - self.schedule.lead  # ratios count target batches
        if at >= self.schedule.steps:
            return  # nothing is left to decide
        self.largest = max([self.largest, *(abs(g) for g in gains.values())])
        if self.largest > 0:
            for name in self.names:
                self.scores[name] += self.rate * gains[name] / self.largest
        planned = self._planned(at)
        for name in self.names:
            self.ratios[name] = (*self._pieces(name), (at, planned[name]))
        self.history.append({"step": step, "gain": dict(gains), "ratio": planned})

    def shares(self) -> dict[str, float]:
        """The share of every adaptive modality; what is missing to 1 is the target alone."""
        top = max(0.0, *self.scores.values())
        weights = {name: math.exp(score - top) for name, score in self.scores.items()}
        total = sum(weights.values()) + math.exp(-top)
        even = self.floor / (len(self.names) + 1)
        return {name: (1 - self.floor) * w / total + even for name, w in weights.items()}

    def _planned(self, at: int) -> dict[str, float]:
        shares = self.shares()
        scale = self.mean * (len(self.names) + 1) / len(self.names)
        left = self.schedule.steps - at
        spent = sum(self.price[name] * self._taken(name, at) for name in self.names)
        even = max(0.0, self.mean * self.schedule.steps - spent) / max(1, left)
        stretch = min(self.validate_every, max(1, left))
        most = min(HURRY * even, even * left / stretch)  # a last stretch may take all that is left
        wanted = {name: scale * share for name, share in shares.items()}
        total = sum(wanted.values())
        cut = min(1.0, most / total) if total > 0 else 0.0
        return {
            name: min(self.most_at_once, value * cut / self.price[name])
            for name, value in wanted.items()
        }

    def _taken(self, name: str, at: int) -> float:
        pieces = self._pieces(name)
        ends = [start for start, _ in pieces[1:]] + [at]
        return sum(r * (end - start) for (start, r), end in zip(pieces, ends, strict=True))

    def _pieces(self, name: str) -> tuple[tuple[int, float], ...]:
        ratio = self.ratios[name]
        assert isinstance(ratio, tuple)
        return ratio

    # ---------------------------------------------------------------------- checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: everything the rest of the run depends on, but for the last batches.

        Those are taken from the streams again (`rewound`, `refill`).
        """
        pieces = {name: [list(piece) for piece in self._pieces(name)] for name in self.names}
        return {
            "pieces": pieces,
            "scores": dict(self.scores),
            "largest": self.largest,
            "history": list(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        for name, pieces in state["pieces"].items():
            self.ratios[name] = tuple((int(start), float(ratio)) for start, ratio in pieces)
        self.scores = {name: float(score) for name, score in state["scores"].items()}
        self.largest = float(state["largest"])
        self.history = list(state["history"])


def shared_gradient(fit: Fit, name: str, batches: Iterable[Numbered]) -> Tensor:
    """(P,) float32 gradient of the mean loss of `batches` on the shared weights, over all ranks.

    Zeros where there is nothing to differentiate. Weights and `.grad` are left as they are; dropout
    is off.
    """
    shared = [p for p in fit.learner.shared_parameters() if p.requires_grad]
    size = sum(p.numel() for p in shared)
    flat = torch.zeros(size + 1, device=fit.device)
    if not shared:  # a frozen trunk in the self-supervised setting
        return flat[:0]
    training = fit.learner.training
    fit.learner.eval()
    with torch.enable_grad():
        for number, batch in batches:
            seen = replace(batch, keys=[]).to(fit.device)
            view = fit.views.get(name)
            sums, terms = fit.learner([(name, seen if view is None else view(seen, number))])
            parts = torch.autograd.grad(sums.sum(), shared, allow_unused=True)
            flat[:size] += torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten().float()
                    for p, g in zip(shared, parts, strict=True)
                ]
            )
            flat[size] += terms.sum()
    fit.learner.train(training)
    flat = fit.world.total(flat)
    return flat[:size] / flat[size].clamp(min=1)
