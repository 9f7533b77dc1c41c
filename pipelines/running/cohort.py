"""The worker side of a comparison: all fits of all seeds in one Ray Train worker group.

A *round* is one (shots, seed). In every round the workers share the fits (`parallel: fits`), or
all work on every fit with its data split over them (`parallel: data`, for models too large for
one worker). Heads over ready-made features train in memory, all rounds of one number of shots at
once (uml_core/heads/stacked.py). After each such turn its outcomes and best weights go into a
checkpoint, so a group that is restarted, also with another number of workers, continues with the
next one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from pipelines.files import replaced, write_text
from pipelines.reporting.terminal import Progress
from pipelines.running import checkpoints
from pipelines.running.board import Reporter
from pipelines.running.data import Round, analysed, fewer
from pipelines.running.feed import Feed, Loader
from pipelines.running.jobs import limit_threads, run_job, take_part
from pipelines.running.memory import Memory, fits_memory
from pipelines.running.watch import Watch
from pipelines.streams.shards import Index
from uml_core.arms import UNIMODAL, build_fit
from uml_core.comparison import Outcome, Unit, choose, share, units_of
from uml_core.errors import RunError
from uml_core.evaluation import Evaluate, classifier_accuracy, probe_accuracy, probe_test_accuracy
from uml_core.heads.stacked import batchable, train_heads
from uml_core.loop import Fit, accuracy, train
from uml_core.modalities import Modality
from uml_core.modalities.base import Batch
from uml_core.parallel import DataParallel, OneProcess, World
from uml_core.specs import Recipe

ARMS = "arms"  # folder of the chosen weights inside --out
ARMS_BYTES = 1 << 30  # of the chosen weights of all seeds; above it the first seed's are kept
Budget = tuple[int | None, int | None]  # shots, fewer auxiliary samples or None


@dataclass(frozen=True)
class Cohort:
    """Everything the workers need; goes to them once, through the object store."""

    recipe: Recipe
    modalities: dict[str, Modality]
    num_classes: int | None
    classes: tuple[str, ...]
    rounds: list[Round]
    arms: list[str]
    test: Index
    out: str

    def units(self, number: int) -> list[Unit]:
        """The fits of round `number`."""
        at = self.rounds[number]
        return units_of(self.recipe, self.arms, at.seed, at.shots)


@dataclass
class Result:
    """What a comparison found for one number of shots.

    chosen  arm -> grid point
    test    (arm, seed) -> test accuracy in percent
    fewer   auxiliary samples per class -> seed -> test accuracy of UML with so few of them
    """

    shots: int | None
    outcomes: list[Outcome]
    chosen: dict[str, int]
    test: dict[tuple[str, int], float]
    fewer: dict[int, dict[int, float]] = field(default_factory=dict)
    placement: list[dict[str, Any]] = field(default_factory=list)


def rounds_at_once(recipe: Recipe) -> int:
    """Rounds whose fits train together, at most: heads in memory take all seeds at once."""
    return len(recipe.seeds) if batchable(recipe) else 1


def steps_of(cohort: Cohort) -> int:
    """Fit-steps of the whole comparison: the unit of its progress."""
    total = cohort.recipe.schedule().total
    return sum(len(cohort.units(i)) for i in range(len(cohort.rounds))) * total


def run_cohort(cohort: Cohort, progress: Progress) -> tuple[list[Result], int]:
    """Runs the worker group from the driver; (one Result per number of shots, restarts)."""
    return run_job(
        worker,
        cohort,
        cohort.recipe.train,
        Path(cohort.out),
        say=progress.say,
        on_progress=lambda done: progress.update(round(done)),
    )


# ------------------------------------------------------------------------------ the worker


def worker(config: dict[str, Any]) -> Any:
    """`train_loop_per_worker` of a comparison. Rank 0's return value reaches the driver."""
    return take_part(config, Member)


