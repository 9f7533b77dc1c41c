"""The search on Ray Tune: which points come next, which are stopped, how many run at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Read by Tune at import: our journal and MLflow are its loggers, Ctrl-C is ours to handle.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Trials that wait for a place; `room` says how many there are, Tune would allow one.
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000")

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.running.jobs import use_gpu
from pipelines.running.runtime import is_private
from pipelines.tuning.group import run_in_train
from pipelines.tuning.journal import Journal, Record
from pipelines.tuning.trial import Shared, Trial, run_in_tune
from tune_spaces.base import Context, Knob, Space
from uml_core.errors import RunError, UserError
from uml_core.specs import TrainSpec

HALVING = 3  # of the trials that reach a rung, the best third goes on
METRICS = (
    "val_accuracy",
    "val_accuracies",
    "spent",
    "validation",
    "step",
    "seconds",
    "training_seconds",
    "batches",
    "diverged",
    "mix",
    "test_accuracies",
    "best_steps",
    "histories",
)
Note = Callable[[str, Record], None]  # (start | report | end, the trial's record)


def concurrency(spec: TrainSpec, gpu_share: float = 1.0) -> int:
    """Trials at a time now: what the true cores and GPUs carry, whatever a local Ray says.

    A local Ray has more logical CPUs than the machine has cores; a cluster's nodes have what they
    were started with (a head that only coordinates: none). May be 0 on a cluster that is empty yet.
    """
    found = ray.cluster_resources()
    cores = int(found.get("CPU", 0))
    if is_private():
        cores = max(spec.most_workers, min(os.cpu_count() or 1, cores))
    most = cores // spec.most_workers
    if use_gpu(spec):
        gpus = found.get("GPU", 0)
        most = min(most, int(gpus / (gpu_share * spec.most_workers) + 1e-9))
    return most


def room(spec: TrainSpec, gpu_share: float = 1.0) -> int:
    """Trials that may be under way now, those that wait for a place included.

    On a cluster as many wait as run, and at least one: what waits is what an autoscaler adds nodes
    for, also where there are none at the start. Asked again whenever Tune has room, so the number
    follows nodes that come and go.
    """
    now = concurrency(spec, gpu_share)
    return max(1, now) if is_private() else now + max(1, now)


# ------------------------------------------------------------------------------- the points


class Queue:
    """Trials that are known beforehand, one after the other."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._left = list(trials)

    def next(self) -> Trial | None:
        """The next trial, None at the end."""
        return self._left.pop(0) if self._left else None

    def told(self, record: Record) -> None:
        """A trial ended; a list has nothing to learn from it."""


