"""What a run must learn: the same fit trained in this process, from its plan's rows, without Ray.

The yardstick of runs that were disturbed. It costs a second or two; another run on a Ray would
cost half a minute, and would share whatever is wrong with streams, workers and checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.running.data import Data, make_round, num_classes, open_data, resolved, rounds_of
from pipelines.running.feed import augments
from pipelines.streams.plan import Plan
from pipelines.streams.reader import iter_plan, load_all
from uml_core import recipe as recipes
from uml_core.adaptive import Adaptive
from uml_core.arms import arm_schedule, build_fit
from uml_core.evaluation import classifier_accuracy
from uml_core.loop import train
from uml_core.modalities.base import Batch
from uml_core.specs import Recipe

MEMORY = 1 << 30


@dataclass(frozen=True)
class Learnt:
    """What metrics.json holds of an undisturbed run: accuracies in percent, the loss curve.

    losses   every modality's mean loss between validations, as `runs.losses` lists it
    mix      what a learned ratio decided at each validation
    weights  of the best validation
    """

    val_accuracy: float
    test_accuracy: float
    best_step: int
    losses: list[float]
    history: dict[str, Any]
    mix: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]


def reference(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    arm: str = "uml",
    seed: int | None = None,
    point: Mapping[str, float] | None = None,
) -> Learnt:
    """Trains one fit of a supervised recipe; by default that of `uml train`.

    seed   default: the recipe's first
    point  hyper-parameter -> value, as `build_fit` takes it
    """
    loaded = recipes.load(path, overrides)
    data = open_data(loaded)
    recipe = resolved(loaded, data)
    shots, first = next(iter(rounds_of(recipe)))
    return _learn(recipe, data, arm, first if seed is None else seed, shots, point or {})


def _learn(
    recipe: Recipe,
    data: Data,
    arm: str,
    seed: int,
    shots: int | None,
    point: Mapping[str, float],
) -> Learnt:
    at, target = make_round(recipe, data, seed, shots), recipe.target
    classes = num_classes(recipe, data)
    fit = build_fit(recipe, arm, seed, point, data.modalities, num_classes=classes)
    policy = Adaptive.of(recipe)
    fit.schedule = schedule = policy.schedule if policy else arm_schedule(recipe, fit.modalities)
    counts = policy.most() if policy else schedule.consumed(schedule.total)
    streams, done = {}, 0
    for name, count in counts.items():
        rows, modality = at.train[name], data.modalities[name]
        plan = Plan(len(rows), recipe.train.batch_size, seed, name)
        streams[name] = iter_plan(rows, plan, modality, count=count, augment=augments(modality))

    def next_batch(name: str) -> tuple[int, Batch]:
        item = next(streams[name])
        return item.number, item.batch

    def progress(steps: int) -> None:
        nonlocal done
        done = steps

    val = load_all(at.val, data.modalities[target], MEMORY)
    judge = classifier_accuracy(target, val)
    if policy is not None:
        next_batch = policy.watch(next_batch)
        judge = policy.around(judge, val, target, lambda: done + 1)
    train([fit], next_batch, schedule, evaluate=judge, progress=progress)
    fit.restore_best()
    fit.learner.eval()
    with torch.no_grad():
        test = load_all(data.test[target], data.modalities[target], MEMORY)
        accuracy = classifier_accuracy(target, test)(fit)
    losses = [noted[name] for noted in fit.history["losses"] for name in sorted(noted)]
    mix = policy.history if policy else []
    weights = fit.learner.state_dict()
    return Learnt(fit.best_accuracy, accuracy, fit.best_step, losses, fit.history, mix, weights)
