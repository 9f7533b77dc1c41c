"""The recipe: the only configuration. YAML -> merge overrides -> check everything -> dataclasses.

`load` collects every problem into one UserError; unknown names come with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from uml_core.errors import UserError, near
from uml_core.modalities import KINDS, Modality
from uml_core.schedule import Ratio, Schedule, Warmup


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
    """Steps on one modality alone at the start."""

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
    data_root: str = "."
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
        """The target and the auxiliaries whose ratio is not zero."""
        used = [n for n in self.auxiliaries if self.modalities[n].ratio != 0]
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
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no recipe: expected a mapping, got {type(raw).__name__}")
    if "data_root" in raw:
        raw["data_root"] = _absolute(raw["data_root"], path.parent)
    elif "world" in raw and isinstance(raw["world"], dict):
        raw["data_root"] = _absolute(f"data/{raw['world'].get('name')}", Path.cwd())
    else:
        raw["data_root"] = str(path.parent.resolve())
    problems: list[str] = []
    for override in overrides:
        _merge(raw, override, problems)
    return from_dict(raw, problems)


def from_dict(raw: Mapping[str, Any], problems: list[str] | None = None) -> Recipe:
    """A recipe from plain types; raises UserError with every problem found."""
    problems = list(problems or [])
    raw = dict(raw)
    modalities = raw.get("modalities")
    if not isinstance(modalities, dict) or not modalities:
        problems.append("modalities: name at least one, e.g. image: {kind: image, train: ...}")
        modalities = {}
    specs = {}
    for name, spec in modalities.items():
        if (built := _modality(str(name), spec, problems)) is not None:
            specs[str(name)] = built
    complete = len(specs) == len(modalities)
    body = {k: v for k, v in raw.items() if k != "modalities"}
    body["modalities"] = {}
    recipe = _build(Recipe, body, "", problems)
    if recipe is not None:
        recipe = dataclasses.replace(recipe, modalities=specs)
        _check(recipe, complete, problems)
    if problems:
        raise UserError(problems)
    assert recipe is not None
    return recipe


def _modality(name: str, spec: Any, problems: list[str]) -> ModalitySpec | None:
    where = f"modalities.{name}"
    if not isinstance(spec, dict):
        problems.append(f"{where}: expected a mapping such as {{kind: image, train: ...}}")
        return None
    kind = spec.get("kind")
    if kind not in KINDS:
        hint = near(str(kind), KINDS)
        problems.append(f"{where}.kind: '{kind}' is not one of {', '.join(KINDS)}{hint}")
        return None
    own = {f.name for f in dataclasses.fields(KINDS[kind].Options)}
    common = {f.name for f in dataclasses.fields(ModalitySpec)} - {"options"}
    before = len(problems)
    for key in spec:
        if key not in own | common:
            problems.append(f"{where}.{key}: unknown field{near(key, own | common)}")
    options = _build(
        KINDS[kind].Options, {k: v for k, v in spec.items() if k in own}, where, problems
    )
    built = _build(ModalitySpec, {k: v for k, v in spec.items() if k in common}, where, problems)
    if len(problems) > before or built is None:
        return None
    return dataclasses.replace(built, options=options)


def _build(cls: type, body: dict[str, Any], where: str, problems: list[str]) -> Any:
    """Validates types by pydantic after naming unknown fields at every level."""
    prefix = f"{where}." if where else ""
    before = len(problems)
    _unknown(cls, body, prefix, problems)
    try:
        built = TypeAdapter(cls).validate_python(body)
    except ValidationError as error:
        for item in error.errors():
            place = prefix + ".".join(str(p) for p in _field_path(item["loc"]))
            got = "" if item["type"] == "missing" else f" (got {item['input']!r})"
            line = f"{place}: {item['msg'][0].lower()}{item['msg'][1:]}{got}"
            if line not in problems:
                problems.append(line)
        return None
    return built if len(problems) == before else None


def _field_path(loc: tuple[Any, ...]) -> list[Any]:
    # pydantic appends the branch of a union ("int", "list[...]"); a reader wants the field only.
    return [p for p in loc if isinstance(p, int) or (p.isidentifier() and p not in _TYPES)]


_TYPES = {"int", "float", "str", "bool", "list", "dict", "none"}


def _unknown(cls: type, body: Any, prefix: str, problems: list[str]) -> None:
    if not isinstance(body, dict):
        return
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in body.items():
        if key not in fields:
            problems.append(f"{prefix}{key}: unknown field{near(str(key), fields)}")
        nested = _NESTED.get(key) if cls is Recipe else None
        nested = WarmupSpec if cls is TrainSpec and key == "warmup" else nested
        if nested is not None:
            _unknown(nested, value, f"{prefix}{key}.", problems)


_NESTED: dict[str, type] = {
    "model": ModelSpec,
    "train": TrainSpec,
    "probe": ProbeSpec,
    "compare": CompareSpec,
    "world": WorldSpec,
}


def _merge(raw: dict[str, Any], override: str, problems: list[str]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        problems.append(f"'{override}': overrides are written key=value, e.g. train.lr=1e-3")
        return
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append(f"'{override}': the value is not valid YAML")
        return
    if key == "data_root":
        value = _absolute(value, Path.cwd())
    *parents, last = key.split(".")
    node: Any = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            problems.append(f"'{override}': {parent} is not a group of fields")
            return
    node[last] = value


def _absolute(path: Any, base: Path) -> Any:
    if not isinstance(path, str) or "://" in path:
        return path
    return str((base / Path(path).expanduser()).resolve())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


# --------------------------------------------------------------------------------- checking


def _check(recipe: Recipe, complete: bool, problems: list[str]) -> None:
    """What types cannot say. `complete`: whether every modality could be built."""
    names = recipe.modalities
    if complete and recipe.target not in names:
        problems.append(f"target: no modality '{recipe.target}'{near(recipe.target, names)}")
    _check_model(recipe, problems)
    _check_train(recipe, problems)
    for name, spec in names.items():
        _check_modality(recipe, name, spec, problems)
    if not recipe.seeds or len(set(recipe.seeds)) < len(recipe.seeds):
        problems.append("seeds: give at least one, each once")
    shots = recipe.shots if isinstance(recipe.shots, list) else [recipe.shots]
    if not shots or any(k is not None and k < 1 for k in shots):
        problems.append("shots: whole numbers of at least 1, or null for all samples")
    fraction = recipe.probe.label_fraction
    if fraction is not None and not 0 < fraction <= 1:
        problems.append("probe.label_fraction: between 0 and 1")
    _check_compare(recipe.compare, problems)


def _check_model(recipe: Recipe, problems: list[str]) -> None:
    model = recipe.model
    for name in ("width", "depth", "heads", "max_positions"):
        if getattr(model, name) < (0 if name == "depth" else 1):
            problems.append(f"model.{name}: must be positive (got {getattr(model, name)})")
    if model.heads > 0 and model.width % model.heads:
        problems.append(f"model.width: {model.width} is not divisible by {model.heads} heads")
    if not 0 <= model.dropout < 1:
        problems.append(f"model.dropout: between 0 and 1 (got {model.dropout})")
    if model.trunk == "none" and recipe.setting == "self_supervised":
        problems.append("model.trunk: the self-supervised setting needs the transformer trunk")
    kind, _, source = model.head_init.partition(":")
    if model.head_init != "random" and (kind != "class_means" or not source):
        problems.append(
            f"model.head_init: random or class_means:<modality>, not '{model.head_init}'"
        )
    elif source and source not in recipe.modalities:
        hint = near(source, recipe.modalities)
        problems.append(f"model.head_init: no modality '{source}'{hint}")


def _check_train(recipe: Recipe, problems: list[str]) -> None:
    train = recipe.train
    positive = ("steps", "batch_size", "lr", "workers", "validate_every", "checkpoint_every")
    for name in positive:
        if getattr(train, name) <= 0:
            problems.append(f"train.{name}: must be positive (got {getattr(train, name)})")
    if train.batch_size < train.workers:
        problems.append(
            f"train.batch_size: {train.batch_size} is less than one sample for each of "
            f"{train.workers} workers"
        )
    if train.warmup and train.warmup.modality not in recipe.modalities:
        hint = near(train.warmup.modality, recipe.modalities)
        problems.append(f"train.warmup.modality: no modality '{train.warmup.modality}'{hint}")


def _check_modality(recipe: Recipe, name: str, spec: ModalitySpec, problems: list[str]) -> None:
    where = f"modalities.{name}"
    ratio = as_ratio(spec.ratio)
    values = [ratio] if isinstance(ratio, float) else [r for _, r in ratio]
    if any(r < 0 for r in values):
        problems.append(f"{where}.ratio: batches per target batch cannot be negative")
    if isinstance(ratio, tuple) and (ratio[0][0] != 0 or [*ratio] != sorted(ratio)):
        problems.append(f"{where}.ratio: a changing ratio is [[0, r], [step, r], ...] in order")
    if name == recipe.target and ratio != 1.0:
        problems.append(f"{where}.ratio: the target's ratio is 1 by definition")
    if spec.weight < 0:
        problems.append(f"{where}.weight: cannot be negative")
    if name == recipe.target and spec.shots is not None:
        problems.append(f"{where}.shots: the target's shots stand at the top of the recipe")
    found = KINDS[spec.kind].check(
        spec.options, setting=recipe.setting, width=recipe.model.width, heads=recipe.model.heads
    )
    problems.extend(f"{where}: {problem}" for problem in found)


TUNABLE = ("lr", "weight_decay", "weight")
ARMS = ("unimodal", "unimodal_direct", "uml", "uml_init", "uml_permuted")


def _check_compare(spec: CompareSpec, problems: list[str]) -> None:
    for group in ("grid", "auxiliary_grid", "unimodal_grid"):
        for key, values in getattr(spec, group).items():
            if key not in TUNABLE:
                hint = near(key, TUNABLE)
                problems.append(f"compare.{group}.{key}: not one of {', '.join(TUNABLE)}{hint}")
            if not values:
                problems.append(f"compare.{group}.{key}: give at least one value")
    with_aux, without = len(grid_points(spec, True)), len(grid_points(spec, False))
    if with_aux != without:
        problems.append(
            f"compare: arms with auxiliary data would try {with_aux} settings, arms without "
            f"{without}; a fair comparison gives every arm a grid of the same size"
        )
    for arm in spec.arms:
        if arm not in ARMS:
            problems.append(f"compare.arms: unknown arm '{arm}'{near(arm, ARMS)}")
