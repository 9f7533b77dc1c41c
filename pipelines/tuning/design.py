"""The design of a sweep, fixed before anything runs: data, points, baselines, equal cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.running.data import Data, make_round, num_classes, open_data, resolved
from pipelines.running.feed import augments
from pipelines.streams.plan import Plan
from pipelines.streams.reader import iter_plan
from pipelines.tuning.trial import Trial
from tune_spaces.base import Context, Point, Space
from uml_core.cost import batch_flops, cost, with_flops, with_samples
from uml_core.errors import UserError
from uml_core.learner import UnpairedLearner
from uml_core.modalities.base import Batch
from uml_core.recipe import override
from uml_core.specs import Recipe

SHOWN = 8  # problems of points that one message lists


@dataclass
class Design:
    """What a sweep will do.

    recipe     the recipe, input sizes filled in, with the workers of a trial
    data       of every modality that some point uses
    points     configurations with auxiliary data (none of them for `optuna`, which finds them)
    baselines  configurations without, one per setting of the knobs that the target has too
    """

    recipe: Recipe
    data: Data
    space: Space
    context: Context
    points: list[Trial]
    baselines: list[Trial]
    pricing: Pricing

    @property
    def trials(self) -> list[Trial]:
        """Baselines first: they are the line that all others are read against."""
        return [*self.baselines, *self.points]

    @property
    def count(self) -> int:
        """Trials in all, with those that a guided search will propose."""
        guided = self.recipe.sweep.search == "optuna"
        return len(self.baselines) + (self.recipe.sweep.trials if guided else len(self.points))

    @property
    def validations(self) -> int:
        """Validations of one seed of one trial, the same for all."""
        train = self.recipe.train
        return -(-train.steps // train.validate_every)

    def plan(self) -> dict[str, Any]:
        """What makes this sweep beside its recipe: the space, its knobs and the fixed trials."""
        knobs = {
            k.name: {"values": list(k.values), "span": k.span, "log": k.log, "target": k.target}
            for k in self.space.knobs(self.context)
        }
        trials = {trial.key: trial.to_json() for trial in self.trials}
        plan = {"space": self.space.name, "knobs": knobs, "trials": trials}
        return json.loads(json.dumps(plan))  # as it is read again

    def make(self, key: str, values: Mapping[str, Any]) -> Trial:
        """The trial of knob values that a guided search proposes."""
        return self.pricing.trial(key, "uml", self.space.point(values, self.context))


@dataclass
class Pricing:
    """Points -> trials of equal cost. `flops`: model and batch size -> modality -> operations."""

    recipe: Recipe
    data: Data
    flops: dict[str, dict[str, float]] = field(default_factory=dict)

    def trial(
        self,
        key: str,
        arm: str,
        point: Point,
        *,
        seeds: Sequence[int] | None = None,
        test: bool = False,
    ) -> Trial:
        """The trial of a point, fitted to the sweep's budget."""
        changed = override(self.recipe, point.settings)
        flops = self.of(changed)
        if self.recipe.sweep.budget == "flops":
            own = cost(self.recipe, self.of(self.recipe)).flops
            fitted = with_flops(changed, flops, own)
        else:
            samples = self.recipe.train.steps * self.recipe.train.batch_size
            fitted = with_samples(changed, samples)
        price = cost(fitted, flops)
        return Trial(
            key=key,
            arm=arm,
            values=point.values,
            settings=point.settings,
            seeds=list(self.recipe.seeds if seeds is None else seeds),
            steps=fitted.train.steps,
            target_samples=price.target_samples,
            flops=price.flops,
            test=test,
        )

    def spent(self, trial: Trial, batches: Mapping[str, float]) -> float:
        """Operations behind the batches that a trial really took."""
        flops = self.of(override(self.recipe, trial.settings))
        return sum(n * flops[name] for name, n in batches.items())

    def of(self, recipe: Recipe) -> dict[str, float]:
        """Operations of one batch of each modality for this recipe's model."""
        key = json.dumps(
            [recipe.to_dict()["model"], recipe.to_dict()["modalities"], recipe.train.batch_size]
        )
        if key not in self.flops:
            learner = UnpairedLearner(
                self.data.modalities, recipe.model, num_classes=num_classes(recipe, self.data)
            )
            size = recipe.train.batch_size
            batches = {name: self._batch(name, size) for name in self.data.modalities}
            self.flops[key] = batch_flops(learner, batches)
        return self.flops[key]

    def _batch(self, name: str, size: int) -> Batch:
        index, modality = self.data.train[name], self.data.modalities[name]
        plan = Plan(len(index), size, 0, name)
        stream = iter_plan(index, plan, modality, count=1, augment=augments(modality))
        return next(iter(stream)).batch


