"""The recipe: the only configuration. YAML -> merge overrides -> check everything -> dataclasses.

`load` collects every problem into one UserError; unknown names come with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os.path
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn

from uml_core.errors import UserError, near
from uml_core.modalities import KINDS, Modality
from uml_core.schedule import Ratio, Schedule, Warmup
from uml_core.typed import build, read_yaml


@dataclass(frozen=True)
class ModalitySpec:
    """One modality: where its data lies and how much of it a step takes."""

    kind: str
    train: str | list[str]
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    ratio: float | list[tuple[int, float]] = 1.0  # batches per target batch; [[from step, r], ...]
    weight: float = 1.0  # factor of its loss (the paper's lambda, alpha)
    shots: int | None = None  # auxiliary samples per class; null = all
    options: Any = None  # what only this kind has: size, stem, ... (see uml_core/modalities)

    def build(self) -> Modality:
        """The modality object with these options."""
        return KINDS[self.kind](self.options)


@dataclass(frozen=True)
class ModelSpec:
    """The shared trunk h and the shared classifier c."""

    width: int = 64
    depth: int = 2
    heads: int = 4
    ff: int | None = None  # feed-forward width; null = 4 x width
    dropout: float = 0.0
    trunk: Literal["transformer", "none"] = "transformer"  # none: stems feed the head (paper 3.3)
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    input_projection: bool = False  # bias-free linear before the blocks, as the paper's code has
    positions: Literal["off", "learned", "sinusoidal"] = "off"
    max_positions: int = 512
    head_init: str = "random"  # random | class_means:<modality>
    logit_scale: Literal["fixed", "learned"] = "fixed"  # one factor per modality, starting at 1


@dataclass(frozen=True)
class WarmupSpec:
    """Steps on one modality alone at the start: exactly `steps` of them (uml_core/schedule.py)."""

    modality: str
    steps: int


@dataclass(frozen=True)
class TrainSpec:
    """How a run trains. `steps` counts target batches."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    steps: int = 300
    batch_size: int = 64  # global batch of every modality
    lr: float = 1e-3
    weight_decay: float = 0.01
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    lr_warmup: int = 10  # steps of linear warm-up
    clip: float | None = None  # gradient norm
    label_smoothing: float = 0.0
    mode: Literal["joint", "alternate"] = "joint"
    warmup: WarmupSpec | None = None
    workers: int = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    validate_every: int = 25
    patience: int | None = None  # validations without gain before a fit stops; null = never
    checkpoint_every: int = 100
    on_nan: Literal["stop", "skip"] = "stop"
    max_failures: int = 3  # restarts of the worker group before the run is given up


@dataclass(frozen=True)
class ProbeSpec:
    """Linear probe on a frozen representation (self-supervised setting)."""

    C: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0, 10.0])
    label_fraction: float | None = None  # share of labelled target samples; null = `shots`


@dataclass(frozen=True)
class CompareSpec:
    """The fair comparison: one grid of hyper-parameters per arm, all of the same size."""

    grid: dict[str, list[float]] = field(default_factory=dict)  # every arm: lr, weight_decay
    auxiliary_grid: dict[str, list[float]] = field(default_factory=dict)  # arms with other data
    unimodal_grid: dict[str, list[float]] = field(default_factory=dict)  # arms without
    arms: list[str] = field(default_factory=list)  # empty = all that apply
    parallel: Literal["fits", "data"] = "fits"  # workers share the fits, or the data of each fit


