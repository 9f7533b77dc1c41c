"""What a run would do, in words: the resolved recipe, counts, steps and a memory guess."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.running.data import Data, make_round, num_classes, rounds_of
from uml_core.arms import UNIMODAL
from uml_core.learner import UnpairedLearner
from uml_core.recipe import Recipe, grid_points

MIB = 1 << 20


def describe(recipe: Recipe, data: Data, arms: Sequence[str] = ("uml",)) -> str:
    """The text of `--dry-run`; `arms` as the job would train them."""
    schedule = recipe.schedule()
    taken = schedule.consumed(schedule.total)
    lines = [recipe.to_yaml(), f"classes     {len(data.classes)}"]
    shots, seed = next(rounds_of(recipe))
    streams = make_round(recipe, data, seed, shots).train
    for name in recipe.active:
        train, used = data.train[name], len(streams[name])
        of = "" if used == len(train) else f", {used} of them streamed"
        passes = taken[name] * recipe.train.batch_size / used
        lines.append(
            f"{name:<11} {len(train)} training samples in {len(train.shards)} shards{of}; "
            f"{taken[name]} batches per fit ({passes:.1f} passes)"
        )
    budgets = recipe.shots if isinstance(recipe.shots, list) else [recipe.shots]
    fits = (
        len(recipe.seeds)
        * len(budgets)
        * sum(len(grid_points(recipe.compare, arm not in UNIMODAL)) for arm in arms)
    )
    parameters = _parameters(recipe, data)
    lines += [
        f"steps       {schedule.total} per fit, batch {recipe.train.batch_size}",
        f"fits        {fits} ({len(arms)} arms, {len(recipe.seeds)} seeds, {len(budgets)} shots)",
        f"parameters  {parameters:,}",
        f"memory      about {_memory(recipe, data, parameters, fits) // MIB} MiB per worker",
    ]
    return "\n".join(lines)


def _parameters(recipe: Recipe, data: Data) -> int:
    learner = UnpairedLearner(data.modalities, recipe.model, num_classes=num_classes(recipe, data))
    return sum(p.numel() for p in learner.parameters())


def _memory(recipe: Recipe, data: Data, parameters: int, fits: int) -> int:
    """Bytes: weights, gradients, two moments and the best copy of the fits in lockstep, streams
    in flight, the process itself."""
    together = max(1, fits // len(recipe.seeds) // max(1, recipe.train.workers))
    streams = sum(
        int(data.train[name].sizes.mean()) * recipe.train.batch_size * 16 for name in recipe.active
    )
    return together * parameters * 4 * 5 + streams + 700 * MIB