def design(recipe: Recipe, space: Space) -> Design:
    """Opens the data, draws the points and checks each; raises UserError with every problem."""
    if isinstance(recipe.shots, list):
        raise UserError("a sweep needs one number of shots: give shots=K, or take exchange_rate")
    if not recipe.auxiliaries:
        raise UserError("a sweep needs at least one modality beside the target")
    if recipe.sweep.confirm == 1 or len(recipe.seeds) == 1:
        raise UserError("one seed gives no interval: give two or more seeds, and sweep.confirm=2")
    workers = recipe.sweep.workers
    recipe, data = _open(override(recipe, {"train.workers": workers}), space)
    context = Context(recipe, {name: len(index) for name, index in data.train.items()})
    space.check(context)
    points = _points(recipe, space, context)
    drawn = (
        points
        if recipe.sweep.search != "optuna"
        else space.sample(context, recipe.sweep.trials, recipe.seeds[0])
    )
    alone = {repr(p.settings): p for p in (space.baseline(q, context) for q in drawn)}
    _check_points(recipe, data, [*alone.values(), *drawn])
    pricing = Pricing(recipe, data)
    baselines = [
        pricing.trial(_key("baseline", i, len(alone)), "unimodal", point)
        for i, point in enumerate(alone.values(), 1)
    ]
    trials = [pricing.trial(f"trial-{i:03d}", "uml", p) for i, p in enumerate(points, 1)]
    return Design(recipe, data, space, context, trials, baselines, pricing)


def _open(recipe: Recipe, space: Space) -> tuple[Recipe, Data]:
    """The data of every modality that the recipe or some point of the space takes."""
    sizes = {name: i + 1 for i, name in enumerate(recipe.modalities)}  # all mixes, no data yet
    context = Context(recipe, sizes)
    space.check(context)
    used = set(recipe.active)
    for point in space.grid(context):
        used |= {
            key.split(".")[1]
            for key, value in point.settings.items()
            if key.startswith("modalities.") and key.endswith(".ratio") and value != 0
        }
    idle = [name for name in recipe.auxiliaries if name in used and name not in recipe.active]
    data = open_data(override(recipe, {f"modalities.{name}.ratio": 1.0 for name in idle}))
    return resolved(recipe, data), data


def _points(recipe: Recipe, space: Space, context: Context) -> list[Point]:
    spec, seed = recipe.sweep, recipe.seeds[0]
    if spec.search == "optuna":
        if space.whole:
            raise UserError(f"space {space.name} needs its whole grid: sweep.search=grid")
        return []
    if spec.search == "grid":
        return space.grid(context)
    if spec.search == "random" and not space.whole:
        return space.sample(context, spec.trials, seed)
    return space.points(context, spec.trials, seed)


def _check_points(recipe: Recipe, data: Data, points: Sequence[Point]) -> None:
    """Every point must give a legal recipe, and every seed enough samples."""
    problems: dict[str, None] = {}
    rounds: set[str] = set()
    for point in points:
        try:
            changed = override(recipe, point.settings)
            if not isinstance(changed.shots, list):
                shots = {name: spec.shots for name, spec in changed.modalities.items()}
                if (key := repr((changed.shots, shots, changed.active))) not in rounds:
                    rounds.add(key)
                    for seed in [*recipe.seeds, *fresh_seeds(recipe)]:
                        make_round(changed, data, seed, changed.shots)
        except UserError as error:
            at = ", ".join(f"{name} {value}" for name, value in point.values.items()) or "baseline"
            problems |= dict.fromkeys(f"at {at}: {problem}" for problem in error.problems)
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise UserError([*list(problems)[:SHOWN], *more])


def fresh_seeds(recipe: Recipe) -> list[int]:
    """Seeds of the confirmation: as many as asked for, none of which the sweep uses."""
    first = max(recipe.seeds) + 1
    return list(range(first, first + recipe.sweep.confirm))


def _key(name: str, number: int, of: int) -> str:
    return name if of == 1 else f"{name}-{number:03d}"


def confirmation(made: Design, best: Trial, baseline: Trial) -> list[Trial]:
    """What is trained again on fresh seeds: best, its control, the baseline, the adaptive mix.

    The adaptive run may spend the FLOPs of the best mix; it is left out where that changes with
    the step.
    """
    seeds = fresh_seeds(made.recipe)
    point = Point(best.values, best.settings)
    alone = Point(baseline.values, baseline.settings)
    price = made.pricing.trial
    trials = [
        price("confirm-best", "uml", point, seeds=seeds, test=True),
        price("confirm-control", "uml_permuted", point, seeds=seeds, test=True),
        price("confirm-baseline", "unimodal", alone, seeds=seeds, test=True),
    ]
    settings = _adaptive(made, best)
    if settings is not None:
        adaptive = price("confirm-adaptive", "uml", Point({}, settings), seeds=seeds, test=True)
        trials.append(replace(adaptive, steps=best.steps))
    return trials


def _adaptive(made: Design, best: Trial) -> dict[str, Any] | None:
    """The best point with a learned mix instead of its own, at the same FLOPs in all."""
    recipe = best.recipe(made.recipe)
    ratios = {name: recipe.modalities[name].ratio for name in recipe.active[1:]}
    if not all(isinstance(r, int | float) for r in ratios.values()):
        return None
    flops = made.pricing.of(recipe)
    names = [name for name in made.data.modalities if name != recipe.target]
    unit = max(flops[name] for name in names)
    price = {name: flops[name] / unit for name in names}
    spend = sum(r * price[name] for name, r in ratios.items() if isinstance(r, int | float))
    learned = {f"modalities.{name}.ratio": "adaptive" for name in names}
    return {
        **best.settings,
        **learned,
        "train.adaptive.mean": spend,
        "train.adaptive.price": price,
    }
