"""What the types of a recipe cannot say: ranges, names that must exist, settings that exclude
each other. Every problem becomes a sentence that names the field and what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from uml_core.errors import near
from uml_core.modalities import KINDS, Modality
from uml_core.specs import (
    ARMS,
    TUNABLE,
    CompareSpec,
    ModalitySpec,
    Recipe,
    pieces,
)

_LEAST = {
    "model.width": 1,
    "model.depth": 0,
    "model.heads": 1,
    "model.ff": 1,
    "model.max_positions": 1,
    "model.trunk_frozen": 0,
    "train.steps": 1,
    "train.batch_size": 1,
    "train.weight_decay": 0,
    "train.lr_warmup": 0,
    "train.warmup.steps": 0,
    "train.warmup.epochs": 0,
    "train.adaptive.rate": 0,
    "train.validate_every": 1,
    "train.gradients_every": 0,
    "train.patience": 1,
    "train.checkpoint_every": 1,
    "train.max_failures": 0,
    "sweep.trials": 1,
    "sweep.workers": 1,
    "sweep.confirm": 0,
    "sweep.keep": 1,
    "sweep.max_failures": 0,
    "world.train": 1,
    "world.test": 1,
    "evaluate.samples": 100,
}
_ABOVE_ZERO = (
    "model.norm_eps",
    "model.logit_scale_value",
    "train.lr",
    "train.clip",
    "train.adaptive.mean",
    "train.adaptive.most",
    "train.resize_seconds",
    "sweep.gpu_share",
    "probe.label_fraction",
)
# Beyond what any machine can do: a slip of the finger is told instead of tried.
_MOST = {
    "model.width": 65_536,
    "model.depth": 1_000,
    "model.heads": 65_536,
    "model.ff": 1_048_576,
    "model.max_positions": 10_000_000,
    "train.steps": 1_000_000_000,
    "train.batch_size": 1_000_000,
    "train.warmup.steps": 1_000_000_000,
    "world.train": 1_000_000,
    "world.test": 1_000_000,
}
_MOST_WORKERS = 10_000
_MOST_RATIO = 1_000  # batches per target batch
_MOST_VALUES = 1_000  # in a list of seeds, settings, pieces of a ratio
_MOST_NAME = 100  # characters; folders and files are called so
_SHARES = (
    "model.dropout",
    "train.label_smoothing",
    "sweep.gpu_share",
    "train.adaptive.floor",
    "probe.label_fraction",
    "allow_overlap",
    "quarantine_budget",
)
_NAME = re.compile(r"\w[\w .+-]*")  # of a recipe: it becomes a folder
_KEY = re.compile(r"[A-Za-z_][\w-]*")  # of a modality: it becomes a key of state dicts


def check(recipe: Recipe, names: Collection[str], problems: list[str]) -> None:
    """What types cannot say. `names`: all modalities, also those that could not be built."""
    wrong = {problem.partition(":")[0] for problem in problems}
    if "name" not in wrong and not _is_name(_NAME, recipe.name):
        problems.append(f"name: '{recipe.name[:_MOST_NAME]}' cannot be a folder's name")
    if "target" not in wrong and recipe.target not in names:
        problems.append(f"target: no modality '{recipe.target}'{near(recipe.target, names)}")
    if "data_root" not in wrong and recipe.data_root is None:
        problems.append("data_root: say where this recipe's data lies, e.g. data_root=data/mine")
    _check_numbers(recipe, problems)
    _check_model(recipe, names, problems)
    _check_train(recipe, names, problems)
    for name, spec in recipe.modalities.items():
        _check_modality(recipe, name, spec, problems)
    _check_compare(recipe.compare, problems)
    _check_evaluate(recipe, problems)
    _check_exchange(recipe, problems)


def _is_name(pattern: re.Pattern[str], name: str) -> bool:
    return len(name) <= _MOST_NAME and pattern.fullmatch(name) is not None


def _check_numbers(recipe: Recipe, problems: list[str]) -> None:
    for place, value in _numbers(recipe.to_dict(), ""):
        if not math.isfinite(value):
            problems.append(f"{place}: must be a finite number (got {value})")
        elif isinstance(value, int) and abs(value) >= 2**63:
            problems.append(f"{place}: a whole number of more than 63 bits")
    for place, least in _LEAST.items():
        if (number := _at(recipe, place)) is not None and number < least:
            problems.append(f"{place}: must be at least {least} (got {number})")
    for place, most in _MOST.items():
        if (number := _at(recipe, place)) is not None and number > most:
            problems.append(f"{place}: must be at most {most:,} (got {number})")
    for place in _ABOVE_ZERO:
        if (number := _at(recipe, place)) is not None and number <= 0:
            problems.append(f"{place}: must be above 0 (got {number})")
    for place in _SHARES:
        if (number := _at(recipe, place)) is not None and not 0 <= number <= 1:
            problems.append(f"{place}: must be between 0 and 1 (got {number})")
    if not recipe.seeds or len(set(recipe.seeds)) < len(recipe.seeds) or min(recipe.seeds) < 0:
        problems.append("seeds: give at least one, each once, none below 0")
    if max(len(recipe.seeds), len(recipe.probe.C)) > _MOST_VALUES:
        problems.append(f"seeds, probe.C: at most {_MOST_VALUES} values each")
    shots = recipe.shots if isinstance(recipe.shots, list) else [recipe.shots]
    if len(shots) > _MOST_VALUES:
        problems.append(f"shots: at most {_MOST_VALUES} values")
    if not shots or len(set(shots)) < len(shots) or any(k is not None and k < 1 for k in shots):
        problems.append("shots: whole numbers of at least 1, each once, or null for all samples")
    if isinstance(recipe.val_shots, int) and recipe.val_shots < 1:
        problems.append("val_shots: at least 1, matched, or null for all validation samples")
    if not recipe.probe.C or min(recipe.probe.C) <= 0:
        problems.append("probe.C: give at least one, all above 0")


def _at(recipe: Recipe, place: str) -> Any:
    value: Any = recipe
    for name in place.split("."):
        value = None if value is None else getattr(value, name)
    return value


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Every number in nested plain types, with its dotted place."""
    if isinstance(value, int | float):
        yield place, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(inner, f"{place}.{key}" if place else str(key))