class Guided:
    """Points that Optuna's TPE sampler proposes, given what the ended trials scored.

    make   (key, point values) -> trial
    first  trials that come before: baselines, and those that a kill left unfinished
    """

    def __init__(
        self,
        space: Space,
        context: Context,
        count: int,
        seed: int,
        make: Callable[[str, Mapping[str, Any]], Trial],
        first: Sequence[Trial],
        known: Sequence[Record],
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "sweep.search=optuna needs the extra: pip install "
                "'unpaired-multimodal-learner[optuna]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._make = optuna, make
        self._axes = {k.name: _distribution(k) for k in space.knobs(context)}
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[str, Any] = {}
        self._first = list(first)
        mine = [r for r in known if r.trial.arm != "unimodal"]
        self._left = count - len(mine)
        self._number = len(mine)
        for record in mine:
            if record.ended:
                self.told(record)

    def next(self) -> Trial | None:
        """The next trial, None when all have been asked for."""
        if self._first:
            return self._first.pop(0)
        if self._left <= 0:
            return None
        self._left -= 1
        self._number += 1
        key = f"trial-{self._number:03d}"
        asked = self._study.ask(self._axes)
        self._asked[key] = asked
        return self._make(key, asked.params)

    def told(self, record: Record) -> None:
        """A trial ended: the next proposals know its score."""
        if record.trial.arm == "unimodal":
            return
        asked = self._asked.pop(record.trial.key, None)
        states = self._optuna.trial.TrialState
        good = record.status == "finished"
        if asked is not None:
            state = states.COMPLETE if good else states.FAIL
            self._study.tell(asked, record.score if good else None, state=state)
        elif good:  # from before a resume
            made = self._optuna.trial.create_trial(
                params=record.trial.values, distributions=self._axes, value=record.score
            )
            self._study.add_trial(made)


def _distribution(knob: Knob) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if knob.span is None:
        return CategoricalDistribution(knob.values)
    return FloatDistribution(*knob.span, log=knob.log)


class _Points(Searcher):
    """A queue as Tune's searcher."""

    def __init__(self, queue: Queue | Guided, journal: Journal, room: Callable[[], int]) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self._queue, self._journal, self._room = queue, journal, room
        self._keys: dict[str, str] = {}

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial; None where no more may be under way now: Tune asks again."""
        if len(self._keys) >= self._room():
            return None
        trial = self._queue.next()
        if trial is None:
            return Searcher.FINISHED  # type: ignore[return-value]
        self._keys[trial_id] = trial.key
        known = self._journal.records.get(trial.key)
        return {"trial": trial.to_json(), "start": known.checkpoint if known else None}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        record = self._journal.records.get(self._keys.pop(trial_id, ""))
        if record is not None:
            self._queue.told(record)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searchers to restore them; ours is restored by the journal

    def save(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""


# ----------------------------------------------------------------------------- early stopping


class Halving(ASHAScheduler):
    """ASHA over the number of validations; the baselines are never stopped, nor do they count.

    All trials validate equally often and share their seeds: a rung compares like with like.
    """

    def __init__(self, validations: int, known: Sequence[Record]) -> None:
        super().__init__(
            time_attr="validation",
            metric="val_accuracy",
            mode="max",
            max_t=validations + 1,
            grace_period=max(1, -(-validations // 4)),  # a quarter of a run tells something
            reduction_factor=HALVING,
        )
        for record in known:  # rungs as they stood before a resume
            for report in record.reports:
                self._judge(record.trial, report)

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._judge(Trial(**trial.config["trial"]), result)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The last report was judged when it came."""

    def _judge(self, trial: Trial, result: Mapping[str, Any]) -> str:
        if trial.arm == "unimodal":
            return TrialScheduler.CONTINUE
        # Tune's own ids change with every resume; keys stay.
        name: Any = SimpleNamespace(trial_id=trial.key)
        return self._brackets[0].on_result(name, result["validation"], result["val_accuracy"])


# -------------------------------------------------------------------------------- the driver


class _Recorder(tune.Callback):
    """What happens in Tune goes to the journal first, then to who wants to know."""

    def __init__(self, journal: Journal, keep: int, note: Note) -> None:
        self._journal, self._keep, self._note = journal, keep, note

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; nobody restores this one

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        made = Trial(**trial.config["trial"])
        known = self._journal.records.get(made.key)
        if known is None or known.status != "running":
            self._journal.start(made)
        self._note("start", self._journal.records[made.key])

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        key = trial.config["trial"]["key"]
        self._journal.report(key, {name: result[name] for name in METRICS if name in result})
        self._checkpoint(key, trial, result)
        self._note("report", self._journal.records[key])

    def on_checkpoint(
        self, iteration: int, trials: list, trial: Any, checkpoint: Any, **_: Any
    ) -> None:
        self._journal.checkpoint(trial.config["trial"]["key"], checkpoint.path)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        key = trial.config["trial"]["key"]
        record = self._journal.records[key]
        self._checkpoint(key, trial, trial.last_result or {})
        status = "finished" if record.last.get("spent") == 100 else "stopped"
        if any(record.last.get("diverged", [])):
            status = "diverged"
        self._journal.end(key, status)
        self._journal.prune(self._keep)
        self._note("end", self._journal.records[key])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        key = trial.config["trial"]["key"]
        if key not in self._journal.records:
            self._journal.start(Trial(**trial.config["trial"]))
        self._journal.end(key, "failed", cause(trial.get_error()))
        self._note("end", self._journal.records[key])

    def _checkpoint(self, key: str, trial: Any, result: Mapping[str, Any]) -> None:
        path = result.get("checkpoint_path") or (trial.checkpoint and trial.checkpoint.path)
        if path:
            self._journal.checkpoint(key, path)


def cause(trace: str | None) -> str:
    """One line for people out of the trace that Tune keeps of a failed trial."""
    lines = [line.strip() for line in (trace or "").splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: .", line)]
    line = (raised or lines or ["the trial's process died"])[-1]
    name, _, said = line.partition(": ")
    text = said if name.endswith(("RunError", "UserError")) else line
    return text if len(text) <= 200 else f"{text[:197]}..."


def run_trials(
    queue: Queue | Guided,
    shared: Shared,
    journal: Journal,
    *,
    scheduler: TrialScheduler | None,
    note: Note,
) -> None:
    """Runs the queue to its end on the Ray that is there; what became of it is in the journal.

    Raises RunError when every trial failed.
    """
    recipe, out = shared.recipe, Path(shared.out)
    several = recipe.train.most_workers > 1
    function = tune.with_parameters(run_in_train if several else run_in_tune, shared=shared)
    # The driver of a group only waits; Tune refuses a trial without any CPU.
    share = 1.0 if several else recipe.sweep.gpu_share
    one = {"CPU": 1.0, "GPU": share} if use_gpu(recipe.train) else {"CPU": 1.0}
    tuner = tune.Tuner(
        tune.with_resources(function, {"CPU": 0.001} if several else one),
        tune_config=tune.TuneConfig(
            search_alg=_Points(queue, journal, partial(room, recipe.train, share)),
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=not several,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{len(list(out.glob('tune-*'))) + 1}",
            storage_path=str(out),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=recipe.sweep.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[_Recorder(journal, recipe.sweep.keep, note)],
        ),
    )
    tuner.fit()
    records = list(journal.records.values())
    if records and all(r.status == "failed" for r in records):
        raise RunError(f"every trial failed; the first said: {records[0].error}")


def _name(trial: Any) -> str:
    return trial.config["trial"]["key"]
