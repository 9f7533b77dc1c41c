"""One trial of a sweep: one configuration, all its seeds in lockstep.

Every trial uses the same seeds, and a seed always means the same target samples in the same order,
so that early stopping compares means over the same luck at the same share of the budget. The seeds
advance together from one validation to the next; each validation is one report.

A trial with one worker is a Tune function: the plain loop of `uml_core`, no Ray Train. A trial
with more is a function that drives a Ray Train run of `worker`; both run `TrialRun`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.running.data import Data, make_round, num_classes
from pipelines.running.feed import load_batches
from pipelines.streams.access import adopt, settings
from pipelines.streams.assemble import DecodedCache
from pipelines.streams.quarantine import EVALUATION, FILE, Quarantine
from pipelines.streams.shards import Index
from pipelines.tuning.held import Held, TrialFeed
from uml_core.adaptive import Adaptive, Next
from uml_core.arms import build_fit
from uml_core.cost import with_steps
from uml_core.errors import RunError
from uml_core.evaluation import Evaluate, classifier_accuracy, probe_accuracy, probe_test_accuracy
from uml_core.loop import Fit, train
from uml_core.modalities.base import Batch
from uml_core.parallel import OneProcess, World
from uml_core.recipe import override
from uml_core.schedule import Schedule
from uml_core.specs import Recipe, TrainSpec

STATE = "state.pt"
Report = Callable[[dict[str, Any], dict[str, Any] | None], None]  # (metrics, state or None)


@dataclass(frozen=True)
class Trial:
    """A configuration and the seeds it is judged by, as plain values: it goes into journals.

    key       its name within the sweep
    arm       unimodal, uml or uml_permuted (uml_core/arms.py)
    values    knob -> value, for people
    settings  dotted recipe fields -> value
    steps     target batches, fitted to the budget
    flops     operations of one seed's whole run
    test      whether the test set is read at the end
    """

    key: str
    arm: str
    values: dict[str, Any]
    settings: dict[str, Any]
    seeds: list[int]
    steps: int
    target_samples: int
    flops: float
    test: bool = False

    def recipe(self, base: Recipe) -> Recipe:
        """The recipe of this configuration, fitted to the budget."""
        return with_steps(override(base, self.settings), self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Shared:
    """What all trials have in common; goes to them once, through the object store.

    access  the driver's settings of remote stores (streams/access.py)
    """

    recipe: Recipe
    data: Data
    held: dict[str, Held]
    out: str
    threads: int
    access: Mapping[str, str] = field(default_factory=settings, repr=False)


class TrialRun:
    """All seeds of one trial in this process (a rank of it, where it has more workers)."""

    def __init__(
        self,
        trial: Trial,
        shared: Shared,
        caches: Mapping[str, DecodedCache],
        *,
        device: torch.device | str = "cpu",
        world: World | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        adopt(shared.access)
        self.trial, self.recipe = trial, trial.recipe(shared.recipe)
        self.began = time.monotonic()
        self.world = world or OneProcess()
        self.step = 0 if state is None else int(state["step"])
        self.seconds = 0.0 if state is None else float(state["seconds"])
        self.training = 0.0  # seconds of this process in steps and validations
        self.seeds = [
            SeedRun(self, seed, shared, caches, device, state and state["seeds"][str(seed)])
            for seed in trial.seeds
        ]

    def run(self, report: Report) -> None:
        """From where it stands to the end, one report per validation."""
        milestones = [at for at in self._milestones() if at > self.step]
        if not milestones:  # everything was done, but the last report did not arrive
            report(self._metrics(done=True), None)
        since = self.step
        for at in milestones:
            began = time.monotonic()
            for seed in self.seeds:
                seed.advance(self.step, at)
            self.training += time.monotonic() - began
            self.step = at
            done = at == milestones[-1] or all(seed.fit.stopped for seed in self.seeds)
            keep = done or at - since >= self.recipe.train.checkpoint_every
            since = at if keep else since
            report(self._metrics(done), self._state() if keep else None)
            if done:
                return

    def _milestones(self) -> list[int]:
        """Finished steps at which the loop validates."""
        schedule, every = self.recipe.schedule(), self.recipe.train.validate_every
        inner = range(every, schedule.steps, every)
        return [schedule.lead + at for at in (*inner, schedule.steps)]

    def _metrics(self, done: bool) -> dict[str, Any]:
        fits = [seed.fit for seed in self.seeds]
        scores = [max(fit.best_accuracy, 0.0) for fit in fits]
        schedule = self.recipe.schedule()
        share = max(0, self.step - schedule.lead) / schedule.steps
        metrics: dict[str, Any] = {
            "val_accuracy": sum(scores) / len(scores),
            "val_accuracies": scores,
            "spent": 100 if done else min(99, int(100 * share)),
            "validation": 1 + self._milestones().index(self.step) if self.step else 0,
            "step": self.step,
            "batches": self._batches(),
            "seconds": self.seconds + time.monotonic() - self.began,
            "training_seconds": self.training,
            "diverged": [fit.diverged_at is not None for fit in fits],
        }
        policies = [seed.policy.history for seed in self.seeds if seed.policy is not None]
        if done and policies:
            metrics["mix"] = policies
        if done and self.trial.test:
            metrics["test_accuracies"] = [seed.test() for seed in self.seeds]
            metrics["best_steps"] = [fit.best_step for fit in fits]
            metrics["histories"] = [fit.history for fit in fits]
        return metrics

    def _batches(self) -> dict[str, float]:
        """Batches of each modality that one seed has taken, mean over seeds."""
        taken = [seed.schedule.consumed(self.step) for seed in self.seeds]
        names = self.seeds[0].fit.modalities
        return {name: sum(t[name] for t in taken) / len(taken) for name in names}

    def _state(self) -> dict[str, Any]:
        """Everything a resumed trial needs; loads with torch.load(weights_only=True)."""
        return {
            "step": self.step,
            "seconds": self.seconds + time.monotonic() - self.began,
            "seeds": {str(seed.number): seed.state_dict() for seed in self.seeds},
        }


class SeedRun:
    """One seed of a trial: its fit, its streams, its validation samples."""

    def __init__(
        self,
        run: TrialRun,
        seed: int,
        shared: Shared,
        caches: Mapping[str, DecodedCache],
        device: torch.device | str,
        state: Mapping[str, Any] | None,
    ) -> None:
        self.number, self.run, self.recipe = seed, run, run.recipe
        self.modalities, self.target = shared.data.modalities, run.recipe.target
        self.part, self.out = (run.world.rank, run.world.size), Path(shared.out)
        shots = self.recipe.shots
        assert not isinstance(shots, list)
        self.round = make_round(self.recipe, shared.data, seed, shots)
        self.fit: Fit = build_fit(
            self.recipe,
            run.trial.arm,
            seed,
            {},
            self.modalities,
            num_classes=num_classes(self.recipe, shared.data),
            head_batches=lambda name: self._load(self.round.train[name], name=name),
            device=device,
            world=run.world,
        )
        self.policy = Adaptive.of(self.recipe)
        self.schedule = self.policy.schedule if self.policy else self.recipe.schedule()
        if self.policy is not None:
            self.fit.schedule = self.schedule
        self.test_index = shared.data.test[self.target]
        if state is not None:
            self.fit.load_state_dict(state["fit"])
            if self.policy is not None:
                self.policy.load_state_dict(json.loads(state["policy"]))
        cursor = self.schedule.consumed(run.step)
        most = self.schedule.consumed(self.schedule.total)
        self.feed = TrialFeed(
            {name: self.modalities[name] for name in self.fit.modalities},
            self.round,
            self.policy.most() if self.policy else most,
            self.recipe.train.batch_size,
            caches,
            self.part,
            self.policy.rewound(cursor) if self.policy else cursor,
            self.recipe.quarantine_budget,
            self.out,
        )
        self.next: Next = self.feed.next
        self.evaluate = self._evaluation()
        if self.policy is not None:
            names = {name: cursor[name] for name in self.fit.modalities}
            self.policy.refill(self.feed.next, names)
            self.next = self.policy.watch(self.feed.next)
            self.evaluate = self.policy.around(
                self.evaluate, self._load(self.round.val, self.part), self.target, lambda: self.at
            )
        self.at = run.step

    def advance(self, start: int, stop: int) -> None:
        """Steps start..stop-1 and the validation after them."""
        if self.fit.stopped:
            return
        self.at = stop
        try:
            train([self.fit], self.next, self._until(stop), evaluate=self.evaluate, start=start)
        except RunError:
            if self.fit.diverged_at is None:
                raise

    def _until(self, stop: int) -> Schedule:
        """The schedule cut at `stop` steps; the learning rate follows the fit's own, uncut."""
        return replace(self.schedule, steps=stop - self.schedule.lead)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        policy = None if self.policy is None else json.dumps(self.policy.state_dict())
        return {"fit": self.fit.state_dict(), "policy": policy}

    def test(self) -> float:
        """Test accuracy in percent of the best weights; 0 where no validation was reached."""
        if self.fit.best_weights is None:
            return 0.0
        self.fit.restore_best()
        self.fit.learner.eval()
        with torch.no_grad():
            if self.round.probe is None:
                return classifier_accuracy(self.target, self._load(self.test_index, self.part))(
                    self.fit
                )
            indices = (self.round.probe, self.round.val, self.test_index)
            probe, val, test = (self._load(index) for index in indices)
            return probe_test_accuracy(
                self.fit.learner, self.target, (probe, val, test), self.recipe.probe.C
            )

    def _evaluation(self) -> Evaluate:
        if self.round.probe is None:
            return classifier_accuracy(self.target, self._load(self.round.val, self.part))
        probe, val = self._load(self.round.probe), self._load(self.round.val)
        return probe_accuracy(self.target, probe, val, self.recipe.probe.C)

    def _load(
        self, index: Index, part: tuple[int, int] = (0, 1), name: str | None = None
    ) -> list[Batch]:
        """Samples of the target, or of modality `name`, as `compare` reads them."""
        name = name or self.target
        bad = Quarantine(
            self.out / FILE,
            self.recipe.quarantine_budget,
            modality=name,
            rows=len(index),
            found_in=EVALUATION,
            urls=index.urls,
        )
        return load_batches(index, self.modalities[name], part, bad)