@dataclass(frozen=True)
class WorldSpec:
    """Embedded data, generated on first use (uml_core/worlds.py)."""

    name: str
    seed: int = 0
    train: int | None = None  # samples per class and modality; null = the world's own default
    test: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole experiment."""

    name: str
    target: str
    modalities: dict[str, ModalitySpec]
    setting: Literal["supervised", "self_supervised"] = "supervised"
    shots: int | list[int] | None = None  # labelled target samples per class; null = all
    data_root: str | None = None  # folder or URI that relative paths of shards start from
    world: WorldSpec | None = None
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    probe: ProbeSpec = field(default_factory=ProbeSpec)
    compare: CompareSpec = field(default_factory=CompareSpec)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    allow_overlap: float = 0.01  # share of target test samples that may also occur in train
    quarantine_budget: float = 0.01  # share of rows that may be bad before a run is stopped
    trace: bool = False  # write the keys of every batch to trace/rank-<r>.jsonl

    @property
    def auxiliaries(self) -> list[str]:
        """Modalities other than the target, in the recipe's order."""
        return [name for name in self.modalities if name != self.target]

    @property
    def active(self) -> list[str]:
        """The target and the auxiliaries that the schedule takes at all."""
        warmup = self.train.warmup and self.train.warmup.modality
        used = [
            name
            for name in self.auxiliaries
            if name == warmup or any(r > 0 for _, r in _pieces(self.modalities[name].ratio))
        ]
        return [self.target, *used]

    def schedule(self) -> Schedule:
        """The step schedule of this recipe."""
        warmup = self.train.warmup
        return Schedule(
            target=self.target,
            ratios={n: as_ratio(self.modalities[n].ratio) for n in self.auxiliaries},
            steps=self.train.steps,
            warmup=Warmup(warmup.modality, warmup.steps) if warmup else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, the layout of the YAML file (a kind's options beside its paths)."""
        out = dataclasses.asdict(self)
        for spec in out["modalities"].values():
            spec.update(spec.pop("options"))
        return _plain(out)

    def to_yaml(self) -> str:
        """The resolved recipe as a YAML file that `load` takes again."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def as_ratio(value: float | Sequence[Sequence[float]]) -> Ratio:
    """A ratio as the recipe writes it -> as `Schedule` takes it."""
    if isinstance(value, int | float):
        return float(value)
    return tuple((int(step), float(ratio)) for step, ratio in value)


def _pieces(ratio: float | Sequence[Sequence[float]]) -> list[tuple[int, float]]:
    """A ratio as [(from step, value), ...], constant or not."""
    ratio = as_ratio(ratio)
    return list(ratio) if isinstance(ratio, tuple) else [(0, ratio)]


def grid_points(spec: CompareSpec, auxiliary: bool) -> list[dict[str, float]]:
    """The hyper-parameter settings one arm tries; never empty."""
    axes = {**spec.grid, **(spec.auxiliary_grid if auxiliary else spec.unimodal_grid)}
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


# ---------------------------------------------------------------------------------- loading


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and merges `key=value` overrides (dotted keys, YAML values).

    Relative paths of the file resolve against its folder, those of overrides against the working
    directory. Raises UserError with every problem.
    """
    path = Path(path)
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no recipe: expected a mapping, got {type(raw).__name__}")
    if "data_root" in raw:
        raw["data_root"] = _absolute(raw["data_root"], path.parent)
    problems: list[str] = []
    for override in overrides:
        _merge(raw, override, problems)
    if "data_root" not in raw:
        world = raw.get("world")
        name = world.get("name") if isinstance(world, dict) else None
        raw["data_root"] = (
            _absolute(f"data/{name}", Path.cwd()) if name else _absolute(".", path.parent)
        )
    return from_dict(raw, problems)


def from_dict(raw: Mapping[str, Any], problems: list[str] | None = None) -> Recipe:
    """A recipe from plain types; raises UserError with every problem found.

    A field of a wrong type is reported and counts as left out, so that one call finds all.
    """
    problems = list(problems or [])
    modalities = raw.get("modalities")
    if not isinstance(modalities, dict) or not modalities:
        problems.append("modalities: name at least one, e.g. image: {kind: image, train: ...}")
        modalities = {}
    specs = {str(name): _modality(str(name), spec, problems) for name, spec in modalities.items()}
    known = {name: spec for name, spec in specs.items() if spec is not None}
    blank = {"name": "", "target": "", "modalities": {}}
    recipe = build(Recipe, {**raw, "modalities": {}}, "", problems, blank)
    recipe = dataclasses.replace(recipe, modalities=known)
    _check(recipe, specs, problems)
    if problems:
        raise UserError(problems)
    return recipe


def _modality(name: str, spec: Any, problems: list[str]) -> ModalitySpec | None:
    where = f"modalities.{name}"
    if not isinstance(spec, dict):
        problems.append(f"{where}: expected a mapping such as {{kind: image, train: ...}}")
        return None
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = near(str(kind), KINDS)
        problems.append(f"{where}.kind: '{kind}' is not one of {', '.join(KINDS)}{hint}")
        return None
    own = {f.name for f in dataclasses.fields(KINDS[kind].Options)}
    common = {f.name for f in dataclasses.fields(ModalitySpec)} - {"options"}
    for key in spec:
        if key not in own | common:
            hint = near(str(key), own | common)
            problems.append(f"{where}.{key}: unknown field of kind {kind}{hint}")
    options = {k: v for k, v in spec.items() if k in own}
    body = {k: v for k, v in spec.items() if k in common}
    built: ModalitySpec = build(ModalitySpec, body, where, problems, {"train": ""})
    options = build(KINDS[kind].Options, options, where, problems)
    return dataclasses.replace(built, options=options)


def _merge(raw: dict[str, Any], override: str, problems: list[str]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        problems.append(f"'{override}': overrides are written key=value, e.g. train.lr=1e-3")
        return
    try:
        value = read_yaml(text)
    except ValueError:
        problems.append(f"'{override}': the value is not valid YAML")
        return
    if key == "data_root":
        value = _absolute(value, Path.cwd())
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        group = {} if node.get(parent) is None else node[parent]
        if not isinstance(group, dict):
            problems.append(f"'{override}': {parent} is not a group of fields")
            return
        node[parent] = dict(group)  # a YAML alias may share it with another group
        node = node[parent]
    node[last] = value


def _absolute(path: Any, base: Path) -> Any:
    if not isinstance(path, str) or "://" in path:  # null and URIs stay; types are checked later
        return path
    return os.path.abspath(base / os.path.expanduser(path))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


# --------------------------------------------------------------------------------- checking


_LEAST = {
    "model.width": 1,
    "model.depth": 0,
    "model.heads": 1,
    "model.ff": 1,
    "model.max_positions": 1,
    "train.steps": 1,
    "train.batch_size": 1,
    "train.weight_decay": 0,
    "train.lr_warmup": 0,
    "train.warmup.steps": 1,
    "train.workers": 1,
    "train.validate_every": 1,
    "train.patience": 1,
    "train.checkpoint_every": 1,
    "train.max_failures": 0,
    "world.train": 1,
    "world.test": 1,
}
_ABOVE_ZERO = ("train.lr", "train.clip", "probe.label_fraction")
_SHARES = (
    "model.dropout",
    "train.label_smoothing",
    "probe.label_fraction",
    "allow_overlap",
    "quarantine_budget",
)
_NAME = re.compile(r"\w[\w .+-]*")  # of a recipe: it becomes a folder
_KEY = re.compile(r"[A-Za-z_][\w-]*")  # of a modality: it becomes a key of state dicts


def _check(recipe: Recipe, names: Collection[str], problems: list[str]) -> None:
    """What types cannot say. `names`: all modalities, also those that could not be built."""
    wrong = {problem.partition(":")[0] for problem in problems}
    if "name" not in wrong and not _NAME.fullmatch(recipe.name):
        problems.append(f"name: '{recipe.name}' cannot be a folder's name")
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


def _check_numbers(recipe: Recipe, problems: list[str]) -> None:
    for place, value in _floats(recipe.to_dict(), ""):
        if not math.isfinite(value):
            problems.append(f"{place}: must be a finite number (got {value})")
    for place, least in _LEAST.items():
        if (number := _at(recipe, place)) is not None and number < least:
            problems.append(f"{place}: must be at least {least} (got {number})")
    for place in _ABOVE_ZERO:
        if (number := _at(recipe, place)) is not None and number <= 0:
            problems.append(f"{place}: must be above 0 (got {number})")
    for place in _SHARES:
        if (number := _at(recipe, place)) is not None and not 0 <= number <= 1:
            problems.append(f"{place}: must be between 0 and 1 (got {number})")
    if not recipe.seeds or len(set(recipe.seeds)) < len(recipe.seeds) or min(recipe.seeds) < 0:
        problems.append("seeds: give at least one, each once, none below 0")
    shots = recipe.shots if isinstance(recipe.shots, list) else [recipe.shots]
    if not shots or len(set(shots)) < len(shots) or any(k is not None and k < 1 for k in shots):
        problems.append("shots: whole numbers of at least 1, each once, or null for all samples")
    if not recipe.probe.C or min(recipe.probe.C) <= 0:
        problems.append("probe.C: give at least one, all above 0")


def _at(recipe: Recipe, place: str) -> Any:
    value: Any = recipe
    for name in place.split("."):
        value = None if value is None else getattr(value, name)
    return value


def _floats(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Every float in nested plain types, with its dotted place."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _floats(inner, f"{place}.{key}" if place else str(key))


def _check_model(recipe: Recipe, names: Collection[str], problems: list[str]) -> None:
    model = recipe.model
    if model.heads > 0 and model.width > 0 and model.width % model.heads:
        problems.append(f"model.width: {model.width} is not divisible by {model.heads} heads")
    if model.dropout == 1:
        problems.append("model.dropout: must be below 1")
    if model.trunk == "none" and recipe.setting == "self_supervised":
        problems.append("model.trunk: the self-supervised setting needs the transformer trunk")
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
        problems.append(f"model.head_init: {source} is not in use, its ratio is 0")
    if recipe.setting == "self_supervised":
        problems.append("model.head_init: the self-supervised setting has no classifier")


def _check_train(recipe: Recipe, names: Collection[str], problems: list[str]) -> None:
    train = recipe.train
    if train.batch_size < train.workers:
        problems.append(
            f"train.batch_size: {train.batch_size} is less than one sample for each of "
            f"{train.workers} workers"
        )
    if train.warmup is None:
        return
    if train.warmup.modality not in names:
        hint = near(train.warmup.modality, names)
        problems.append(f"train.warmup.modality: no modality '{train.warmup.modality}'{hint}")
    if train.warmup.modality == recipe.target and train.warmup.steps >= train.steps:
        problems.append(
            f"train.warmup.steps: {train.warmup.steps} of {train.steps} steps leave none for the "
            "other modalities"
        )


def _check_modality(recipe: Recipe, name: str, spec: ModalitySpec, problems: list[str]) -> None:
    where = f"modalities.{name}"
    if not _KEY.fullmatch(name) or hasattr(nn.ModuleDict(), name):
        problems.append(
            f"{where}: a modality's name is made of letters, digits, _ and -, begins with a letter "
            "and is no word of PyTorch's modules such as 'values' or 'type'"
        )
    pieces = _pieces(spec.ratio)
    starts = [start for start, _ in pieces]
    if any(r < 0 for _, r in pieces):
        problems.append(f"{where}.ratio: batches per target batch cannot be negative")
    if starts[:1] != [0] or starts != sorted(set(starts)):
        problems.append(f"{where}.ratio: a changing ratio is [[0, r], [step, r], ...] in order")
    if name == recipe.target and pieces != [(0, 1.0)]:
        problems.append(f"{where}.ratio: the target's ratio is 1 by definition")
    if spec.weight < 0:
        problems.append(f"{where}.weight: cannot be negative")
    if spec.shots is not None and spec.shots < 1:
        problems.append(f"{where}.shots: must be at least 1, or null for all (got {spec.shots})")
    if name == recipe.target and spec.shots is not None:
        problems.append(f"{where}.shots: the target's shots stand at the top of the recipe")
    found = KINDS[spec.kind].check(
        spec.options, setting=recipe.setting, width=recipe.model.width, heads=recipe.model.heads
    )
    problems.extend(f"{where}.{problem}" for problem in found)


TUNABLE = ("lr", "weight_decay", "weight")
ARMS = ("unimodal", "unimodal_direct", "uml", "uml_init", "uml_permuted")


def _check_compare(spec: CompareSpec, problems: list[str]) -> None:
    for group in ("grid", "auxiliary_grid", "unimodal_grid"):
        for key, values in getattr(spec, group).items():
            if key not in TUNABLE:
                hint = near(key, TUNABLE)
                problems.append(f"compare.{group}.{key}: not one of {', '.join(TUNABLE)}{hint}")
            if not values or min(values) < 0 or (key == "lr" and min(values) == 0):
                legal = "above 0" if key == "lr" else "at least 0"
                problems.append(f"compare.{group}.{key}: give one value or more, all {legal}")
    with_aux, without = len(grid_points(spec, True)), len(grid_points(spec, False))
    if with_aux != without:
        problems.append(
            f"compare: arms with auxiliary data would try {with_aux} settings, arms without "
            f"{without}; a fair comparison gives every arm a grid of the same size"
        )
    for arm in spec.arms:
        if arm not in ARMS:
            problems.append(f"compare.arms: unknown arm '{arm}'{near(arm, ARMS)}")