def _check_model(recipe: Recipe, names: Collection[str], problems: list[str]) -> None:
    model = recipe.model
    transformer = model.trunk == "transformer"
    if transformer and model.heads > 0 and model.width > 0 and model.width % model.heads:
        problems.append(f"model.width: {model.width} is not divisible by {model.heads} heads")
    if transformer and model.depth == 0:
        problems.append(
            "model.depth: 0 leaves a trunk without blocks: give 1 or more, or model.trunk=none"
        )
    if model.dropout == 1:
        problems.append("model.dropout: must be below 1")
    for name, price in recipe.train.adaptive.price.items():
        if name not in names:
            problems.append(f"train.adaptive.price: no modality '{name}'{near(name, names)}")
        if price <= 0:
            problems.append(f"train.adaptive.price.{name}: must be above 0 (got {price})")
    if recipe.train.adaptive.floor == 1:
        problems.append("train.adaptive.floor: must be below 1, or there is nothing to learn")
    if not transformer and recipe.setting == "self_supervised":
        problems.append("model.trunk: the self-supervised setting needs the transformer trunk")
    if not transformer and (model.trunk_init is not None or model.trunk_frozen):
        problems.append("model.trunk: none leaves nothing to initialise or to freeze")
    if model.head_init == "random":
        return
    kind, _, source = model.head_init.partition(":")
    if kind != "class_means" or not source:
        problems.append(
            f"model.head_init: random or class_means:<modality>, not '{model.head_init}'"
        )
    elif source not in names:
        problems.append(f"model.head_init: no modality '{source}'{near(source, names)}")
    elif source in recipe.modalities and source not in recipe.active:
        problems.append(f"model.head_init: {source} is not in use, its ratio or weight is 0")
    if recipe.setting == "self_supervised":
        problems.append("model.head_init: the self-supervised setting has no classifier")


def _check_train(recipe: Recipe, names: Collection[str], problems: list[str]) -> None:
    train = recipe.train
    parts = ("trunk", "classifier", *(f"stems.{name}" for name in names))
    for part, factor in train.lr_factors.items():
        if not any(part == known or part.startswith(f"{known}.") for known in parts):
            problems.append(f"train.lr_factors: no part '{part}'{near(part, parts)}")
        if not 0 < factor < math.inf:
            problems.append(f"train.lr_factors.{part}: must be above 0 (got {factor})")
    _check_workers(recipe, problems)
    if train.warmup is None:
        return
    if train.warmup.modality not in names:
        hint = near(train.warmup.modality, names)
        problems.append(f"train.warmup.modality: no modality '{train.warmup.modality}'{hint}")
    if (train.warmup.steps is None) == (train.warmup.epochs is None):
        problems.append("train.warmup: give either steps or epochs")
    spec = recipe.modalities.get(train.warmup.modality)
    if spec is not None and spec.weight == 0:
        problems.append(
            f"train.warmup.modality: the weight of {train.warmup.modality} is 0, its steps would "
            "train nothing"
        )
    problems.extend(warmup_problems(recipe))