# --------------------------------------------------------------------------- as a Tune function

_CACHES: dict[str, dict[str, DecodedCache]] = {}  # per process: reused actors keep them


def caches_of(shared: Shared) -> dict[str, DecodedCache]:
    """The decoded samples of this sweep, indexed once per process."""
    if shared.out not in _CACHES:
        _CACHES.clear()
        _CACHES[shared.out] = {name: held.cache() for name, held in shared.held.items()}
    return _CACHES[shared.out]


def read_state(folder: str | Path) -> dict[str, Any]:
    """The state of a checkpoint's folder, in main memory."""
    return torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)


def run_in_tune(config: dict[str, Any], shared: Shared) -> None:
    """The Tune function of a trial with one worker."""
    from ray import tune

    if shared.threads:
        torch.set_num_threads(shared.threads)
    device = "cuda" if use_cuda(shared.recipe.train) else "cpu"
    checkpoint, state = tune.get_checkpoint(), None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = read_state(folder)
    elif config.get("start"):
        state = read_state(config["start"])
    run = TrialRun(Trial(**config["trial"]), shared, caches_of(shared), device=device, state=state)

    def report(metrics: dict[str, Any], kept: dict[str, Any] | None) -> None:
        if kept is None:
            tune.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="uml-trial-") as folder:
            torch.save(kept, Path(folder) / STATE)
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    run.run(report)


def use_cuda(spec: TrainSpec) -> bool:
    """Whether this process was given a GPU."""
    return spec.device != "cpu" and torch.cuda.is_available()
