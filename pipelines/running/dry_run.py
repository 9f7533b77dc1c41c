"""What a run would do, in words: the resolved recipe, counts, steps and a memory guess."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.running.cohort import rounds_at_once
from pipelines.running.data import Data, make_round, rounds_of
from pipelines.running.need import count_parameters, worker_memory
from uml_core import language_trunk
from uml_core.comparison import units_of
from uml_core.specs import Recipe

MIB = 1 << 20


def describe(recipe: Recipe, data: Data, arms: Sequence[str] | None = None) -> str:
    """The text of `--dry-run`. arms: those of a comparison; None: one data-parallel fit."""
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
    together, fits = 1, "1"
    if arms is not None:
        budgets = recipe.shots if isinstance(recipe.shots, list) else [recipe.shots]
        points = len(units_of(recipe, arms, seed, shots))
        together = -(-points * rounds_at_once(recipe) // recipe.train.workers)
        fits = (
            f"{points * len(recipe.seeds) * len(budgets)} ({len(arms)} arms with their grids, "
            f"{len(recipe.seeds)} seeds, {len(budgets)} numbers of shots"
        )
        if recipe.exchange is not None:
            name, counts = recipe.exchange
            fits += f", UML with {len(counts)} numbers of {name} samples"
        fits += ")"
    warmup = schedule.warmup
    if warmup is not None:
        used = len(streams[warmup.modality])
        passes = warmup.steps * recipe.train.batch_size / used
        when = "before" if schedule.lead else "of"
        lines.append(
            f"warm-up     {warmup.steps} steps on {warmup.modality} alone ({passes:.2f} passes "
            f"over its {used} samples), {when} the {schedule.steps} target batches"
        )
    if trunk := language_trunk.description(recipe.model):
        lines.append(f"trunk       {trunk}")
    parameters = count_parameters(recipe, data)
    memory = worker_memory(recipe, data, parameters * together)
    lines += [
        f"steps       {schedule.total} per fit, batch {recipe.train.batch_size}",
        f"fits        {fits}",
        f"parameters  {parameters:,}",
        f"memory      about {memory // MIB} MiB per worker",
    ]
    return "\n".join(lines)