def _check_workers(recipe: Recipe, problems: list[str]) -> None:
    train = recipe.train
    workers = train.workers if isinstance(train.workers, list) else [train.workers]
    if len(workers) not in (1, 2) or workers != sorted(workers):
        problems.append(f"train.workers: a number, or [least, most] (got {train.workers})")
    elif workers[0] < 1 or workers[-1] > _MOST_WORKERS:
        problems.append(
            f"train.workers: must be at least 1 and at most {_MOST_WORKERS:,} (got {train.workers})"
        )
    elif train.batch_size < workers[-1]:
        problems.append(
            f"train.batch_size: {train.batch_size} is less than one sample for each of "
            f"{workers[-1]} workers"
        )
    for name, amount in train.worker_resources.items():
        if amount <= 0:
            problems.append(f"train.worker_resources.{name}: must be above 0 (got {amount})")
    if 0 < train.worker_resources.get("GPU", 1) < 1 and workers[-1] > 1:
        problems.append(
            "train.worker_resources.GPU: workers of one run cannot share a GPU (NCCL refuses it); "
            "sweep.gpu_share lets trials share one"
        )
    if train.parallel == "fsdp":
        problems.extend(_sharding_problems(recipe))


def _sharding_problems(recipe: Recipe) -> list[str]:
    """What does not go together with weights that no worker holds whole."""
    said = []
    if recipe.train.gradients_every:
        said.append(
            "train.gradients_every: must be 0 with train.parallel=fsdp; no worker holds the "
            "gradients of the shared weights as a whole"
        )
    if recipe.model.logit_scale == "learned":
        said.append("model.logit_scale: must be fixed with train.parallel=fsdp")
    if recipe.adaptive:
        said.append("modalities: adaptive ratios need whole gradients, so train.parallel=ddp")
    return said


def warmup_problems(recipe: Recipe) -> list[str]:
    """What is wrong with a warm-up whose steps are known."""
    warmup, steps = recipe.train.warmup, recipe.train.steps
    if not warmup or warmup.modality != recipe.target or (warmup.steps or 0) < steps:
        return []
    return [
        f"train.warmup: {warmup.steps} of {steps} steps on {recipe.target} alone leave none for "
        "the other modalities"
    ]


def _check_modality(recipe: Recipe, name: str, spec: ModalitySpec, problems: list[str]) -> None:
    where = f"modalities.{name}"
    if not _is_name(_KEY, name) or hasattr(nn.ModuleDict(), name):
        problems.append(
            f"{where[:_MOST_NAME]}: a modality's name is made of letters, digits, _ and -, begins "
            "with a letter and is no word of PyTorch's modules such as 'values' or 'type'"
        )
    steps = pieces(spec.ratio)
    starts = [start for start, _ in steps]
    if any(r < 0 for _, r in steps):
        problems.append(f"{where}.ratio: batches per target batch cannot be negative")
    if any(_MOST_RATIO < r < math.inf for _, r in steps) or len(steps) > _MOST_VALUES:
        problems.append(
            f"{where}.ratio: at most {_MOST_RATIO} batches per target batch, at most "
            f"{_MOST_VALUES} changes"
        )
    if starts[:1] != [0] or starts != sorted(set(starts)):
        problems.append(f"{where}.ratio: a changing ratio is [[0, r], [step, r], ...] in order")
    if name == recipe.target and (steps != [(0, 1.0)] or spec.ratio == "adaptive"):
        problems.append(f"{where}.ratio: the target's ratio is 1 by definition")
    if spec.weight < 0:
        problems.append(f"{where}.weight: cannot be negative")
    counts = spec.shots if isinstance(spec.shots, list) else [spec.shots]
    if spec.weight == 0 and spec.ratio == "adaptive":
        problems.append(f"{where}.weight: 0 leaves an adaptive ratio nothing to learn from")
    if spec.shots == "average":
        if spec.kind != "vector":
            problems.append(f"{where}.shots: only samples of kind vector have an average")
    elif any(isinstance(k, int) and k < 1 for k in counts):
        problems.append(f"{where}.shots: must be at least 1, or null for all (got {spec.shots})")
    if name == recipe.target and spec.shots is not None:
        problems.append(f"{where}.shots: the target's shots stand at the top of the recipe")
    found = KINDS[spec.kind].check(
        spec.options, setting=recipe.setting, width=recipe.model.width, heads=recipe.model.heads
    )
    problems.extend(f"{where}.{problem}" for problem in found)
    if not found and name in recipe.active:
        problems.extend(_token_problems(recipe, spec.build(), where))


