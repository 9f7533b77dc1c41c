"""Measures a finished run: features of every set, then probes, test sets and analyses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.reporting.terminal import Progress
from pipelines.running.data import Data, make_round, num_classes
from pipelines.running.embedding import embed, within_memory
from pipelines.running.finished import FinishedRun, load_learner, new_learner
from pipelines.running.sets import NO_PAIRS, Sets, few, labelled
from pipelines.streams.shards import Index
from uml_core.analysis.arms import ArmGeometry, Geometry, compare_geometry, geometry
from uml_core.analysis.bootstrap import Estimate
from uml_core.analysis.suite import TRAINED, UNTRAINED, Pairs, Suite, Twin, analyse
from uml_core.few_shot import FewShotCurve, few_shot_curve
from uml_core.learner import UnpairedLearner
from uml_core.probes import fit_knn_probe, fit_linear_probe
from uml_core.readout import Judged, Readout, classifier_readout, judge, percent_of, probe_readout
from uml_core.shift import ShiftResult, shifted_test
from uml_core.specs import TrainSpec
from uml_core.views import Features, Views, paired, probe_features


@dataclass(frozen=True)
class Probed:
    """A probe on frozen features: what validation chose, and the test set read with it."""

    test: Judged
    val_accuracy: float
    chosen: dict[str, float]
    train_samples: int


@dataclass(frozen=True)
class Measured:
    """All results of an evaluation.

    decided   the run's own rule on the test set: shared classifier, or linear probe
    probes    "linear", "kNN", and "linear, untrained": the same on untrained weights
    views     self-supervised: probes per modality and joint; else None
    arms      of a comparison, else None; arm_accuracy: arm -> per seed, percent
    test_of   test samples there are; fewer are judged only where features do not fit the memory
    """

    decided: Judged
    probes: dict[str, Probed]
    views: Views | None
    few_shot: FewShotCurve
    shifts: dict[str, ShiftResult]
    suite: Suite
    arms: ArmGeometry | None
    arm_accuracy: dict[str, list[float]]
    test_of: int
    device: str

    def view_results(self) -> dict[str, tuple[Estimate, int, float, float]]:
        """View -> (test accuracy with interval, test samples, validation accuracy, C)."""
        found = {}
        for name, result in self.views.results.items() if self.views else ():
            samples = sum(c.samples for c in result.per_class.values())
            assert result.test_accuracy is not None
            hits = round(result.test_accuracy * samples / 100)
            estimate = percent_of(hits, samples)
            found[name] = (estimate, samples, result.val_accuracy, result.chosen["C"])
        return found


def choose_device(spec: TrainSpec) -> torch.device:
    """Where the models run: a GPU of this process where the recipe allows one."""
    gpu = spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if gpu else "cpu")


@dataclass(frozen=True)
class Models:
    """The networks of an evaluation, on their device: the run's, itself untrained, and all arms."""

    trained: UnpairedLearner
    untrained: UnpairedLearner
    arms: dict[tuple[str, int], UnpairedLearner]


def load_models(run: FinishedRun, data: Data) -> Models:
    """Everything that is evaluated. Raises UserError where weights do not fit the recipe."""
    recipe, modalities = run.recipe, data.modalities
    options: dict[str, Any] = {
        "num_classes": num_classes(recipe, data),
        "device": choose_device(recipe.train),
    }
    trained = load_learner(run.model, recipe, modalities, **options)
    arm = "uml" if len(trained.modalities) > 1 else "unimodal"
    seeds = set.intersection(*map(set, run.arms.values())) if run.arms else set()
    return Models(
        trained=trained,
        untrained=new_learner(recipe, modalities, arm=arm, seed=run.seed, **options),
        arms={
            (name, seed): load_learner(path, recipe, modalities, arm=name, **options)
            for name, by_seed in run.arms.items()
            for seed, path in by_seed.items()
            if seed in seeds
        },
    )


