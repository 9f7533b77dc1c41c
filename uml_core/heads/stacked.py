"""Many fits of heads over features in memory at once: the loop of `uml_core.loop`, batched.

Where every modality is a ready-made vector and no trunk stands between stem and head, a fit is a
few matrices. Alone it spends its time on starting operations; here fits of one shape and one
optimiser setting lie in one tensor per weight, so that a step of all of them is a handful of
batched products with gradients in closed form and one fused AdamW. Every fit keeps its own
batches, views, loss weights, validations and early stop, and ends where `loop.train` ends it.

    logits = s_m W z,  z = P_m x or x        (paper 2.3, 3.2; one shared W)
    dW = sum_m G_m' z_m,  dP_m = (G_m W)' x_m,  G_m = dloss/dlogits

Shape legend: F fits of a stack, L lanes (fits that draw the same batches share one), B rows of a
batch, R rows of a step, D features, E model width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

from uml_core.loop import Fit, raise_if_all_diverged, validate
from uml_core.modalities.base import Batch, sent
from uml_core.optimiser import alike, learning_rate, rules
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
        and not recipe.adaptive
        and model.trunk == "none"
        and all(recipe.modalities[name].kind == "vector" for name in recipe.active)
        and (train.mode, train.on_nan) == ("joint", "stop")
        and train.precision != "bf16"
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
    for members in alike.values():  # those that draw the same batches side by side
        members.sort(key=lambda i: _drawn(fits[i], streams[i]))
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
    taken = _taken(fit)
    sizes = tuple((name, tuple(p.shape)) for name, p in fit.learner.named_parameters())
    return repr((fit.spec, fit.learner.spec, taken, sizes))


def _taken(fit: Fit) -> list[str]:
    """The modalities whose loss counts."""
    return [name for name in fit.modalities if fit.weights.get(name, 1.0) > 0]


def _drawn(fit: Fit, streams: Mapping[str, Rows]) -> tuple[int, ...]:
    """What names the batches a fit draws."""
    return tuple(id(streams[name]) for name in _taken(fit))


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
            stack.stop_diverged()
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
        self.names = _taken(first)
        self.rules = rules(first.learner, first.spec)
        self.drawn = [_drawn(fit, rows) for fit, rows in zip(fits, streams, strict=True)]
        self.banks = {name: _Bank(name, fits, streams) for name in self.names}
        values = {
            name: torch.stack([fit.learner.get_parameter(name).detach() for fit in fits])
            for name, _ in first.learner.named_parameters()
        }
        self.moments = {
            name: (torch.zeros_like(value), torch.zeros_like(value))
            for name, value in values.items()
        }
        self.updates = {name: torch.zeros((), device=self.device) for name in values}
        self.sums = {name: torch.zeros(len(fits), device=self.device) for name in self.names}
        self.counts = dict.fromkeys(self.names, 0)
        self.told: list[tuple[int, Tensor]] = []  # step, (F,) sums of losses since a validation
        self._adopt(values)

    def _adopt(self, values: Mapping[str, Tensor]) -> None:
        """Takes (F, ...) values of every weight; the learners see them as their own."""
        self.weights = dict(values)
        self.gradients = {name: torch.empty_like(value) for name, value in values.items()}
        for name, stacked in self.weights.items():
            for i, fit in enumerate(self.fits):
                fit.learner.get_parameter(name).data = stacked[i]
        keys = list(dict.fromkeys(self.drawn))
        self.lane_of = [keys.index(key) for key in self.drawn]
        self.lane = torch.tensor(self.lane_of, device=self.device)
        firsts = [self.drawn.index(key) for key in keys]
        ends = [*firsts[1:], len(self.drawn)]
        self.lanes = [slice(a, b) for a, b in zip(firsts, ends, strict=True)]
        for bank in self.banks.values():
            bank.enter(firsts)

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
        reached = self._differentiate(parts, drawn)
        self.told.append((step, torch.stack(list(self.sums.values())).sum(0)))
        self._update(reached, step)

    def _differentiate(self, parts: Sequence[str], drawn: Sequence[Drawn]) -> list[str]:
        """Losses of the batches, and gradients of their weighted sum.

        Returns the names of the weights that these batches reach; the others are left alone.
        """
        head = self.weights["classifier.weight"]
        stems = [f"stems.{name}.projection.weight" for name in parts]
        projections = [self.weights.get(stem) for stem in stems]
        sizes = [batch.x.shape[1] for batch in drawn]
        own = any(p is not None for p in projections)  # the head's input differs between fits
        inputs = [
            self._product(batch.x, p) if p is not None else batch.x[self.lane] if own else batch.x
            for batch, p in zip(drawn, projections, strict=True)
        ]
        joined = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)
        plain = torch.bmm(joined, head.mT) if own else self._product(joined, head)  # (F, R, C)
        scale = self._scales(parts, sizes)
        pull, losses = self._cross_entropy(
            plain if scale is None else plain * scale, torch.cat([d.y for d in drawn], dim=1)
        )
        for name, batch, loss in zip(parts, drawn, losses.split(sizes, dim=1), strict=True):
            self.sums[name] += torch.linalg.vecdot(loss, batch.share)
            self.counts[name] += 1
        # A modality's weight is shared out over its batches of the step, as `Fit` shares it.
        pull.mul_(torch.cat([d.pull / parts.count(d.name) for d in drawn], dim=1).unsqueeze(-1))
        reached = ["classifier.weight"]
        if self.model.logit_scale == "learned":
            reached += self._scale_gradients(parts, pull.split(sizes, 1), plain.split(sizes, 1))
        if scale is not None:
            pull.mul_(scale)
        if own:
            torch.bmm(pull.mT, joined, out=self.gradients["classifier.weight"])
        else:
            self._outer(pull, joined, self.gradients["classifier.weight"])
        for stem, g, p, batch in zip(stems, pull.split(sizes, 1), projections, drawn, strict=True):
            if p is not None:
                self._outer(torch.bmm(g, head), batch.x, self.gradients[stem], stem in reached)
                reached.append(stem)
        return list(dict.fromkeys(reached))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (L, R, D), weight (F, K, D) -> (F, R, K): one product per lane for all its fits."""
        out = x.new_empty(weight.shape[0], x.shape[1], weight.shape[1])
        for rows, fits in zip(x, self.lanes, strict=True):
            flat = rows @ weight[fits].flatten(0, 1).mT
            out[fits] = flat.view(len(rows), -1, weight.shape[1]).transpose(0, 1)
        return out

    def _outer(self, pull: Tensor, x: Tensor, out: Tensor, add: bool = False) -> None:
        """out (F, K, D) <- pull' x of each fit, pull (F, R, K), x (L, R, D); added if `add`."""
        for rows, fits in zip(x, self.lanes, strict=True):
            out[fits].flatten(0, 1).addmm_(
                pull[fits].mT.flatten(0, 1), rows, beta=1.0 if add else 0.0
            )

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(F, R, C) gradients and (F, R) values of each row's loss at labels y (F, R)."""
        logs = F.log_softmax(logits, dim=-1)
        at = y.unsqueeze(-1)
        losses = -logs.gather(-1, at).squeeze(-1)
        if self.smoothing:
            losses = (1 - self.smoothing) * losses - self.smoothing * logs.mean(-1)
        pull = logs.exp_()
        if self.smoothing:
            pull -= self.smoothing / pull.shape[-1]
        pull.scatter_add_(-1, at, pull.new_full((1, 1, 1), self.smoothing - 1).expand(*at.shape))
        return pull, losses

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
    ) -> list[str]:
        """Gradients of the learned scales; the names of those that have one."""
        found: dict[str, Tensor] = {}
        for name, g, u in zip(parts, pulls, plain, strict=True):
            at = f"logit_scales.{name}"
            found[at] = found.get(at, 0) + (g * u).sum((1, 2))
        for at, value in found.items():
            self.gradients[at].copy_(value)
        return list(found)

    def _update(self, reached: list[str], step: int) -> None:
        """One AdamW step, as `Fit`'s optimiser makes it, of the weights that were reached."""
        spec, schedule = self.fits[0].spec, self.schedule
        rate = learning_rate(spec, step, schedule.steps, schedule.lead)
        for names in alike(self.rules, reached):
            factor, decay = self.rules[names[0]]
            adamw(
                [self.weights[name] for name in names],
                [self.gradients[name] for name in names],
                [self.moments[name][0] for name in names],
                [self.moments[name][1] for name in names],
                [],
                [self.updates[name] for name in names],
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=rate * factor,
                weight_decay=decay,
                eps=1e-8,
                maximize=False,
            )

    # ------------------------------------------------------------------ what fits are told

    def _note_gradients(self, step: int, parts: Sequence[str], drawn: Sequence[Drawn]) -> None:
        """How the modalities pull the shared weights now and then, as `Fit` measures it."""
        every = self.fits[0].spec.gradients_every
        if not every or len(set(parts)) < 2 or not self.schedule.first_meeting(step, every):
            return
        with torch.enable_grad():
            for i, (fit, lane) in enumerate(zip(self.fits, self.lane_of, strict=True)):
                seen = [
                    (d.name, Batch(d.x[lane], torch.where(d.share[i] > 0, d.y[i], -1)), d.weight[i])
                    for d in drawn
                ]
                fit.note_gradients([(n, b, w / parts.count(n)) for n, b, w in seen], step)

    def stop_diverged(self) -> None:
        """Stops fits whose loss became non-finite; their weights are not looked at again.

        At validations only: to read a number is to wait for the device.
        """
        told, self.told = self.told, []
        if not told:
            return
        sound = torch.stack([total for _, total in told]).isfinite().tolist()
        for (step, _), each in zip(told, sound, strict=True):
            for fit, fine in zip(self.fits, each, strict=True):
                if not fine and not fit.stopped:
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
        self.drawn = [self.drawn[i] for i in kept]
        self.moments = {name: (m[at], v[at]) for name, (m, v) in self.moments.items()}
        self.sums = {name: total[at] for name, total in self.sums.items()}
        for bank in self.banks.values():
            bank.keep(kept)
        self._adopt({name: value[at] for name, value in self.weights.items()})