def _token_problems(recipe: Recipe, modality: Modality, where: str) -> list[str]:
    """What the trunk cannot do with the tokens of a modality, said before a run meets it."""
    model = recipe.model
    if modality.class_token and model.trunk == "none":
        return [
            f"{where}.class_token: without a trunk this token sees nothing of a sample, and all "
            "samples get the same scores: set class_token: false, or model.trunk: transformer"
        ]
    most = modality.most_positions(supervised=recipe.setting == "supervised")
    table = model.trunk == "transformer" and model.positions != "off"
    if not table or most <= model.max_positions:
        return []
    return [
        f"{where}: a sample may have {most} positions, but the position table ends at "
        f"{model.max_positions}: raise model.max_positions, or lower {modality.shorten}"
    ]


def _check_compare(spec: CompareSpec, problems: list[str]) -> None:
    for group in ("grid", "auxiliary_grid", "unimodal_grid"):
        for key, values in getattr(spec, group).items():
            if key not in TUNABLE:
                hint = near(key, TUNABLE)
                problems.append(f"compare.{group}.{key}: not one of {', '.join(TUNABLE)}{hint}")
            if not values or min(values) < 0 or (key == "lr" and min(values) == 0):
                legal = "above 0" if key == "lr" else "at least 0"
                problems.append(f"compare.{group}.{key}: give one value or more, all {legal}")
    with_aux, without = _num_points(spec, True), _num_points(spec, False)
    if max(with_aux, without) > _MOST_VALUES:
        problems.append(
            f"compare: a grid of {max(with_aux, without):,} settings; at most {_MOST_VALUES:,}"
        )
    if with_aux != without:
        problems.append(
            f"compare: arms with auxiliary data would try {with_aux} settings, arms without "
            f"{without}; a fair comparison gives every arm a grid of the same size"
        )
    for arm in spec.arms:
        if arm not in ARMS:
            problems.append(f"compare.arms: unknown arm '{arm}'{near(arm, ARMS)}")


def _check_evaluate(recipe: Recipe, problems: list[str]) -> None:
    for field in ("shots", "split_seeds"):
        values, least = getattr(recipe.evaluate, field), int(field == "shots")
        if not values or len(set(values)) < len(values) or min(values) < least:
            problems.append(f"evaluate.{field}: give at least one, each once, none below {least}")
    for name in recipe.tests:
        if not _NAME.fullmatch(name):
            problems.append(f"tests.{name}: a name is made of letters, digits and spaces")


def _check_exchange(recipe: Recipe, problems: list[str]) -> None:
    """What measuring an exchange rate over a grid of shots needs."""
    listed = [n for n in recipe.auxiliaries if isinstance(recipe.modalities[n].shots, list)]
    if not listed:
        return
    where = f"modalities.{listed[0]}.shots"
    counts = recipe.modalities[listed[0]].shots
    assert isinstance(counts, list)
    if not counts or len(set(counts)) < len(counts):
        problems.append(f"{where}: give at least one number, each once")
    if listed[0] not in recipe.active:
        problems.append(f"{where}: a list measures its exchange rate, but its ratio is 0")
    others = [name for name in recipe.active[1:] if name != listed[0]]
    if others:
        problems.append(
            f"{where}: a list measures the exchange rate of one modality; set the ratio of "
            f"{', '.join(others)} to 0"
        )
    if not isinstance(recipe.shots, list) or len(recipe.shots) < 2:
        problems.append(
            "shots: an exchange rate needs at least two numbers of labelled target samples per "
            "class, e.g. shots=[2,4,8]"
        )
    if len(recipe.seeds) < 2:
        problems.append("seeds: an exchange rate has an interval only over at least two seeds")


def _num_points(spec: CompareSpec, auxiliary: bool) -> int:
    """len(grid_points(...)) without making them."""
    axes = {**spec.grid, **(spec.auxiliary_grid if auxiliary else spec.unimodal_grid)}
    return math.prod(len(values) for values in axes.values())