def measure(
    run: FinishedRun, data: Data, models: Models, sets: Sets, out: Path, progress: Progress
) -> Measured:
    """Everything, in order; bad samples are listed in `out`/quarantine.jsonl."""
    return _Evaluation(run, data, models, sets, out, progress).all()


class _Evaluation:
    """One run under evaluation: its models and what they have embedded."""

    def __init__(
        self,
        run: FinishedRun,
        data: Data,
        models: Models,
        sets: Sets,
        out: Path,
        progress: Progress,
    ) -> None:
        self.run, self.data, self.sets = run, data, sets
        self.out, self.progress, self.recipe = out, progress, run.recipe
        self.target = run.recipe.target
        self.models = {TRAINED: models.trained, UNTRAINED: models.untrained}
        self.fits = models.arms

    def all(self) -> Measured:
        sets, trained = self.sets, {TRAINED: self.models[TRAINED]}
        whole = within_memory(sets.test, trained[TRAINED].spec.width, len(self.models))
        test = self._embed(self.models, self.target, whole, "test set")
        train, val = (
            self._embed(self.models, self.target, index, "samples of the probes")
            for index in (sets.train, sets.val)
        )
        readouts, probes = self._probes(train, val, test)
        views = self._views(train, val, test) if self.recipe.setting != "supervised" else None
        pool = self._embed(trained, self.target, sets.pool, "few-shot samples")[TRAINED]
        self.progress.advance(note="few-shot protocol")
        curve = few_shot_curve(
            pool[:2],
            test[TRAINED][:2],
            self.recipe.evaluate.shots,
            self.recipe.evaluate.split_seeds,
            self.recipe.probe.C,
            self.data.classes,
            modality=self.target,
        )
        shifts = self._shifts(readouts[TRAINED], test[TRAINED])
        suite = self._suite(test, readouts)
        arms, arm_accuracy = self._arms()
        return Measured(
            decided=judge(readouts[TRAINED], *test[TRAINED][:2]),
            probes=probes,
            views=views,
            few_shot=curve,
            shifts=shifts,
            suite=suite,
            arms=arms,
            arm_accuracy=arm_accuracy,
            test_of=len(sets.test),
            device=_device_name(next(self.models[TRAINED].parameters()).device),
        )

    def _embed(
        self, models: Mapping[str, UnpairedLearner], name: str, index: Index, note: str
    ) -> dict[str, Features]:
        self.progress.advance(note=note)
        budget = self.recipe.quarantine_budget
        modality = self.data.modalities[name]
        return embed(models, name, index, modality, budget=budget, out=self.out)

    # ------------------------------------------------------------------------- accuracies

    def _probes(
        self,
        train: Mapping[str, Features],
        val: Mapping[str, Features],
        test: Mapping[str, Features],
    ) -> tuple[dict[str, Readout], dict[str, Probed]]:
        """How each network decides, and the probes of both."""
        self.progress.advance(note="probes")
        readouts, probes = {}, {}
        for state, name in ((TRAINED, "linear"), (UNTRAINED, "linear, untrained")):
            parts = (*train[state][:2], *val[state][:2])
            probe, val_accuracy = fit_linear_probe(*parts, self.recipe.probe.C)
            judged = judge(probe, *test[state][:2])
            probes[name] = Probed(judged, val_accuracy, {"C": probe.C}, len(train[state].y))
            learner = self.models[state]
            supervised = learner.classifier is not None
            readouts[state] = (
                classifier_readout(learner, self.target) if supervised else probe_readout(probe)
            )
        nearest, val_accuracy = fit_knn_probe(*train[TRAINED][:2], *val[TRAINED][:2])
        judged = judge(nearest, *test[TRAINED][:2])
        probes["kNN"] = Probed(judged, val_accuracy, {"k": nearest.k}, len(train[TRAINED].y))
        return readouts, probes

    def _views(
        self,
        train: Mapping[str, Features],
        val: Mapping[str, Features],
        test: Mapping[str, Features],
    ) -> Views:
        """Linear probes of every modality alone and joined to the target (paper B.4.1)."""
        trained = {TRAINED: self.models[TRAINED]}
        parts = {"train": train[TRAINED], "val": val[TRAINED], "test": test[TRAINED]}
        features = {self.target: parts}
        for name, by_split in self.sets.views.items():
            features[name] = {
                split: self._embed(trained, name, index, f"{name} for its probe")[TRAINED]
                for split, index in by_split.items()
            }
        found = probe_features(self.target, features, self.recipe.probe.C)
        return Views(found.results, {**self.sets.left_out, **found.left_out})

    def _shifts(self, readout: Readout, own: Features) -> dict[str, ShiftResult]:
        trained = {TRAINED: self.models[TRAINED]}
        found = {}
        for name, shift in self.sets.shifts.items():
            width = trained[TRAINED].spec.width
            index = within_memory(shift.index, width, 1)
            x, y, _ = self._embed(trained, self.target, index, f"test set {name}")[TRAINED]
            found[name] = shifted_test(readout, x, y, shift.mapped, own.x, own.y)
        return found

    # --------------------------------------------------------------------------- analyses

    def _suite(self, test: Mapping[str, Features], readouts: Mapping[str, Readout]) -> Suite:
        auxiliary = {
            name: _twin(self._embed(self.models, name, index, name))
            for name, index in self.sets.auxiliary.items()
        }
        pairs = {name: self._pairs(name, found) for name, found in self.sets.pairs.items()}
        self.progress.advance(note="analyses")
        return analyse(self.target, _twin(test), readouts, auxiliary, pairs)

    def _pairs(self, name: str, found: tuple[Index, Index] | str) -> Pairs | str:
        """Features of pairs under both networks, row by row, or why they are no pairs."""
        if isinstance(found, str):
            return found
        sides = [
            self._embed(self.models, modality, index, f"pairs with {name}")
            for modality, index in zip((self.target, name), found, strict=True)
        ]
        halves, labels = [], np.zeros(0, np.int64)
        for state in self.models:
            both = paired(sides[0][state], sides[1][state])
            if isinstance(both, str):
                return f"{NO_PAIRS}: {both}"
            halves.append(np.split(both.x, [sides[0][state].x.shape[1]], axis=1))
            labels = both.y
        return Pairs(*(Twin(x, before, labels) for x, before in zip(*halves, strict=True)))

    def _arms(self) -> tuple[ArmGeometry | None, dict[str, list[float]]]:
        """Every arm and seed of a comparison on the same test samples."""
        if not self.fits:
            return None, {}
        labels = {place: f"{place[0]}/{place[1]}" for place in self.fits}
        models = {labels[place]: learner for place, learner in self.fits.items()}
        shown = few(self.sets.test, self.recipe.evaluate.samples)
        test = self._embed(models, self.target, shown, "test set, every arm")
        found: dict[str, dict[int, Geometry]] = {}
        accuracy: dict[str, list[float]] = {}
        for (arm, seed), learner in self.fits.items():
            x, y, _ = test[labels[arm, seed]]
            readout = self._readout(learner, seed)
            accuracy.setdefault(arm, []).append(judge(readout, x, y).accuracy.value)
            found.setdefault(arm, {})[seed] = geometry(readout, x, y)
        return compare_geometry(found), accuracy

    def _readout(self, learner: UnpairedLearner, seed: int) -> Readout:
        if learner.classifier is not None:
            return classifier_readout(learner, self.target)
        at = make_round(self.recipe, self.data, seed, self.run.shots)
        assert at.probe is not None
        limit = self.recipe.evaluate.samples
        train, val = (
            self._embed({TRAINED: learner}, self.target, few(labelled(index), limit), "probes")
            for index in (at.probe, at.val)
        )
        probe, _ = fit_linear_probe(*train[TRAINED][:2], *val[TRAINED][:2], self.recipe.probe.C)
        return probe_readout(probe)


def _twin(found: Mapping[str, Features]) -> Twin:
    return Twin(found[TRAINED].x, found[UNTRAINED].x, found[TRAINED].y)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
