"""What a run must learn: the same fit trained in this process, from its plan's rows, without Ray.

The yardstick of runs that were disturbed. It costs a second or two; another run on a Ray would
cost half a minute, and would share whatever is wrong with streams, workers and checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.running.data import Data, make_round, num_classes, open_data, resolved, rounds_of
from pipelines.running.feed import augments
from pipelines.streams.plan import Plan
from pipelines.streams.reader import iter_plan, load_all
from uml_core import recipe as recipes
from uml_core.arms import arm_schedule, build_fit
from uml_core.evaluation import classifier_accuracy
from uml_core.loop import train
from uml_core.modalities.base import Batch
from uml_core.specs import Recipe

MEMORY = 1 << 30


@dataclass(frozen=True)
class Learnt:
    """What metrics.json holds of an undisturbed run: accuracies in percent, the loss curve.

    losses  every modality's mean loss between validations, as `runs.losses` lists it
    """

    val_accuracy: float
    test_accuracy: float
    best_step: int
    losses: list[float]


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
    schedule = arm_schedule(recipe, fit.modalities)
    streams = {}
    for name, count in schedule.consumed(schedule.total).items():
        rows, modality = at.train[name], data.modalities[name]
        plan = Plan(len(rows), recipe.train.batch_size, seed, name)
        streams[name] = iter_plan(rows, plan, modality, count=count, augment=augments(modality))

    def next_batch(name: str) -> tuple[int, Batch]:
        item = next(streams[name])
        return item.number, item.batch

    judge = classifier_accuracy(target, load_all(at.val, data.modalities[target], MEMORY))
    train([fit], next_batch, schedule, evaluate=judge)
    fit.restore_best()
    fit.learner.eval()
    with torch.no_grad():
        test = load_all(data.test[target], data.modalities[target], MEMORY)
        accuracy = classifier_accuracy(target, test)(fit)
    losses = [noted[name] for noted in fit.history["losses"] for name in sorted(noted)]
    return Learnt(fit.best_accuracy, accuracy, fit.best_step, losses)
