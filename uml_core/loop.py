"""The one training loop (paper 3.2, Algorithms 1 and 2). Plain PyTorch, any process.

A *fit* is one model with its optimiser: one arm, one seed, one hyper-parameter setting. The loop
trains a list of fits in lockstep on the same batches, so that a comparison decodes its data once
and its arms differ in nothing but the arm; a single run is a list of one.

    for every step:   schedule -> batches -> each fit: loss per modality -> update
    now and then:     validate each fit, keep its best weights; checkpoint
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uml_core import sharding
from uml_core.analysis.gradients import gradient_report, weighted_losses
from uml_core.errors import RunError, UserError
from uml_core.kernels import float32_products
from uml_core.learner import UnpairedLearner
from uml_core.modalities.base import Batch
from uml_core.optimiser import learning_rate, parameter_groups
from uml_core.parallel import OneProcess, World
from uml_core.schedule import Schedule
from uml_core.specs import TrainSpec

MOST_SKIPPED = 100  # updates left out one after the other: then nothing is learnt any more

View = Callable[[Batch, int], Batch]  # what an arm sees of a batch: (batch, its number) -> batch


class Told(NamedTuple):
    """What the device will say of one update: (N,) mean losses of `names`, 1 where left out."""

    step: int
    names: list[str]
    means: Tensor
    left_out: Tensor


@dataclass
class Fit:
    """One model in training.

    modalities  those it takes, target first; other streams of a step are ignored
    weights     loss factor per modality (the paper's lambda, alpha)
    views       modality -> what this arm sees of it (the permuted control), default: as it is
    sources     modality -> the stream that it comes from, default: the one of its name
    """

    name: str
    learner: UnpairedLearner
    spec: TrainSpec
    modalities: Sequence[str]
    weights: Mapping[str, float]
    schedule: Schedule
    seed: int = 0
    views: Mapping[str, View] = field(default_factory=dict)
    world: World = field(default_factory=OneProcess)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = next(self.learner.parameters()).device
        float32_products(self.spec.precision == "tf32")
        if self.spec.compile and self.learner.trunk is not None:
            # Gradients per modality (`note_gradients`) go back through one graph several times;
            # buffers that were given away to save memory would be missing the second time.
            torch._functorch.config.donated_buffer = False
            self.learner.trunk.compile(dynamic=True)
        frozen = self.learner.spec.trunk_frozen
        self.learner.freeze_trunk(frozen is True)
        takes = {name for name in self.modalities if self.weights.get(name, 1.0) > 0}
        # Alike: every update uses every parameter, so DDP need not look for idle ones.
        alike = (
            takes == set(self.learner.modalities)
            and (len(takes) == 1 or (self.schedule.constant() and self.spec.mode == "joint"))
            and isinstance(frozen, bool)
        )
        self.module = self.world.wrap(self.learner, alike)
        self.parameters = list(self.learner.parameters())
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.learner, self.spec), lr=self.spec.lr, fused=True
        )
        self.best_accuracy = -math.inf
        self.best_step = 0
        self.best_weights: dict[str, Tensor] | None = None
        self.waited = 0  # validations since the last gain
        self.skipped = 0  # updates left out for a non-finite loss or gradient (on_nan: skip)
        self.skipped_in_a_row = 0
        self.diverged_at: int | None = None
        self.stopped = False
        self.history: dict[str, list[Any]] = {
            "steps": [],
            "val_accuracy": [],
            "losses": [],
            "gradients": [],  # how the modalities pull the shared weights (analysis/gradients.py)
        }
        self.loss_sums: dict[str, tuple[float, int]] = {}  # since the last validation
        self._told: list[Told] = []  # updates that `settle` has not looked at
        self._flaw: Tensor | float = 0.0  # NaN from a non-finite update on (on_nan: stop)
        self._factors: dict[tuple[float, ...], Tensor] = {}

    # ---------------------------------------------------------------------------- a step

    def step(self, batches: Mapping[str, Sequence[tuple[int, Batch]]], step: int) -> None:
        """One scheduled step: one update in joint mode, one per batch in alternate mode."""
        mine = [] if self.stopped else self._mine(batches)
        if not mine:
            return
        # Everything that an arm does at a target batch is a function of the target batches before
        # it: a warm-up on another modality must not change what the target-only arm does.
        lead = self.schedule.lead
        if not isinstance(self.learner.spec.trunk_frozen, bool):
            self.learner.freeze_trunk(self.learner.spec.frozen_at(step - lead))
        every = self.spec.gradients_every
        if every and self.schedule.first_meeting(step, every):
            self.note_gradients(mine, step)
        rate = learning_rate(self.spec, step, self.schedule.steps, lead)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if self.learner.spec.dropout:
            # Dropout by seed, step and rank: a resumed run draws what an uninterrupted one does.
            torch.manual_seed(zlib.crc32(f"{self.seed}.{step - lead}.{self.world.rank}".encode()))
        for part in [mine] if self.spec.mode == "joint" else [[one] for one in mine]:
            self._update(part, step)
            if self.stopped:
                return

    def note_gradients(self, mine: Sequence[tuple[str, Batch, float]], step: int) -> None:
        """Measures the modalities' gradients at the weights that this step starts from."""
        shared = [p for p in self.learner.shared_parameters() if p.requires_grad]
        if len({name for name, *_ in mine}) < 2 or not shared:
            return
        # Without dropout, so that the losses differ in their data alone; only where there is some,
        # because a compiled trunk is compiled for each mode.
        self.learner.train(not self.learner.spec.dropout)
        total = self.world.total
        with self._autocast():
            losses = weighted_losses(self.learner, mine, total)
        report = gradient_report(losses, shared, step, total)
        self.learner.train()
        if report.finite():
            self.history["gradients"].append(report.to_json())

    def _mine(
        self, batches: Mapping[str, Sequence[tuple[int, Batch]]]
    ) -> list[tuple[str, Batch, float]]:
        """(modality, batch as this arm sees it, factor of its mean loss) of a step's streams.

        A modality's weight is shared out over its batches of the step, in both modes: the
        expected gradient per target batch is the same.
        """
        mine = []
        for name in self.modalities:
            group = batches.get(self.sources.get(name, name), ())
            weight = self.weights.get(name, 1.0)
            if weight > 0:
                view = self.views.get(name)
                for number, batch in group:
                    seen = batch if view is None else view(batch, number)
                    mine.append((name, seen, weight / len(group)))
        return mine

    def _update(self, part: Sequence[tuple[str, Batch, float]], step: int) -> None:
        """Forward, backward, optimiser step on the weighted sum of the batches' mean losses."""
        self.optimizer.zero_grad()
        with self._autocast():
            sums, terms = self.module([(name, batch) for name, batch, _ in part])
        # This rank's share of each mean: its sum over the number of terms of all ranks.
        shares = sums / self.world.total(terms).clamp(min=1)
        # DDP averages gradients over ranks; a factor of their number makes a sum of it.
        key = tuple(self.world.size * factor for *_, factor in part)
        if key not in self._factors:
            self._factors[key] = torch.tensor(key, device=self.device)
        torch.dot(self._factors[key], shares).backward()
        means = self.world.total(shares.detach())
        # The optimiser leaves the update out by itself: to look here would be to wait for the GPU.
        left_out = self._not_finite(means)
        self.optimizer.found_inf = left_out  # type: ignore[attr-defined]
        self.optimizer.step()
        self._told.append(Told(step, [name for name, *_ in part], means, left_out))
        if len(self._told) >= MOST_SKIPPED:
            self.settle()

    def _not_finite(self, means: Tensor) -> Tensor:
        """1 where losses or gradients are not finite, else 0: float32, alike on all ranks.

        Clips the gradients. With on_nan=stop all updates after a non-finite one count as such.
        """
        flaw = means.mul(0).sum()  # NaN unless all are finite
        if self.spec.clip is not None or self.spec.on_nan == "skip":
            # Where neither is wanted a non-finite gradient shows in the next loss.
            limit = math.inf if self.spec.clip is None else self.spec.clip
            flaw += sharding.whole(nn.utils.clip_grad_norm_(self.parameters, limit)).mul(0)
        if self.spec.on_nan == "stop":
            self._flaw = flaw = flaw + self._flaw
        return flaw.ne(0).float()

    def settle(self) -> None:
        """Takes note of the updates since the last call; the only wait for the device."""
        told, self._told = self._told, []
        if not told:
            return
        numbers = iter(torch.cat([x for t in told for x in (t.means, t.left_out[None])]).tolist())
        for one in told:
            means = [next(numbers) for _ in one.names]
            left_out = next(numbers)
            if not left_out:
                self.skipped_in_a_row = 0
                for name, mean in zip(one.names, means, strict=True):
                    total, count = self.loss_sums.get(name, (0.0, 0))
                    self.loss_sums[name] = (total + mean, count + 1)
            elif self.spec.on_nan == "skip" and self.skipped_in_a_row + 1 < MOST_SKIPPED:
                self.skipped += 1
                self.skipped_in_a_row += 1
            else:
                self.diverged_at, self.stopped = one.step, True
                return

    def check_weights(self, step: int) -> None:
        """Counts the fit as diverged where a weight is not finite.

        Without clipping a gradient may overflow though its loss did not. The next loss shows it,
        but weights that are validated or saved before would pass for good ones.
        """
        self.settle()
        finite = torch.stack([sharding.local(p.detach()).isfinite().all() for p in self.parameters])
        if not self.stopped and self.world.total((~finite).sum()):
            self.diverged_at, self.stopped = step, True

    def _autocast(self) -> Any:
        if self.spec.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def losses(self) -> dict[str, float]:
        """Mean loss per modality over the batches since the last call, alike on all ranks."""
        self.settle()
        out = {name: total / count for name, (total, count) in self.loss_sums.items()}
        self.loss_sums = {}
        return out

    # ---------------------------------------------------------------------- validation

    def validate(self, step: int, accuracy: float) -> None:
        """Takes note of a validation after `step` steps; keeps the best weights, may stop."""
        self.history["steps"].append(step)
        self.history["val_accuracy"].append(accuracy)
        self.history["losses"].append(self.losses())
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_step, self.waited = accuracy, step, 0
            weights = self.learner.state_dict()
            self.best_weights = {name: value.detach().clone() for name, value in weights.items()}
            return
        self.waited += 1
        if self.spec.patience is not None and self.waited >= self.spec.patience:
            self.stopped = True

    def restore_best(self) -> None:
        """Loads the weights of the best validation."""
        if self.best_weights is None:
            raise RunError(f"{self.name}: no validation was reached, so there is no best model")
        self.learner.load_state_dict(self.best_weights)

    # ---------------------------------------------------------------------- checkpoint

    _PLAIN = (
        "best_accuracy",
        "best_step",
        "waited",
        "skipped",
        "skipped_in_a_row",
        "diverged_at",
        "stopped",
        "history",
        "loss_sums",
    )

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; loads with torch.load(weights_only=True).

        Where weights are sharded all ranks must ask for it.
        """
        self.settle()
        return {
            "model": sharding.whole(self.learner.state_dict()),
            "optimizer": sharding.whole(self.optimizer.state_dict()),
            "best_weights": sharding.whole(self.best_weights),
            **{name: getattr(self, name) for name in self._PLAIN},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises UserError for a state of another version, whose optimiser grouped its parameters
        otherwise: its moments would go to the wrong ones.
        """
        mine, theirs = (
            [len(group["params"]) for group in found["param_groups"]]
            for found in (self.optimizer.state_dict(), state["optimizer"])
        )
        if mine != theirs:
            raise UserError(
                "this checkpoint was written by another version of the project: finish the run "
                "with that version, or start it anew in another --out; finished models still load"
            )
        best = state["best_weights"]
        self.learner.load_state_dict(sharding.parts_of_weights(state["model"], self.learner))
        self.optimizer.load_state_dict(
            # Moments are numbered by group, which is another order than the learner's.
            sharding.parts_of_moments(
                state["optimizer"],
                [p for group in self.optimizer.param_groups for p in group["params"]],
            )
        )
        self.best_weights = best and sharding.parts_of_weights(best, self.learner)
        for name in self._PLAIN:
            setattr(self, name, state[name])


# -------------------------------------------------------------------------------- the loop


def train(
    fits: Sequence[Fit],
    next_batch: Callable[[str], tuple[int, Batch]],
    schedule: Schedule,
    *,
    evaluate: Callable[[Fit], float],
    start: int = 0,
    checkpoint: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Trains `fits` in lockstep from step `start` to the end of `schedule`.

    next_batch  stream -> (number, batch): the next batch of it, endless
    evaluate    fit -> validation accuracy of its target modality, in percent
    checkpoint  called with the number of finished steps, every `checkpoint_every` and at the end
    progress    called with the number of finished steps, every step

    Raises RunError when every fit diverged.
    """
    spec = fits[0].spec
    streams = {
        fit.sources.get(name, name): name
        for fit in fits
        for name in fit.modalities
        if fit.weights.get(name, 1.0) > 0
    }
    for fit in fits:
        fit.learner.train()
    for step in range(start, schedule.total):
        if all(fit.stopped for fit in fits):
            break
        counts = schedule.counts(step)
        batches = {
            stream: [_to_device(next_batch(stream), fits[0].device) for _ in range(counts[name])]
            for stream, name in streams.items()
            if name in counts
        }
        for fit in fits:
            fit.step(batches, step)
        done = step + 1
        target_steps = done - schedule.lead
        validating = done == schedule.total or (
            target_steps > 0 and target_steps % spec.validate_every == 0
        )
        saving = checkpoint is not None and done % spec.checkpoint_every == 0
        if validating or saving:
            for fit in fits:
                fit.check_weights(step)
        raise_if_all_diverged(fits)
        if validating:
            validate(fits, done, evaluate)
        over = done == schedule.total or all(fit.stopped for fit in fits)
        if checkpoint is not None and (over or saving):
            checkpoint(done)
        if progress is not None:
            progress(done)


def raise_if_all_diverged(fits: Sequence[Fit]) -> None:
    """Raises RunError when no fit is left that learns anything."""
    steps = [fit.diverged_at for fit in fits if fit.diverged_at is not None]
    if len(steps) == len(fits):
        skipping = fits[0].spec.on_nan == "skip"
        what = (
            f"was non-finite {MOST_SKIPPED} times in a row, the last at"
            if skipping
            else ("became non-finite at")
        )
        remedy = "" if skipping else ", or let such updates be left out by train.on_nan=skip"
        raise RunError(
            f"the loss {what} step {max(steps)}: lower train.lr, set train.clip=1.0{remedy}"
        )


def validate(fits: Sequence[Fit], step: int, evaluate: Callable[[Fit], float]) -> None:
    """One validation of every running fit, in evaluation mode and back."""
    for fit in fits:
        if fit.stopped:
            continue
        fit.learner.eval()
        with torch.no_grad():
            accuracy = fit.world.decided(evaluate(fit))
        fit.learner.train()
        fit.validate(step, accuracy)


def accuracy(learner: UnpairedLearner, name: str, batches: Sequence[Batch]) -> tuple[int, int]:
    """(correct, labelled) of the shared classifier on batches of modality `name`."""
    device = next(learner.parameters()).device
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    for batch in batches:
        batch = batch.to(device)
        labelled = batch.y >= 0
        right = (learner.logits(name, batch).argmax(1) == batch.y) & labelled
        counts += torch.stack([right.sum(), labelled.sum()])
    correct, labelled_count = counts.tolist()
    return correct, labelled_count


def _to_device(numbered: tuple[int, Batch], device: torch.device) -> tuple[int, Batch]:
    number, batch = numbered
    # Keys serve audits before this point; a step has no use for them.
    return number, replace(batch, keys=[]).to(device)