@dataclass(frozen=True)
class Drawn:
    """A batch of every fit of a stack.

    x       (L, B, D) the lanes' samples
    y       (F, B) labels as each fit sees them; any class where there is none
    share   (F, B) of each row in its batch's mean loss: zero without a label
    pull    (F, B) the same times the fit's loss weight
    weight  F loss weights
    """

    name: str
    x: Tensor
    y: Tensor
    share: Tensor
    pull: Tensor
    weight: list[float]


class _Bank:
    """The samples of one modality that the fits of a stack draw their batches from."""

    def __init__(
        self, name: str, fits: Sequence[Fit], streams: Sequence[Mapping[str, Rows]]
    ) -> None:
        self.name, device = name, fits[0].device
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
        self.weight = [fit.weights.get(name, 1.0) for fit in fits]
        self.first, self.ready = 0, 0

    def enter(self, firsts: Sequence[int]) -> None:
        """The lanes are those of these fits from now on."""
        self.firsts = list(firsts)
        self.ready = self.first = 0

    def batch(self, number: int) -> Drawn:
        """Batch `number` of every fit's stream."""
        if not self.first <= number < self.ready:
            self._make_ready(number)
        at, k = self.at[:, number - self.first], number - self.first
        x = self.x.index_select(0, at.flatten()).view(*at.shape, -1)
        return Drawn(self.name, x, self.y[k], self.share[k], self.pull[k], self.weight)

    def _make_ready(self, number: int) -> None:
        """Row numbers, labels and what rows count for in the next batches."""
        self.first, self.ready = number, number + BLOCK
        orders = {id(rows): rows.order(number, self.ready) for rows in self.rows}
        there = {key: sent(order, self.x.device) for key, order in orders.items()}
        each = [there[id(rows)] for rows in self.rows]
        self.at = torch.stack([each[i] + self.starts[i] for i in self.firsts])
        y = torch.stack([y[order] for y, order in zip(self.labels, each, strict=True)], dim=1)
        labelled = y >= 0
        self.y = y.clamp(min=0)  # (BLOCK, F, B)
        self.share = labelled / labelled.sum(-1, keepdim=True).clamp(min=1)
        weight = sent(torch.tensor(self.weight), self.x.device)
        self.pull = self.share * weight.view(-1, 1)

    def keep(self, kept: Sequence[int]) -> None:
        """Only these fits draw from now on."""
        self.rows = [self.rows[i] for i in kept]
        self.starts = [self.starts[i] for i in kept]
        self.labels = [self.labels[i] for i in kept]
        self.weight = [self.weight[i] for i in kept]


def _labels(fit: Fit, name: str, rows: Rows) -> Tensor:
    """The labels of a stream as this fit sees them (the permuted control)."""
    view = fit.views.get(name)
    return rows.y if view is None else view(Batch(rows.x, rows.y), 0).y
