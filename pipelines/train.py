"""One run: the recipe's learner, data-parallel over its workers.

    uml train shapes --out runs/one
    uml train shapes --out runs/one --resume      continues from the last checkpoint
    uml train shapes trace=true train.workers=1 modalities.text.ratio=0.5

Leaves in --out: checkpoint/ (the best weights by validation), metrics.json, recipe.yaml.
With trace=true each rank writes trace/rank-<r>.jsonl: {"step", "modality", "keys"}.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pipelines import cli
from pipelines.files import append_line, replaced, write_text
from pipelines.reporting import answer, provenance, terminal
from pipelines.running import checkpoints
from pipelines.running.board import Reporter
from pipelines.running.data import (
    Data,
    Round,
    make_round,
    num_classes,
    open_data,
    resolved,
    rounds_of,
    sample_inputs,
    write_json,
)
from pipelines.running.dry_run import describe, describe_without, lacks_data
from pipelines.running.exporting import describe_model
from pipelines.running.feed import Feed, Loader
from pipelines.running.folder import FREE_IN_A_RUN, opened
from pipelines.running.jobs import limit_threads, run_job, take_part
from pipelines.running.preemption import Notice
from pipelines.running.preflight import preflight
from pipelines.running.runtime import ray_session
from pipelines.running.watch import Watch
from pipelines.streams import quarantine
from pipelines.streams.shards import Index
from pipelines.tracking import PARENT, Tracker
from uml_core import sharding
from uml_core.adaptive import Adaptive, Next
from uml_core.analysis.gradients import GradientReport
from uml_core.arms import build_fit, head_source
from uml_core.errors import UserError
from uml_core.evaluation import Evaluate, classifier_accuracy, probe_accuracy, probe_test_accuracy
from uml_core.language_trunk import check_weights
from uml_core.loop import Fit, train
from uml_core.modalities import Modality
from uml_core.modalities.base import Batch
from uml_core.parallel import DataParallel, OneProcess, Sharded, World
from uml_core.specs import Recipe

TAKES_RECIPE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --out from its last checkpoint"
    )


def run(args: argparse.Namespace) -> int:
    """Trains; returns the exit code."""
    began = time.monotonic()
    recipe = cli.load_recipe(args)
    (shots, seed), *others = rounds_of(recipe)
    if len({k for k, _ in others} | {shots}) > 1:
        raise UserError("train makes one run: give one number of shots (compare takes a list)")
    out = cli.out_folder(args, recipe.name, resume=args.resume)
    if args.dry_run and lacks_data(recipe):
        print(describe_without(recipe))
        return 0
    data = open_data(recipe)
    recipe = resolved(recipe, data)
    check_weights(recipe.model)
    for warning in data.warnings:
        terminal.note(warning)
    if args.dry_run:
        print(describe(recipe, data))
        return 0
    make_round(recipe, data, seed, shots)
    preflight(recipe, data, out)
    with opened(out, recipe, data, FREE_IN_A_RUN) as environment:
        job = Job(
            recipe,
            data.modalities,
            num_classes(recipe, data),
            make_round(recipe, data, seed, shots, out / "subsets"),
            data.test[recipe.target],
            str(out),
        )
        with (
            ray_session(recipe.train.most_workers, len(recipe.active)),
            Tracker.open(out, recipe.name) as tracker,
        ):
            tracker.start(
                PARENT, recipe.name, params=recipe.to_dict(), tags=provenance.tags(environment)
            )
            metrics = _train(job, tracker)
            metrics["wall_seconds"] = round(time.monotonic() - began, 1)
            _write(out, job, data, metrics, environment)
            for name in ("recipe.yaml", "metrics.json", "report.html"):
                tracker.log_artifact(PARENT, out / name)
            tracker.log_artifact(PARENT, out / "checkpoint")
            where = tracker.where
    return _tell(args, out, metrics, where)


@dataclass(frozen=True)
class Job:
    """Everything the workers of one run need."""

    recipe: Recipe
    modalities: dict[str, Modality]
    num_classes: int | None
    round: Round
    test: Index
    out: str


def _train(job: Job, tracker: Tracker) -> dict[str, Any]:
    """Runs the workers, with progress and live metrics."""
    spec = job.recipe.train

    def track(event: dict[str, Any]) -> None:
        tracker.log_metrics(PARENT, event["metrics"], event["step"])

    with terminal.Progress(job.recipe.name, job.recipe.schedule().total, "steps") as progress:
        metrics, restarts = run_job(
            worker,
            job,
            spec,
            Path(job.out),
            say=progress.say,
            on_progress=lambda done: progress.update(round(done)),
            on_event=track,
        )
    metrics["restarts"] = restarts
    metrics["quarantined"] = quarantine.count(Path(job.out) / quarantine.FILE)
    return metrics


def _write(
    out: Path, job: Job, data: Data, metrics: dict[str, Any], environment: dict[str, Any]
) -> None:
    """All files of a finished run."""
    # Plots, which no worker has to import.
    from pipelines.report import write_report
    from pipelines.reporting.samples import save_samples

    environment["placement"] = {"workers": metrics.pop("placement")}
    environment["quarantined"] = metrics["quarantined"] = quarantine.count(out / quarantine.FILE)
    write_json(out / "environment.json", environment)
    write_json(out / "metrics.json", metrics)
    about = ("seed", "shots", "val_accuracy", "test_accuracy")
    made_with = {"job": "train", **{name: metrics[name] for name in about}}
    describe_model(out / "checkpoint", job.recipe, data, made_with)
    save_samples(out, sample_inputs(job.recipe, data))
    write_report(out)


def _tell(args: argparse.Namespace, out: Path, metrics: dict[str, Any], where: str) -> int:
    if args.json:
        print(json.dumps(metrics))
        return 0
    print(
        f"test accuracy of {metrics['target']}: {metrics['test_accuracy']:.2f} % "
        f"(validation {metrics['val_accuracy']:.2f} % at step {metrics['best_step']})"
    )
    for remark in answer.remarks(metrics):
        terminal.note(remark)
    terminal.print_paths(
        {"checkpoint": out / "checkpoint", "report": out / "report.html", "MLflow": where}
    )
    return 0


# ------------------------------------------------------------------------------ the worker


def worker(config: dict[str, Any]) -> Any:
    """`train_loop_per_worker`: streams -> loop -> checkpoints; rank 0 returns the metrics."""
    return take_part(config, Member)


class Member:
    """One worker of a data-parallel run."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        context = ray.train.get_context()
        self.job, self.recipe, self.reporter = job, job.recipe, reporter
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.part = (self.rank, self.size)
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            limit_threads(context.get_local_world_size())
        self.watch = Watch(reporter)
        self.load = Loader(job.modalities, self.recipe.quarantine_budget, Path(job.out), self.watch)
        self.feed: Feed | None = None
        world: World = OneProcess()
        if self.size > 1:
            world = Sharded() if self.recipe.train.parallel == "fsdp" else DataParallel()
        arm = "uml" if len(self.recipe.active) > 1 else "unimodal"
        if arm == "uml" and self.recipe.model.head_init != "random":
            assert head_source(self.recipe) is not None
            arm = "uml_init"
        self.fit: Fit = build_fit(
            self.recipe,
            arm,
            job.round.seed,
            {},
            job.modalities,
            num_classes=job.num_classes,
            head_batches=lambda name: self.load(job.round.train[name], name),
            device=self.device,
            world=world,
        )
        self.notice = Notice(world, self.device)
        self.policy = Adaptive.of(self.recipe)
        self.schedule = self.policy.schedule if self.policy else self.recipe.schedule()
        if self.policy is not None:
            self.fit.schedule = self.schedule
        self.cursor: dict[str, int] = dict.fromkeys(self.recipe.active, 0)
        self.step = self._restore()
        self.timed: tuple[int, float] | None = None  # the first step of this start: done, when
        self.skipped = self.fit.skipped
        self.trace = Trace(Path(job.out), self.part, self.step) if self.recipe.trace else None
        policy, schedule = self.policy, self.schedule
        self.feed = Feed(
            job.modalities,
            [job.round.train],
            seeds=[job.round.seed],
            batches=policy.most() if policy else schedule.consumed(schedule.total),
            batch_size=self.recipe.train.batch_size,
            part=self.part,
            start=(0, policy.rewound(self.cursor) if policy else self.cursor),
            budget=self.recipe.quarantine_budget,
            out=Path(job.out),
            watch=self.watch,
        )
        if self.rank == 0:
            reporter.began(self.step, "step")

    def close(self) -> None:
        """Ends the streams."""
        self.watch.close()
        if self.feed is not None:
            self.feed.close()

    def run(self) -> dict[str, Any]:
        """Trains to the end and evaluates the best weights once on the test set."""
        next_batch: Next = self._next
        if self.policy is not None:
            assert self.feed is not None
            self.policy.refill(self.feed.next, self.cursor)
            next_batch = self.policy.watch(self._next)
        train(
            [self.fit],
            next_batch,
            self.schedule,
            evaluate=self._evaluation(),
            start=self.step,
            checkpoint=self._checkpoint,
            progress=self._progress,
        )
        step_seconds = self._step_seconds()
        self.fit.restore_best()
        self._save_best()
        fit, places = self.fit, self._placements()
        return {
            "target": self.recipe.target,
            "shots": self.job.round.shots,
            "seed": self.job.round.seed,
            "test_accuracy": self._test(),
            "val_accuracy": fit.best_accuracy,
            "best_step": fit.best_step,
            "steps": self.recipe.schedule().total,
            "step_seconds": step_seconds,
            "skipped_updates": fit.skipped,
            **({"mix": self.policy.history} if self.policy else {}),
            "history": fit.history,
            "wait_seconds": slowest(places),
            "placement": places,
        }

    def _step_seconds(self) -> float | None:
        """Mean seconds of a step, with what it waited for and validations, after the first one."""
        if self.timed is None or self.step <= self.timed[0]:
            return None
        first, when = self.timed
        return (time.monotonic() - when) / (self.step - first)

    def _next(self, name: str) -> tuple[int, Batch]:
        assert self.feed is not None
        number, batch = self.feed.next(name)
        self.cursor[name] = number + 1
        if self.trace is not None:
            self.trace.write(self.step, name, batch.keys)
        return number, batch

    def _progress(self, done: int) -> None:
        self.step = done
        self.timed = self.timed or (done, time.monotonic())
        self.reporter.tick(done / self.size)
        if self.notice.told(done) and done < self.schedule.total:
            self.fit.check_weights(done - 1)
            self._checkpoint(done)
            if self.rank == 0:
                self.reporter.note(f"A node will be taken away: checkpoint at step {done}.")
        measured = self.fit.history["gradients"]
        if self.rank == 0 and measured and measured[-1]["step"] == done - 1:
            report = GradientReport.from_json(measured[-1])
            self.reporter.post(step=report.step, metrics=report.metrics())
        if self.fit.skipped > self.skipped and self.rank == 0:
            self.skipped = self.fit.skipped
            self.reporter.note(
                f"{self.skipped} updates up to step {done} were left out, their loss or gradient "
                "was not finite (train.on_nan=skip).",
                topic="skipped",
            )

    # ---------------------------------------------------------------------- evaluation

    def _evaluation(self) -> Evaluate:
        target, at = self.recipe.target, self.job.round
        if at.probe is None:
            inner = classifier_accuracy(target, self.load(at.val, target, self.part))
        else:
            parts = (self.load(at.probe, target), self.load(at.val, target))
            inner = probe_accuracy(target, *parts, self.recipe.probe.C)

        def evaluate(fit: Fit) -> float:
            accuracy = inner(fit)
            if self.rank == 0:
                assert self.feed is not None
                waits = {f"wait_seconds.{n}": s for n, s in self.feed.wait_seconds().items()}
                metrics = {"val_accuracy": accuracy, "skipped_updates": fit.skipped, **waits}
                self.reporter.post(step=self.step + 1, metrics=metrics)
            return accuracy

        if self.policy is None:
            return evaluate
        val = self.load(at.val, target, self.part)
        return self.policy.around(evaluate, val, target, lambda: self.step + 1)

    def _test(self) -> float:
        target, at = self.recipe.target, self.job.round
        self.fit.learner.eval()
        with torch.no_grad():
            if at.probe is None:
                test = self.load(self.job.test, target, self.part)
                return classifier_accuracy(target, test)(self.fit)
            parts = (
                self.load(at.probe, target),
                self.load(at.val, target),
                self.load(self.job.test, target),
            )
            return probe_test_accuracy(self.fit.learner, target, parts, self.recipe.probe.C)

    # --------------------------------------------------------------------- checkpoints

    def _checkpoint(self, done: int) -> None:
        """Weights, optimiser, best weights, history and the data cursor, through Ray Train."""
        state = self.fit.state_dict()  # of all ranks: where weights are sharded it gathers them
        with tempfile.TemporaryDirectory(prefix="uml-checkpoint-") as folder:
            if self.rank == 0:
                torch.save(state, Path(folder) / "state.pt")
                mix = self.policy and self.policy.state_dict()
                position = {"step": done, "cursor": self.cursor, "mix": mix}
                (Path(folder) / "cursor.json").write_text(json.dumps(position))
            checkpoints.save(
                Path(folder) if self.rank == 0 else None,
                Path(self.job.out),
                done,
                "step",
                rank=self.rank,
                ranks=1,
                metrics={"step": done, "val_accuracy": self.fit.best_accuracy},
            )

    def _restore(self) -> int:
        """Takes up the newest whole checkpoint, if there is one; returns the step to go on from."""
        found, troubles = checkpoints.agreed(Path(self.job.out), self.rank)
        for trouble in troubles:
            self.reporter.note(trouble)
        if found is None:
            return 0
        # To the CPU: on the GPU it would lie there beside what it is copied into.
        state = torch.load(found.path / "state.pt", map_location="cpu", weights_only=True)
        self.fit.load_state_dict(state)
        position = json.loads((found.path / "cursor.json").read_text())
        self.cursor = position["cursor"]
        if self.policy is not None:
            self.policy.load_state_dict(position["mix"])
        return found.at

    def _save_best(self) -> None:
        weights = sharding.whole(self.fit.learner.state_dict())
        if self.rank > 0:
            return
        folder = Path(self.job.out) / "checkpoint"
        folder.mkdir(exist_ok=True)
        weights = {k: v.contiguous() for k, v in weights.items()}
        with replaced(folder / "model.safetensors") as scratch:
            save_file(weights, scratch)
        write_text(folder / "recipe.yaml", self.recipe.to_yaml())

    def _placements(self) -> list[dict[str, Any]]:
        """What ran where, of every worker."""
        places: list[Any] = [None] * self.size
        dist.all_gather_object(places, self._placement())
        return places

    def _placement(self) -> dict[str, Any]:
        assert self.feed is not None
        return {
            "rank": self.rank,
            "node": ray.util.get_node_ip_address(),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "wait_seconds": self.feed.wait_seconds(),
        }


def slowest(places: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Modality -> seconds that the slowest worker waited for it since the group's start."""
    names = {name for place in places for name in place["wait_seconds"]}
    return {n: max(place["wait_seconds"].get(n, 0.0) for place in places) for n in sorted(names)}


class Trace:
    """The keys of every batch that went into the model, one line per (step, modality).

    Steps after the checkpoint that a run resumes from did not go into the model: their lines are
    dropped before new ones are appended, also those of ranks that no longer exist.
    """

    def __init__(self, out: Path, part: tuple[int, int], step: int) -> None:
        rank, size = part
        folder = out / "trace"
        folder.mkdir(exist_ok=True)
        for path in folder.glob("rank-*.jsonl"):
            owner = int(path.stem.removeprefix("rank-"))
            if owner == rank or (rank == 0 and owner >= size):
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] < step]
                write_text(path, "".join(kept))
        self._path = folder / f"rank-{rank}.jsonl"

    def write(self, step: int, modality: str, keys: list[str]) -> None:
        """Appends one line, whole or not at all."""
        append_line(self._path, json.dumps({"step": step, "modality": modality, "keys": keys}))


if __name__ == "__main__":
    raise SystemExit(cli.main(["train", *sys.argv[1:]]))
