"""Many fits of heads over features in memory at once: the loop of `uml_core.loop`, batched.

Where every modality is a ready-made vector and no trunk stands between stem and head, a fit is a
few matrices. Alone it spends its time on starting operations; here fits of one shape and one
optimiser setting lie in one tensor per weight, so that a step of all of them is a handful of
batched products with gradients in closed form and one fused AdamW. Every fit keeps its own
batches, views, loss weights, validations and early stop, and ends where `loop.train` ends it.

    logits = s_m W z,  z = P_m x or x        (paper 2.3, 3.2; one shared W)
    dW = sum_m G_m' z_m,  dP_m = (G_m W)' x_m,  G_m = dloss/dlogits

Shape legend: F fits of a stack, B rows of a batch, R rows of a step, D features, E model width,
C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uml_core.loop import Fit, learning_rate, raise_if_all_diverged, validate
from uml_core.modalities.base import Batch
from uml_core.schedule import Schedule
from uml_core.specs import Recipe

STACK_BYTES = {"cpu": 16 << 20, "cuda": 4 << 30}  # of a stack: beyond the cache, more is no faster
BLOCK = 50  # steps whose row numbers are made ready at once


@dataclass(frozen=True)
class Rows:
    """A stream whose samples lie in memory.

    x      (N, D) float32
    y      (N,) int64 labels, -1 = unlabelled
    order  (first, stop) -> (stop - first, B) int64: the rows of these batches of the stream
    """

    x: Tensor
    y: Tensor
    order: Callable[[int, int], Tensor]


def batchable(recipe: Recipe) -> bool:
    """Whether the fits of this recipe are heads over vectors, trained as this file trains them."""
    train, model = recipe.train, recipe.model
    return (
        recipe.setting == "supervised"
        and model.trunk == "none"
        and all(recipe.modalities[name].kind == "vector" for name in recipe.active)
        and (train.mode, train.precision, train.on_nan) == ("joint", "fp32", "stop")
        and train.clip is None
    )


def train_heads(
    fits: Sequence[Fit],
    streams: Sequence[Mapping[str, Rows]],
    evaluate: Sequence[Callable[[Fit], float]],
    *,
    schedule: Schedule,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Trains all fits to their ends; each then holds its history and best weights.

    streams   of each fit: modality -> rows
    evaluate  of each fit: validation accuracy of its target modality, in percent
    schedule  the recipe's, by which batches are numbered; arms without a modality leave its out
    progress  called with the number of fit-steps done; a fit that stopped early has done all

    Raises RunError when every fit diverged.
    """
    alike: dict[str, list[int]] = {}
    for i, fit in enumerate(fits):
        alike.setdefault(_shape(fit), []).append(i)
    finished = 0
    for members in alike.values():
        size = _stack_size(fits[members[0]])
        for start in range(0, len(members), size):
            part = members[start : start + size]
            stack = _Stack([fits[i] for i in part], [streams[i] for i in part], schedule)
            judges = {id(fits[i]): evaluate[i] for i in part}
            _run(stack, judges, finished, progress)
            finished += len(part) * schedule.total
            if progress is not None:
                progress(finished)
    raise_if_all_diverged(fits)


def _shape(fit: Fit) -> str:
    """What fits of one stack have in common."""
    taken = tuple(name for name in fit.modalities if fit.weights.get(name, 1.0) > 0)
    sizes = tuple((name, tuple(p.shape)) for name, p in fit.learner.named_parameters())
    return repr((fit.spec, fit.learner.spec, taken, sizes))


