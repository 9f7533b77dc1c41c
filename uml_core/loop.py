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
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from uml_core.errors import RunError
from uml_core.learner import UnpairedLearner
from uml_core.modalities.base import Batch
from uml_core.recipe import TrainSpec
from uml_core.schedule import Schedule

View = Callable[[Batch, int], Batch]  # what an arm sees of a batch: (batch, its number) -> batch


class World(Protocol):
    """Where a fit's data parallelism lives: one process, or a torch.distributed group."""

    size: int

    def wrap(self, learner: UnpairedLearner, every_step_alike: bool) -> nn.Module:
        """The module whose forward synchronises gradients."""
        ...

    def total(self, value: Tensor) -> Tensor:
        """Sum over ranks."""
        ...


class OneProcess:
    """A world of one: nothing to synchronise."""

    size = 1

    def wrap(self, learner: UnpairedLearner, every_step_alike: bool) -> nn.Module:
        return learner

    def total(self, value: Tensor) -> Tensor:
        return value


class DataParallel:
    """DistributedDataParallel over the current process group."""

    def __init__(self) -> None:
        self.size = dist.get_world_size()

    def wrap(self, learner: UnpairedLearner, every_step_alike: bool) -> nn.Module:
        # Steps that leave a modality out leave its stem without gradients; all ranks agree on
        # which, because the schedule is pure.
        return nn.parallel.DistributedDataParallel(
            learner, find_unused_parameters=not every_step_alike
        )

    def total(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value


@dataclass
class Fit:
    """One model in training.

    modalities  those it takes, target first; others in a step's batches are ignored
    weights     loss factor per modality (the paper's lambda, alpha)
    views       modality -> what this arm sees of it (the permuted control), default: as it is
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

    def __post_init__(self) -> None:
        device = next(self.learner.parameters()).device
        self.device = device
        if self.spec.compile and self.learner.trunk is not None:
            self.learner.trunk.compile(dynamic=True)
        alike = self.schedule.constant() and self.spec.mode == "joint"
        self.module = self.world.wrap(self.learner, alike)
        self.optimizer = torch.optim.AdamW(
            self.learner.parameters(),
            lr=self.spec.lr,
            weight_decay=self.spec.weight_decay,
            fused=True,
        )
        self.best_accuracy = -math.inf
        self.best_step = 0
        self.best_weights: dict[str, Tensor] | None = None
        self.waited = 0  # validations since the last gain
        self.skipped = 0  # updates left out for a non-finite loss (on_nan: skip)
        self.diverged_at: int | None = None
        self.stopped = False
        self.history: dict[str, list[Any]] = {"steps": [], "val_accuracy": [], "losses": []}
        self._loss_sums: dict[str, tuple[Tensor, int]] = {}

    # ---------------------------------------------------------------------------- a step

    def step(self, batches: Mapping[str, Sequence[tuple[int, Batch]]], step: int) -> None:
        """One scheduled step: one update in joint mode, one per batch in alternate mode."""
        mine = {
            name: [self._see(name, number, batch) for number, batch in group]
            for name, group in batches.items()
            if name in self.modalities and self.weights.get(name, 1.0) > 0
        }
        if not mine or self.stopped:
            return
        rate = learning_rate(self.spec, step, self.schedule.total)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        if self.learner.spec.dropout:
            # Dropout from (seed, step) alone: a resumed run draws what the uninterrupted one did.
            torch.manual_seed(zlib.crc32(f"{self.seed}.{step}".encode()))
        if self.spec.mode == "joint":
            self._update(mine, dict.fromkeys(mine, 1.0), step)
        else:
            # n batches of a modality count 1/n each: the expected gradient per target batch is
            # the joint mode's.
            for name, group in mine.items():
                for batch in group:
                    self._update({name: [batch]}, {name: 1.0 / len(group)}, step)

    def _see(self, name: str, number: int, batch: Batch) -> Batch:
        view = self.views.get(name)
        return batch if view is None else view(batch, number)

    def _update(
        self, batches: Mapping[str, Sequence[Batch]], share: Mapping[str, float], step: int
    ) -> None:
        """Forward, backward, optimiser step on the weighted sum of the modalities' mean losses."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = torch.stack(
            [self.learner.terms(name, b).to(self.device) for name, g in batches.items() for b in g]
        ).float()
        # DDP averages gradients over ranks; dividing by the global count of terms and multiplying
        # by the number of ranks makes that average the gradient of the global mean.
        scale = self.world.size / self.world.total(terms).clamp(min=1)
        with self._autocast():
            sums = self.module(batches)
        total = torch.zeros((), device=self.device)
        at = 0
        for name, values in sums.items():
            mean = (values * scale[at : at + len(values)]).mean()
            at += len(values)
            total = total + self.weights.get(name, 1.0) * share[name] * mean
            self._record(name, mean.detach())
        total.backward()
        if self._finite(total.detach(), step):
            if self.spec.clip is not None:
                nn.utils.clip_grad_norm_(self.learner.parameters(), self.spec.clip)
            self.optimizer.step()

    def _finite(self, loss: Tensor, step: int) -> bool:
        """Whether the update may be made; a non-finite loss stops the fit or skips the update."""
        bad = self.world.total((~loss.isfinite()).float())
        if not bool(bad):
            return True
        if self.spec.on_nan == "skip":
            self.skipped += 1
        else:
            self.diverged_at, self.stopped = step, True
        return False

    def _autocast(self) -> Any:
        if self.spec.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _record(self, name: str, mean: Tensor) -> None:
        total, count = self._loss_sums.get(name, (torch.zeros((), device=self.device), 0))
        self._loss_sums[name] = (total + mean, count + 1)

    def losses(self) -> dict[str, float]:
        """Mean loss per modality since the last call, over all ranks."""
        out = {}
        for name, (total, count) in self._loss_sums.items():
            out[name] = float(self.world.total(total.clone())) / self.world.size / count
        self._loss_sums = {}
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
        "diverged_at",
        "stopped",
        "history",
    )

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; loads with torch.load(weights_only=True)."""
        return {
            "model": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_weights": self.best_weights,
            "loss_sums": dict(self._loss_sums),
            **{name: getattr(self, name) for name in self._PLAIN},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        self.learner.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_weights = state["best_weights"]
        self._loss_sums = dict(state["loss_sums"])
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

    next_batch  modality -> (number, batch): the next batch of its stream, endless
    evaluate    fit -> validation accuracy of its target modality, in percent
    checkpoint  called with the number of finished steps, every `checkpoint_every` and at the end
    progress    called with the number of finished steps, every step

    Raises RunError when every fit diverged.
    """
    spec = fits[0].spec
    wanted = {name for fit in fits for name in fit.modalities}
    for fit in fits:
        fit.learner.train()
    for step in range(start, schedule.total):
        batches = {
            name: [_to_device(next_batch(name), fits[0].device) for _ in range(n)]
            for name, n in schedule.counts(step).items()
            if name in wanted
        }
        for fit in fits:
            fit.step(batches, step)
        done = step + 1
        last = done == schedule.total
        target_steps = done - schedule.lead
        if last or (target_steps > 0 and target_steps % spec.validate_every == 0):
            validate(fits, done, evaluate)
        if checkpoint is not None and (last or done % spec.checkpoint_every == 0):
            checkpoint(done)
        if progress is not None:
            progress(done)
        if all(fit.stopped for fit in fits):
            break
    diverged = [fit for fit in fits if fit.diverged_at is not None]
    if len(diverged) == len(fits):
        raise RunError(
            f"the loss became non-finite at step {diverged[0].diverged_at}: lower train.lr, set "
            "train.clip=1.0, or let such updates be left out by train.on_nan=skip"
        )


