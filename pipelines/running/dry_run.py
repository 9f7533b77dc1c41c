"""What a run would do, in words: the resolved recipe, counts, steps and a memory guess."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.running.cohort import rounds_at_once
from pipelines.running.data import Data, make_round, rounds_of
from pipelines.running.need import count_parameters, worker_memory
from pipelines.streams.storage import expand
from uml_core import language_trunk
from uml_core.comparison import units_of
from uml_core.errors import UserError
from uml_core.specs import Recipe

MIB = 1 << 20


def lacks_data(recipe: Recipe) -> bool:
    """Whether this is a recipe of data from outside (`source`) of which no shard is here yet."""
    if recipe.source is None:
        return False
    assert recipe.data_root is not None
    for name in recipe.active:
        try:
            expand(recipe.modalities[name].train, recipe.data_root)
            return False
        except UserError:
            continue
    return True


def describe_without(recipe: Recipe, arms: Sequence[str] | None = None) -> str:
    """The text of `--dry-run` before the data is there: all that does not depend on it."""
    lines = [recipe.to_yaml(), f"data        not in {recipe.data_root} yet: {recipe.source}"]
    for name in recipe.active:
        spec = recipe.modalities[name]
        wanted = [f"{split} {getattr(spec, split)}" for split in ("train", "val", "test")]
        kept = [text for text in wanted if not text.endswith(" None")]
        lines.append(f"{name:<11} {spec.kind}: {', '.join(kept)}")
    if not (recipe.train.warmup and recipe.train.warmup.steps is None):
        lines.append(f"steps       {recipe.schedule().total}, batch {recipe.train.batch_size}")
    if arms is not None:
        budgets = recipe.shots if isinstance(recipe.shots, list) else [recipe.shots]
        points = len(units_of(recipe, arms, recipe.seeds[0], budgets[0]))
        fits = points * len(recipe.seeds) * len(budgets)
        lines.append(f"fits        {fits} ({', '.join(arms)}; {len(recipe.seeds)} seeds)")
    return "\n".join(lines)


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
        together = -(-points * rounds_at_once(recipe) // recipe.train.most_workers)
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
