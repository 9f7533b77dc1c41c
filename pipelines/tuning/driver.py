"""Drives a sweep: the search, the confirmation, what is kept of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipelines.reporting import sweep_answer, terminal
from pipelines.running.cohort import target_path
from pipelines.running.exporting import describe_model, write_flavour
from pipelines.running.jobs import use_gpu
from pipelines.streams import quarantine
from pipelines.tracking import Tracker
from pipelines.tuning import conclusion
from pipelines.tuning.design import Design, confirmation
from pipelines.tuning.held import hold
from pipelines.tuning.journal import Journal, Record
from pipelines.tuning.search import Guided, Halving, Queue, concurrency, run_trials
from pipelines.tuning.trial import STATE, Shared, Trial
from uml_core.recipe import override
from uml_core.specs import Recipe
from uml_core.statistics import paired_gain


class Sweep:
    """One sweep in `out`, new or resumed. workers: of a run by the recipe, for best.yaml."""

    def __init__(self, made: Design, out: Path, tracker: Tracker, workers: int | list[int]) -> None:
        self.made, self.out, self.tracker = made, out, tracker
        self.workers = workers
        self.journal = Journal(out)
        data = made.data
        self.shared = Shared(
            recipe=made.recipe,
            data=data,
            held=hold(data.modalities, data.train, out, made.recipe.quarantine_budget),
            out=str(out),
            threads=_threads(made),
        )

    def run(self) -> dict[str, Any]:
        """Searches, confirms and returns the object of sweep.json (without `wall_seconds`)."""
        made, sweep = self.made, self.made.recipe.sweep
        title = f"{made.recipe.name}: {made.count} configurations x {len(made.recipe.seeds)} seeds"
        with terminal.Progress(title, made.validations * made.count, "validations") as progress:
            asha = sweep.search == "asha" and not made.space.whole
            known = list(self.journal.records.values())
            scheduler = Halving(made.validations, known) if asha else None
            self._run(self._queue(), scheduler, progress)
        records = sorted(
            (r for r in self.journal.records.values() if not r.trial.test),
            key=lambda r: (r.trial.arm != "unimodal", r.trial.key),
        )
        best, baseline = conclusion.best_of(records)
        if sweep.confirm:
            trials = confirmation(made, best.trial, baseline.trial)
            total = made.validations * len(trials)
            with terminal.Progress("confirmation", total, "validations") as progress:
                self._run(Queue(self._left(trials)), None, progress)
        found = self._conclude(records, best, baseline)
        self._keep(best)
        return found

    def facts(self) -> dict[str, Any]:
        """Where the trials ran and how many samples could not be used, for environment.json."""
        train = self.made.recipe.train
        placement = {
            "trials at a time": concurrency(train),
            "workers of a trial": train.workers,
            "device": "cuda" if use_gpu(train) else "cpu",
        }
        return {"placement": placement, "quarantined": quarantine.count(self.out / quarantine.FILE)}

    # --------------------------------------------------------------------------- running

    def _queue(self) -> Queue | Guided:
        made, sweep = self.made, self.made.recipe.sweep
        if sweep.search != "optuna":
            return Queue(self._left(made.trials))
        known = [r for r in self.journal.records.values() if not r.trial.test]
        begun = [r.trial for r in known if r.trial.arm != "unimodal" and not r.ended]
        return Guided(
            made.space,
            made.context,
            sweep.trials,
            made.recipe.seeds[0],
            made.make,
            [*self._left(made.baselines), *begun],
            known,
        )

    def _left(self, trials: list[Trial]) -> list[Trial]:
        """Those that have not ended, begun ones first: they have least left to do."""
        records = self.journal.records
        left = [t for t in trials if t.key not in records or not records[t.key].ended]
        return sorted(left, key=lambda t: t.key not in records)

    def _run(self, queue: Any, scheduler: Any, progress: terminal.Progress) -> None:
        made = self.made

        def note(what: str, record: Record) -> None:
            self._track(what, record)
            every = made.validations
            progress.update(sum(every if r.status != "running" else len(r.reports) for r in mine()))

        def mine() -> list[Record]:
            test = progress.title == "confirmation"
            return [r for r in self.journal.records.values() if r.trial.test == test]

        run_trials(queue, self.shared, self.journal, scheduler=scheduler, note=note)

    def _track(self, what: str, record: Record) -> None:
        trial, key = record.trial, record.trial.key
        if what == "start":
            tags = {"arm": trial.arm, "phase": "confirmation" if trial.test else "search"}
            params = {"values": trial.values, "settings": trial.settings, "seeds": trial.seeds}
            self.tracker.start(key, key, params=params, tags=tags)
        elif what == "report":
            last = record.last
            self.tracker.log_metrics(key, {"val_accuracy": last["val_accuracy"]}, last["step"])
        else:
            self._track_end(record)

    def _track_end(self, record: Record) -> None:
        key, last = record.trial.key, record.last
        if last:
            flops = self.made.pricing.spent(record.trial, last["batches"])
            numbers = {"flops": flops, "seconds": last["seconds"]}
            if "test_accuracies" in last:
                tested = last["test_accuracies"]
                numbers["test_accuracy"] = sum(tested) / len(tested)
            self.tracker.log_metrics(key, numbers, 0)
        self.tracker.set_tags(key, {"status": record.status})
        self.tracker.end(key, "FAILED" if record.status == "failed" else "FINISHED")

    # ------------------------------------------------------------------------ the answer

    def _conclude(self, records: list[Record], best: Record, baseline: Record) -> dict[str, Any]:
        made = self.made
        changed = best.trial.recipe(made.recipe)
        confirmed = conclusion.confirmed(made, self.journal.records)
        in_sweep = paired_gain(best.last["val_accuracies"], baseline.last["val_accuracies"])
        mixed = [r for r in records if r.trial.arm != "unimodal"]
        schedule = changed.schedule()
        taken = schedule.consumed(schedule.total)
        found: dict[str, Any] = {
            "name": made.recipe.name,
            "target": made.recipe.target,
            "auxiliaries": [n for n in made.data.modalities if n != made.recipe.target],
            "shots": made.recipe.shots,
            "space": made.space.name,
            "search": made.recipe.sweep.search,
            "budget": made.recipe.sweep.budget,
            "seeds": list(made.recipe.seeds),
            "confirmed": confirmed is not None,
            "gain": confirmed["gain"] if confirmed else in_sweep.to_json(),
            "gain_over_control": confirmed["gain_over_control"] if confirmed else None,
            "best": {
                "key": best.trial.key,
                "values": best.trial.values,
                "ratios": {
                    name: taken[name] / schedule.steps for name in changed.active[1:] if taken[name]
                },
            },
            "baseline": baseline.trial.key,
            "tried": len(mixed),
            "finished": sum(r.status == "finished" for r in mixed),
            "equals": conclusion.equals_of(records, best),
            "importance": conclusion.importance(records),
            "exchange": conclusion.exchange(made, records),
            "confirmation": confirmed,
            "trials": conclusion.trial_entries(made, records),
        }
        sentence = sweep_answer.sentence(found)
        return {"sentence": sentence, **found, "adaptive_sentence": sweep_answer.adaptive(found)}

    def _keep(self, best: Record) -> None:
        """best.yaml, the model of the confirmation's best seed, the k best checkpoints."""
        chosen = override(best.trial.recipe(self.made.recipe), {"train.workers": self.workers})
        (self.out / "best.yaml").write_text(chosen.to_yaml(), encoding="utf-8")
        source = self.journal.records.get(conclusion.CONFIRMED["uml"], best)
        if source.checkpoint and Path(source.checkpoint).is_dir():
            self._save_model(source, chosen)
        self._collect()

    def _save_model(self, source: Record, recipe: Recipe) -> None:
        """The target path of the seed of best validation, in the form that MLflow serves."""
        assert source.checkpoint is not None
        state = torch.load(Path(source.checkpoint) / STATE, map_location="cpu", weights_only=True)
        scores = dict(zip(source.trial.seeds, source.last["val_accuracies"], strict=True))
        seed = max(scores, key=lambda s: scores[s])
        model = self.out / "model"
        model.mkdir(exist_ok=True)
        weights = target_path(
            state["seeds"][str(seed)]["fit"]["best_weights"], self.made.recipe.target
        )
        save_file(weights, model / "model.safetensors")
        (model / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        made_with = {
            "job": "sweep",
            "arm": source.trial.arm,
            "seed": seed,
            "shots": recipe.shots,
            "chosen": source.trial.values,
            "val_accuracy": scores[seed],
        }
        if "test_accuracies" in source.last:
            tested = zip(source.trial.seeds, source.last["test_accuracies"], strict=True)
            made_with["test_accuracy"] = dict(tested)[seed]
        write_flavour(describe_model(model, recipe, self.made.data, made_with), model)

    def _collect(self) -> None:
        """Moves the checkpoints that stay into trials/ and removes Tune's and Train's folders."""
        self.journal.prune(self.made.recipe.sweep.keep)
        for key, record in self.journal.records.items():
            place = self.out / "trials" / key
            if record.checkpoint is None or not Path(record.checkpoint).is_dir():
                continue
            if not record.trial.test and Path(record.checkpoint) != place:
                place.parent.mkdir(exist_ok=True)
                shutil.rmtree(place, ignore_errors=True)
                shutil.move(record.checkpoint, place)
                self.journal.checkpoint(key, str(place))
        for folder in [*self.out.glob("tune-*"), self.out / "groups"]:
            shutil.rmtree(folder, ignore_errors=True)


def _threads(made: Design) -> int:
    """Threads of a trial: the machine's cores over the trials that share it."""
    return max(1, (os.cpu_count() or 1) // max(1, concurrency(made.recipe.train)))
