"""The arms of the fair comparison: what each one trains on, and the fit that does it.

unimodal         the target alone, with the same target path (stem, trunk, head) as uml
unimodal_direct  the target alone without a projection: frozen features straight into the head
uml              the target and the auxiliary modalities
uml_init         uml whose head starts at the class means of an auxiliary modality (paper 2.3)
uml_permuted     uml whose auxiliary data has lost its meaning (uml_core/controls.py)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from uml_core.controls import PermutedLabels, PermutedValues
from uml_core.errors import UserError
from uml_core.language_trunk import load_trunk
from uml_core.learner import UnpairedLearner
from uml_core.loop import Fit, View
from uml_core.modalities import Modality
from uml_core.modalities.base import Batch
from uml_core.parallel import OneProcess, World
from uml_core.schedule import Schedule
from uml_core.specs import ARMS, ModelSpec, Recipe

UNIMODAL = ("unimodal", "unimodal_direct")
HeadSource = Callable[[str], Iterable[Batch]]  # modality -> its training batches


def applicable(recipe: Recipe) -> list[str]:
    """The arms of this recipe's comparison. Raises UserError when one asked for cannot run."""
    if len(recipe.active) < 2:
        raise UserError(
            "compare needs at least one auxiliary modality with ratio and weight above 0; this "
            f"recipe trains {recipe.target} alone"
        )
    if recipe.adaptive:
        raise UserError(
            f"compare gives all arms the same batches, so {', '.join(recipe.adaptive)} cannot have "
            "an adaptive ratio here: give a number, or compare it by `uml sweep`"
        )
    fits = {"unimodal", "uml", "uml_permuted"}
    if _has_projection(recipe):
        fits.add("unimodal_direct")
    if recipe.setting == "supervised" and head_source(recipe) is not None:
        fits.add("uml_init")
    wanted = recipe.compare.arms or [arm for arm in ARMS if arm in fits]
    missing = [arm for arm in wanted if arm not in fits]
    if missing:
        raise UserError(
            f"compare.arms: {', '.join(missing)} does not apply here (unimodal_direct needs a "
            "vector target with stem: linear, uml_init a vector auxiliary or model.head_init)"
        )
    needed = [arm for arm in ("unimodal", "uml", "uml_permuted") if arm not in wanted]
    if needed:
        raise UserError(f"compare.arms: a comparison always holds {', '.join(needed)}")
    return wanted


def head_source(recipe: Recipe) -> str | None:
    """The modality whose class means start the head of `uml_init`, if there is a sensible one."""
    _, _, named = recipe.model.head_init.partition(":")
    if named:
        return named
    frozen = [n for n in recipe.active[1:] if recipe.modalities[n].kind == "vector"]
    return frozen[0] if frozen else None


def _has_projection(recipe: Recipe) -> bool:
    target = recipe.modalities[recipe.target]
    if recipe.setting != "supervised" or target.kind != "vector":
        return False
    return target.options.stem == "linear"


def build_fit(
    recipe: Recipe,
    arm: str,
    seed: int,
    point: Mapping[str, float],
    modalities: Mapping[str, Modality],
    *,
    num_classes: int | None,
    head_batches: HeadSource | None = None,
    sources: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
    world: World | None = None,
) -> Fit:
    """The fit of one arm, seed and hyper-parameter setting.

    point         lr, weight_decay, weight (a factor on every auxiliary loss); others as in the
                  recipe
    modalities    name -> Modality with its input sizes known
    num_classes   None in the self-supervised setting
    head_batches  needed by arms whose head starts at class means
    sources       modality -> the stream that it comes from, default: the one of its name
    """
    world = world or OneProcess()
    names = [recipe.target] if arm in UNIMODAL else recipe.active
    spec = recipe.model
    used = {name: modalities[name] for name in names}
    if arm == "unimodal_direct":
        direct, spec = without_projection(used[recipe.target], spec)
        used = {recipe.target: direct}
    tuned: dict[str, Any] = {k: v for k, v in point.items() if k != "weight"}
    train = replace(recipe.train, **tuned)
    learner = UnpairedLearner(
        used,
        spec,
        num_classes=num_classes,
        seed=seed,
        label_smoothing=train.label_smoothing,
    )
    if spec.trunk_init is not None and learner.trunk is not None:
        load_trunk(learner.trunk, spec)
    source = head_source(recipe) if arm == "uml_init" else None
    if source is not None:
        assert head_batches is not None
        learner.init_head_from(source, head_batches(source))
    factor = point.get("weight", 1.0)
    weights = {n: recipe.modalities[n].weight * factor for n in names}
    weights[recipe.target] = recipe.modalities[recipe.target].weight
    return Fit(
        name=f"{arm}/seed-{seed}",
        learner=learner.to(device),
        spec=train,
        modalities=names,
        weights=weights,
        schedule=arm_schedule(recipe, names),
        seed=seed,
        views=_views(recipe, names, num_classes, seed, world) if arm == "uml_permuted" else {},
        world=world,
        sources=sources or {},
    )


def without_projection(target: Modality, spec: ModelSpec) -> tuple[Modality, ModelSpec]:
    """The target and the model of `unimodal_direct`: its features feed the head as they are."""
    options = dataclasses.replace(target.options, stem="identity")
    return type(target)(options), replace(spec, width=options.dim, trunk="none", heads=1)


def arm_schedule(recipe: Recipe, names: Iterable[str]) -> Schedule:
    """The recipe's schedule as an arm that takes only `names` lives it."""
    full = recipe.schedule()
    kept = {n: full.ratios[n] for n in names if n != recipe.target}
    return replace(full, ratios=kept)


def _views(
    recipe: Recipe, names: list[str], num_classes: int | None, seed: int, world: World
) -> dict[str, View]:
    if num_classes is None:
        view: View = PermutedValues(seed, world)
    else:
        view = PermutedLabels(num_classes, seed)
    return {name: view for name in names if name != recipe.target}


def control_description(recipe: Recipe) -> str:
    """What the permuted control of this recipe's setting does, for compare.json."""
    control = PermutedLabels if recipe.setting == "supervised" else PermutedValues
    return control.description