def _stack_size(fit: Fit) -> int:
    """Fits whose weights, gradients and moments fit a stack."""
    each = 4 * sum(p.numel() * p.element_size() for p in fit.parameters)
    return max(1, STACK_BYTES["cuda" if fit.device.type == "cuda" else "cpu"] // each)


def _run(
    stack: _Stack,
    judges: Mapping[int, Callable[[Fit], float]],
    before: int,
    progress: Callable[[int], None] | None,
) -> None:
    """One stack from the first step to the last, or until all its fits have stopped."""
    schedule, spec, size = stack.schedule, stack.fits[0].spec, len(stack.fits)
    for fit in stack.fits:
        fit.learner.train()
    for step in range(schedule.total):
        stack.step(step)
        done = step + 1
        target_steps = done - schedule.lead
        if done == schedule.total or (target_steps > 0 and target_steps % spec.validate_every == 0):
            for fit in stack.fits:
                fit.check_weights(step)
            stack.note_losses()
            validate(stack.fits, done, lambda fit: judges[id(fit)](fit))
            if progress is not None:
                ended = size - len(stack.fits)
                progress(before + ended * schedule.total + len(stack.fits) * done)
        stack.drop_stopped()
        if not stack.fits:
            return


class _Stack:
    """Fits of one shape: their weights in common tensors, of which each learner's are views."""

    def __init__(
        self, fits: Sequence[Fit], streams: Sequence[Mapping[str, Rows]], schedule: Schedule
    ) -> None:
        self.fits, self.schedule = list(fits), schedule
        first = fits[0]
        self.device, self.model = first.device, first.learner.spec
        self.smoothing = first.learner.label_smoothing
        self.names = [n for n in first.modalities if first.weights.get(n, 1.0) > 0]
        self.banks = {name: _Bank(name, fits, streams, first.device) for name in self.names}
        self.weight = {
            name: torch.tensor([fit.weights.get(name, 1.0) for fit in fits], device=self.device)
            for name in self.names
        }
        self._adopt(
            {
                name: torch.stack([fit.learner.get_parameter(name).detach() for fit in fits])
                for name, _ in first.learner.named_parameters()
            }
        )
        self.optimizer = self._optimizer()
        self.sums = {name: torch.zeros(len(fits), device=self.device) for name in self.names}
        self.counts = dict.fromkeys(self.names, 0)

    def _adopt(self, values: Mapping[str, Tensor]) -> None:
        """Takes (F, ...) values of every weight; the learners see them as their own."""
        self.weights = {name: nn.Parameter(value) for name, value in values.items()}
        self.gradients = {name: torch.empty_like(value) for name, value in values.items()}
        for name, stacked in self.weights.items():
            for i, fit in enumerate(self.fits):
                fit.learner.get_parameter(name).data = stacked.data[i]

    def _optimizer(self) -> torch.optim.AdamW:
        spec = self.fits[0].spec
        return torch.optim.AdamW(
            self.weights.values(), lr=spec.lr, weight_decay=spec.weight_decay, fused=True
        )

    # ---------------------------------------------------------------------------- a step

    @torch.no_grad()
    def step(self, step: int) -> None:
        """One scheduled step of every fit."""
        counts = self.schedule.counts(step)
        parts = [name for name in self.names for _ in range(counts.get(name, 0))]
        if not parts:
            return
        before = self.schedule.consumed(step)
        drawn = [
            self.banks[name].batch(before[name] + parts[:i].count(name))
            for i, name in enumerate(parts)
        ]
        self._note_gradients(step, parts, drawn)
        # A modality's weight is shared out over its batches of the step, as `Fit` shares it.
        factors = [self.weight[name] / counts[name] for name in parts]
        self._differentiate(parts, drawn, factors)
        rate = learning_rate(self.fits[0].spec, step, self.schedule.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._stop_diverged(step)
        self.optimizer.step()

    def _differentiate(
        self,
        parts: Sequence[str],
        drawn: Sequence[tuple[Tensor, Tensor]],
        factors: Sequence[Tensor],
    ) -> None:
        """Losses of the batches, and gradients of their weighted sum in every weight's `.grad`.

        A weight that no batch of this step reaches has none, so that AdamW leaves it alone.
        """
        head = self.weights["classifier.weight"]
        stems = [f"stems.{name}.projection.weight" for name in parts]
        projections = [self.weights.get(stem) for stem in stems]
        z = [
            x if p is None else torch.bmm(x, p.mT)
            for (x, _), p in zip(drawn, projections, strict=True)
        ]
        sizes = [part.shape[1] for part in z]
        joined = z[0] if len(z) == 1 else torch.cat(z, dim=1)  # (F, R, E)
        plain = torch.bmm(joined, head.mT)  # (F, R, C)
        scale = self._scales(parts, sizes)
        logits = plain if scale is None else plain * scale
        y = torch.cat([y for _, y in drawn], dim=1)  # (F, R)
        pull, losses = self._cross_entropy(logits, y)
        pulls = list(pull.split(sizes, dim=1))
        for name, g, loss, labels, factor in zip(
            parts, pulls, losses.split(sizes, dim=1), y.split(sizes, dim=1), factors, strict=True
        ):
            terms = (labels >= 0).sum(1).clamp(min=1)
            g.mul_((factor / terms).view(-1, 1, 1))
            self.sums[name] += loss.sum(1) / terms
            self.counts[name] += 1
        reached = {"classifier.weight"}
        if self.model.logit_scale == "learned":
            reached |= self._scale_gradients(parts, pulls, plain.split(sizes, dim=1))
        if scale is not None:
            pull.mul_(scale)
        torch.bmm(pull.mT, joined, out=self.gradients["classifier.weight"])
        for stem, g, p, (x, _) in zip(stems, pulls, projections, drawn, strict=True):
            if p is not None:
                back = torch.bmm(g, head)
                self.gradients[stem].baddbmm_(back.mT, x, beta=float(stem in reached))
                reached.add(stem)
        for name, p in self.weights.items():
            p.grad = self.gradients[name] if name in reached else None

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(F, R, C) gradients and (F, R) values of each row's loss, zero without a label."""
        logs = F.log_softmax(logits, dim=-1)
        labelled = y >= 0
        at = y.clamp(min=0).unsqueeze(-1)
        losses = -logs.gather(-1, at).squeeze(-1)
        if self.smoothing:
            losses = (1 - self.smoothing) * losses - self.smoothing * logs.mean(-1)
        pull = logs.exp_()
        if self.smoothing:
            pull -= self.smoothing / pull.shape[-1]
        pull.scatter_add_(-1, at, pull.new_full((1, 1, 1), self.smoothing - 1).expand(*at.shape))
        return pull.mul_(labelled.unsqueeze(-1)), losses * labelled

    def _scales(self, parts: Sequence[str], sizes: Sequence[int]) -> Tensor | float | None:
        """Factor of the logits: (F, R, 1) where it is learned, else a number; None = 1."""
        if self.model.logit_scale == "learned":
            each = [self.weights[f"logit_scales.{name}"] for name in parts]
            rows = [s.view(-1, 1).expand(-1, n) for s, n in zip(each, sizes, strict=True)]
            return torch.cat(rows, dim=1).unsqueeze(-1)
        value = self.model.logit_scale_value
        return None if value == 1 else value

    def _scale_gradients(
        self, parts: Sequence[str], pulls: Sequence[Tensor], plain: Sequence[Tensor]
    ) -> set[str]:
        """Gradients of the learned scales; the names of those that have one."""
        found: dict[str, Tensor] = {}
        for name, g, u in zip(parts, pulls, plain, strict=True):
            at = f"logit_scales.{name}"
            found[at] = found.get(at, 0) + (g * u).sum((1, 2))
        for at, value in found.items():
            self.gradients[at].copy_(value)
        return set(found)

    # ------------------------------------------------------------------ what fits are told

    def _note_gradients(
        self, step: int, parts: Sequence[str], drawn: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """How the modalities pull the shared weights now and then, as `Fit` measures it."""
        every = self.fits[0].spec.gradients_every
        if not every or len(set(parts)) < 2 or not self.schedule.first_meeting(step, every):
            return
        with torch.enable_grad():
            for i, fit in enumerate(self.fits):
                fit.note_gradients(
                    [
                        (name, Batch(x[i], y[i]), fit.weights.get(name, 1.0) / parts.count(name))
                        for name, (x, y) in zip(parts, drawn, strict=True)
                    ],
                    step,
                )

    def _stop_diverged(self, step: int) -> None:
        """Stops fits whose loss is not finite; their weights are not looked at again."""
        finite = torch.stack(list(self.sums.values())).isfinite().all(0).tolist()
        for fit, sound in zip(self.fits, finite, strict=True):
            if not sound and not fit.stopped:
                fit.diverged_at, fit.stopped = step, True

    def note_losses(self) -> None:
        """Hands the mean losses since the last validation to the fits."""
        for name, total in self.sums.items():
            if self.counts[name]:
                for fit, value in zip(self.fits, total.tolist(), strict=True):
                    fit.loss_sums[name] = (value, self.counts[name])
            total.zero_()
        self.counts = dict.fromkeys(self.names, 0)

    def drop_stopped(self) -> None:
        """Leaves the fits that stopped behind: their place costs as much as a running one's."""
        kept = [i for i, fit in enumerate(self.fits) if not fit.stopped]
        if len(kept) == len(self.fits):
            return
        self.fits = [self.fits[i] for i in kept]
        if not kept:
            return
        at = torch.tensor(kept, device=self.device)
        moments = {name: self.optimizer.state[p] for name, p in self.weights.items()}
        self._adopt({name: p.detach()[at] for name, p in self.weights.items()})
        self.optimizer = self._optimizer()
        for name, p in self.weights.items():
            self.optimizer.state[p] = {
                key: value if key == "step" else value[at] for key, value in moments[name].items()
            }
        self.sums = {name: total[at] for name, total in self.sums.items()}
        self.weight = {name: w[at] for name, w in self.weight.items()}
        for bank in self.banks.values():
            bank.keep(kept)


class _Bank:
    """The samples of one modality that the fits of a stack draw their batches from."""

    def __init__(
        self,
        name: str,
        fits: Sequence[Fit],
        streams: Sequence[Mapping[str, Rows]],
        device: torch.device,
    ) -> None:
        self.rows = [stream[name] for stream in streams]
        unique = {id(rows.x): rows.x for rows in self.rows}  # fits share what they draw from
        begin, starts = 0, {}
        for key, x in unique.items():
            starts[key] = begin
            begin += len(x)
        self.x = torch.cat(list(unique.values())).to(device)
        self.starts = [starts[id(rows.x)] for rows in self.rows]
        self.labels = [
            _labels(fit, name, rows).to(device) for fit, rows in zip(fits, self.rows, strict=True)
        ]
        self.first, self.ready = 0, 0

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """x (F, B, D) and y (F, B) of batch `number` of every fit's stream."""
        if not self.first <= number < self.ready:
            self.first, self.ready = number, number + BLOCK
            orders = {id(rows): rows.order(number, self.ready) for rows in self.rows}
            each = [orders[id(rows)].to(self.x.device) for rows in self.rows]
            self.y = torch.stack([y[order] for y, order in zip(self.labels, each, strict=True)])
            self.at = torch.stack([o + s for o, s in zip(each, self.starts, strict=True)])
        at = self.at[:, number - self.first]
        x = self.x.index_select(0, at.flatten()).view(*at.shape, -1)
        return x, self.y[:, number - self.first]

    def keep(self, kept: Sequence[int]) -> None:
        """Only these fits draw from now on."""
        self.rows = [self.rows[i] for i in kept]
        self.starts = [self.starts[i] for i in kept]
        self.labels = [self.labels[i] for i in kept]
        if self.ready:
            self.at, self.y = self.at[list(kept)], self.y[list(kept)]


def _labels(fit: Fit, name: str, rows: Rows) -> Tensor:
    """The labels of a stream as this fit sees them (the permuted control)."""
    view = fit.views.get(name)
    return rows.y if view is None else view(Batch(rows.x, rows.y), 0).y
