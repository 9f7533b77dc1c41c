"""What a sweep would do, in words: the text of `uml sweep --dry-run`."""

from __future__ import annotations

from pipelines.reporting.answer import number
from pipelines.tuning.design import Design, fresh_seeds


def describe(made: Design) -> str:
    """The resolved recipe, the points and what they cost."""
    recipe, spec = made.recipe, made.recipe.sweep
    seeds = len(recipe.seeds)
    lines = [recipe.to_yaml(), f"space       {made.space.name}: {made.space.doc}"]
    lines.append(f"search      {spec.search}, budget {spec.budget}")
    lines.append(
        f"trials      {made.count} ({len(made.baselines)} without auxiliary data), each on {seeds} "
        f"seeds, {made.validations} validations"
    )
    for trial in made.trials:
        what = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial.values.items()
        )
        lines.append(
            f"  {trial.key:<14}{trial.target_samples:>9,} samples "
            f"{trial.flops / 1e9:>9,.1f} GFLOPs  {what or 'the target alone'}"
        )
    total = sum(t.flops for t in made.trials) * seeds / 1e9
    lines.append(f"cost        at most {number(total, sign=False)} GFLOPs of training")
    fresh = ", ".join(map(str, fresh_seeds(recipe))) or "none: the answer will say so"
    lines.append(f"confirmed   on seeds {fresh}")
    return "\n".join(lines)