def validate(fits: Sequence[Fit], step: int, evaluate: Callable[[Fit], float]) -> None:
    """One validation of every running fit, in evaluation mode and back."""
    for fit in fits:
        if fit.stopped:
            continue
        fit.learner.eval()
        with torch.no_grad():
            accuracy = evaluate(fit)
        fit.learner.train()
        fit.validate(step, accuracy)


def learning_rate(spec: TrainSpec, step: int, total: int) -> float:
    """Linear warm-up over `lr_warmup` steps, then constant or cosine to zero at `total`."""
    if step < spec.lr_warmup:
        return spec.lr * (step + 1) / (spec.lr_warmup + 1)
    if spec.lr_schedule == "constant":
        return spec.lr
    share = (step - spec.lr_warmup) / max(1, total - spec.lr_warmup)
    return spec.lr * 0.5 * (1 + math.cos(math.pi * share))


def accuracy(learner: UnpairedLearner, name: str, batches: Sequence[Batch]) -> tuple[int, int]:
    """(correct, labelled) of the shared classifier on batches of modality `name`."""
    device = next(learner.parameters()).device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    count = 0
    for batch in batches:
        batch = batch.to(device)
        labelled = batch.y >= 0
        predicted = learner.logits(name, batch).argmax(1)
        correct += ((predicted == batch.y) & labelled).sum()
        count += int(labelled.sum())
    return int(correct), count


def _to_device(numbered: tuple[int, Batch], device: torch.device) -> tuple[int, Batch]:
    number, batch = numbered
    # Keys serve audits before this point; a step has no use for them.
    return number, replace(batch, keys=[]).to(device)