class Member:
    """One worker of the group."""

    def __init__(self, cohort: Cohort, reporter: Reporter) -> None:
        context = ray.train.get_context()
        self.cohort, self.recipe, self.reporter = cohort, cohort.recipe, reporter
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            limit_threads(context.get_local_world_size())
        self.split = self.recipe.compare.parallel == "data" and self.size > 1
        self.world: World = DataParallel() if self.split else OneProcess()
        self.part = (self.rank, self.size) if self.split else (0, 1)
        self.out = Path(cohort.out)
        self.folder = Path(tempfile.mkdtemp(prefix="uml-round-"))
        self.watch = Watch(reporter)
        self.load = Loader(cohort.modalities, self.recipe.quarantine_budget, self.out, self.watch)
        self.in_memory = (
            batchable(self.recipe)
            and not self.split
            and fits_memory(cohort.modalities, cohort.rounds)
        )
        self.feed: Feed | None = None
        self.done_steps = 0

    def close(self) -> None:
        """Ends the streams and removes the local copies."""
        self.watch.close()
        if self.feed is not None:
            self.feed.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self) -> list[Result]:
        """All rounds that are not in the last checkpoint, then the choice and the test set."""
        first = self._take_over()
        turns = self._turns()
        if self.rank == 0:
            self.reporter.began(first, "round")
        if not self.in_memory:
            self.feed = self._open_feed(first)
        for turn in turns:
            # A group of another size may have stopped in the midst of what is one turn here.
            left = [n for n in turn if n >= first]
            self._done(self._mine([n for n in turn if n < first]))
            if left:
                mine = self._mine(left)
                self._train(mine)
                self._report(left[-1])
                self._done(mine)
        return self._finish()

    # ------------------------------------------------------------------------- a round

    def _turns(self) -> list[list[int]]:
        """Rounds that train together: those of one number of shots where samples lie in memory,
        else one after the other. A checkpoint follows each turn."""
        numbers = range(len(self.cohort.rounds))
        if not self.in_memory:
            return [[number] for number in numbers]
        return [[n for n in numbers if self.cohort.rounds[n].shots == k] for k in self._shots()]

    def _train(self, mine: Sequence[tuple[int, Unit]]) -> None:
        """Trains this worker's fits of one turn and leaves their results in the folder."""
        if not mine:
            return
        fits = [self._build(unit, self.cohort.rounds[number]) for number, unit in mine]
        if self.in_memory:
            self._train_in_memory(mine, fits)
        else:
            self._train_streamed(mine[0][0], fits)
        if self.split and self.rank > 0:
            return  # every worker holds the same weights; one copy is enough
        for (number, unit), fit in zip(mine, fits, strict=True):
            self._keep(number, unit, fit)

    def _train_streamed(self, number: int, fits: Sequence[Fit]) -> None:
        """All fits of one round in lockstep on its streams."""
        before = self.done_steps
        assert self.feed is not None
        self.feed.enter(number)
        train(
            fits,
            self.feed.next,
            self.recipe.schedule(),
            evaluate=self._evaluation(self.cohort.rounds[number]),
            progress=lambda step: self.reporter.tick((before + step * len(fits)) / self.part[1]),
        )

    def _train_in_memory(self, mine: Sequence[tuple[int, Unit]], fits: Sequence[Fit]) -> None:
        """The fits of several rounds, many at a time."""
        before, recipe = self.done_steps, self.recipe
        numbers = {number for number, _ in mine}
        memory = Memory(
            self.cohort.modalities, recipe.train.batch_size, recipe.quarantine_budget, self.out
        )
        rows = {n: memory.streams(self.cohort.rounds[n]) for n in numbers}
        judges = {n: self._evaluation(self.cohort.rounds[n]) for n in numbers}
        train_heads(
            fits,
            [
                {name: rows[n][fit.sources.get(name, name)] for name in fit.modalities}
                for (n, _), fit in zip(mine, fits, strict=True)
            ],
            [judges[n] for n, _ in mine],
            schedule=recipe.schedule(),
            progress=lambda steps: self.reporter.tick(before + steps),
        )

    def _open_feed(self, first: int) -> Feed:
        return Feed(
            self.cohort.modalities,
            [r.train for r in self.cohort.rounds],
            seeds=[r.seed for r in self.cohort.rounds],
            batches=self.recipe.schedule().consumed(self.recipe.schedule().total),
            batch_size=self.recipe.train.batch_size,
            part=self.part,
            start=(first, {}),
            budget=self.recipe.quarantine_budget,
            out=self.out,
            watch=self.watch,
        )

    def _done(self, fits: Sequence[tuple[int, Unit]]) -> None:
        """Counts fits that are over, for the progress."""
        self.done_steps += self.recipe.schedule().total * len(fits)

    def _mine(self, rounds: Sequence[int]) -> list[tuple[int, Unit]]:
        """This worker's share of the fits of some rounds, each with the number of its round."""
        units = [(n, unit) for n in rounds for unit in self.cohort.units(n)]
        if self.split:
            return units
        schedule = self.recipe.schedule()
        taken = schedule.consumed(schedule.total)
        alone = float(taken[self.recipe.target])
        cost = {arm: alone if arm in UNIMODAL else sum(taken.values()) for arm in self.cohort.arms}
        number = {unit: n for n, unit in units}
        parts = share([unit for _, unit in units], cost, self.size)
        return [(number[unit], unit) for unit in parts[self.rank]]

    def _build(self, unit: Unit, at: Round) -> Fit:
        return build_fit(
            self.recipe,
            unit.arm,
            unit.seed,
            unit.settings(self.recipe),
            self.cohort.modalities,
            num_classes=self.cohort.num_classes,
            head_batches=lambda name: self.load(at.train[name], name),
            sources=self._sources(unit),
            device=self.device,
            world=self.world,
        )

    def _sources(self, unit: Unit) -> dict[str, str]:
        if unit.fewer is None:
            return {}
        assert self.recipe.exchange is not None
        name, _ = self.recipe.exchange
        return {name: fewer(name, unit.fewer)}

    def _evaluation(self, at: Round) -> Evaluate:
        target = self.recipe.target
        if at.probe is None:
            return classifier_accuracy(target, self.load(at.val, target, self.part))
        train_batches = self.load(at.probe, target)
        return probe_accuracy(target, train_batches, self.load(at.val, target), self.recipe.probe.C)

    # --------------------------------------------------------------------- checkpoints

    def _keep(self, number: int, unit: Unit, fit: Fit) -> None:
        """Writes a finished fit's outcome and weights; of most fits those of the target's path."""
        name = _file_name(number, unit)
        outcome = Outcome(
            unit, fit.best_accuracy, fit.best_step, fit.history, fit.diverged_at, fit.skipped
        )
        (self.folder / f"{name}.json").write_text(json.dumps(asdict(outcome)))
        if fit.best_weights is not None:
            weights = {k: v.contiguous() for k, v in fit.best_weights.items()}
            if (unit.shots, unit.seed) != analysed(self.recipe):
                weights = target_path(weights, self.recipe.target)
            save_file(weights, self.folder / f"{name}.safetensors")

    def _report(self, number: int) -> None:
        """Checkpoints all rounds up to this one; a barrier over the workers."""
        checkpoints.save(
            self.folder,
            self.out,
            number + 1,
            "round",
            rank=self.rank,
            ranks=self.size,
            metrics={"round": number + 1},
        )

    def _take_over(self) -> int:
        """Rounds finished by an earlier group; rank 0 keeps carrying their files."""
        found, troubles = checkpoints.agreed(self.out, self.rank)
        for trouble in troubles:
            self.reporter.note(trouble)
        if found is None:
            return 0
        if self.rank == 0:
            shutil.copytree(found.path, self.folder, dirs_exist_ok=True)
        return found.at

    # ------------------------------------------------------------------------ the test

    def _finish(self) -> list[Result]:
        """Chooses per arm on validation and reads the test set once, fits shared by workers."""
        dist.barrier()  # until the files of all workers are in the last checkpoint
        checkpoint, _ = checkpoints.agreed(self.out, self.rank)
        assert checkpoint is not None
        folder = checkpoint.path
        outcomes = _read_outcomes(folder)
        chosen = _choices([o for _, o in outcomes])
        jobs = [
            (number, at, Unit(arm, point, at.seed, at.shots, few))
            for number, at in enumerate(self.cohort.rounds)
            for (shots, few), points in chosen.items()
            for arm, point in points.items()
            if shots == at.shots
        ]
        mine: dict[Unit, float] = {}
        test = self.load(self.cohort.test, self.recipe.target)
        for number, at, unit in jobs[self.rank :: self.size]:
            weights = folder / f"{_file_name(number, unit)}.safetensors"
            mine[unit] = self._test(unit, at, weights, test)
        if self.rank == 0:
            self._save_model(folder, outcomes, chosen)
            self._save_arms(folder, chosen)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, (mine, self._placement()))
        tested = {unit: value for part, _ in gathered for unit, value in part.items()}
        places = [place for _, place in gathered]
        return [self._result(shots, outcomes, chosen, tested, places) for shots in self._shots()]

    def _shots(self) -> list[int | None]:
        return list(dict.fromkeys(at.shots for at in self.cohort.rounds))

    def _result(
        self,
        shots: int | None,
        outcomes: Sequence[tuple[str, Outcome]],
        chosen: dict[Budget, dict[str, int]],
        tested: dict[Unit, float],
        places: list[dict[str, Any]],
    ) -> Result:
        """What stands under one number of shots: the arms, and UML with fewer auxiliary data."""
        few: dict[int, dict[int, float]] = {}
        for unit, value in tested.items():
            if unit.shots == shots and unit.fewer is not None:
                few.setdefault(unit.fewer, {})[unit.seed] = value
        own = [o for _, o in outcomes if (o.unit.shots, o.unit.fewer) == (shots, None)]
        test = {
            (unit.arm, unit.seed): value
            for unit, value in tested.items()
            if (unit.shots, unit.fewer) == (shots, None)
        }
        return Result(shots, own, chosen[shots, None], test, few, places)

    def _test(self, unit: Unit, at: Round, weights: Path, test: Sequence[Batch]) -> float:
        """Test accuracy in percent of one chosen fit."""
        if not weights.is_file():
            raise RunError(
                f"{unit.arm} with seed {unit.seed} diverged before its first validation: lower "
                "train.lr or the grid's, or set train.clip=1.0"
            )
        fit = self._build(unit, at)
        fit.learner.load_state_dict(load_file(weights), strict=False)
        fit.learner.eval()
        target = self.recipe.target
        with torch.no_grad():
            if at.probe is None:
                correct, labelled = accuracy(fit.learner, target, test)
                return 100.0 * correct / labelled
            parts = (self.load(at.probe, target), self.load(at.val, target), test)
            return probe_test_accuracy(fit.learner, target, parts, self.recipe.probe.C)

    def _save_model(
        self,
        folder: Path,
        outcomes: Sequence[tuple[str, Outcome]],
        chosen: dict[Budget, dict[str, int]],
    ) -> None:
        """The chosen UML fit of best validation (at the most shots): target path and recipe."""
        shots, _ = analysed(self.recipe)
        candidates = [
            (outcome.val_accuracy, name)
            for name, outcome in outcomes
            if (outcome.unit.shots, outcome.unit.fewer) == (shots, None)
            and outcome.unit.arm == "uml"
            and outcome.unit.point == chosen[shots, None]["uml"]
        ]
        _, name = max(candidates, key=lambda pair: pair[0])
        model = self.out / "model"
        model.mkdir(exist_ok=True)
        weights = target_path(load_file(folder / f"{name}.safetensors"), self.recipe.target)
        with replaced(model / "model.safetensors") as scratch:
            save_file(weights, scratch)
        write_text(model / "recipe.yaml", self.recipe.to_yaml())
        names = json.dumps(list(self.cohort.classes), ensure_ascii=False, indent=1)
        write_text(model / "classes.json", names + "\n")

    def _save_arms(self, folder: Path, chosen: dict[Budget, dict[str, int]]) -> None:
        """The chosen fits at the most shots for `uml evaluate`, of every seed where that is little.

        Those of the first seed hold all modalities, the others the target's path.
        """
        shots, first = analysed(self.recipe)
        files = {
            (at.seed, arm): folder
            / f"{_file_name(number, Unit(arm, point, at.seed, shots))}.safetensors"
            for number, at in enumerate(self.cohort.rounds)
            if at.shots == shots
            for arm, point in chosen[shots, None].items()
        }
        files = {place: path for place, path in files.items() if path.is_file()}
        many = sum(path.stat().st_size for path in files.values()) > ARMS_BYTES
        for (seed, arm), path in files.items():
            if seed == first or not many:
                to = self.out / ARMS / f"{arm}-seed{seed}.safetensors"
                to.parent.mkdir(exist_ok=True)
                with replaced(to) as scratch:
                    shutil.copyfile(path, scratch)

    def _placement(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return {
            "rank": self.rank,
            "node": ray.util.get_node_ip_address(),
            "device": name,
            "threads": torch.get_num_threads(),
            "wait_seconds": self.feed.wait_seconds() if self.feed is not None else {},
        }


def target_path(weights: dict[str, torch.Tensor], target: str) -> dict[str, torch.Tensor]:
    """The weights that inference on the target needs: its stem, the trunk, the head, its scale."""
    own = (f"stems.{target}.", f"decoders.{target}.", "trunk.", "classifier.")
    scale = f"logit_scales.{target}"
    return {k: v.contiguous() for k, v in weights.items() if k.startswith(own) or k == scale}


def _choices(outcomes: Sequence[Outcome]) -> dict[Budget, dict[str, int]]:
    """(shots, fewer auxiliary samples or None) -> arm -> grid point chosen on validation."""
    budgets = dict.fromkeys((o.unit.shots, o.unit.fewer) for o in outcomes)
    return {
        (shots, few): choose([o for o in outcomes if (o.unit.shots, o.unit.fewer) == (shots, few)])
        for shots, few in budgets
    }


def _file_name(number: int, unit: Unit) -> str:
    few = "" if unit.fewer is None else f"-fewer{unit.fewer}"
    return f"round{number:04d}-{unit.arm}-{unit.point}{few}"


def _read_outcomes(folder: Path) -> list[tuple[str, Outcome]]:
    out = []
    for path in sorted(folder.glob("round*.json")):
        raw = json.loads(path.read_text())
        raw["unit"] = Unit(**raw["unit"])
        out.append((path.stem, Outcome(**raw)))
    return out
