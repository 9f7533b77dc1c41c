"""What a recipe says, as frozen dataclasses: data, model, training, comparison.

`uml_core.recipe` reads them from YAML, `uml_core.checks` says what types cannot.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from uml_core.addresses import redacted_tree
from uml_core.modalities import KINDS, Modality
from uml_core.schedule import Ratio, Schedule, Warmup

TUNABLE = ("lr", "weight_decay", "weight")
ARMS = ("unimodal", "unimodal_direct", "uml", "uml_init", "uml_permuted")

Searcher = Literal["asha", "grid", "random", "optuna"]
Shots = int | list[int] | Literal["average"] | None
RatioField = float | list[tuple[int, float]] | Literal["adaptive"]


@dataclass(frozen=True)
class ModalitySpec:
    """One modality: where its data lies and how much of it a step takes."""

    kind: str
    train: str | list[str]
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    ratio: RatioField = 1.0  # batches per target batch; [[from step, r], ...]; adaptive
    weight: float = 1.0  # factor of its loss (the paper's lambda, alpha)
    shots: Shots = None  # samples per class; average = one mean; null = all; a list: exchange rate
    member: str | list[str] | None = None  # suffix of the payload, where samples hold several
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
    norm_eps: float = 1e-5
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    input_projection: bool = False  # bias-free linear before the blocks, as the paper's code has
    input_norm: bool = False  # layer norm before the blocks, as BERT has it
    positions: Literal["off", "learned", "sinusoidal"] = "off"
    max_positions: int = 512
    trunk_init: str | None = None  # folder of a BERT or GPT-2 checkpoint, which sets the sizes too
    trunk_frozen: bool | int = False  # true: never trains; N: not before N target batches
    head_init: str = "random"  # random | class_means:<modality>
    logit_scale: Literal["fixed", "learned"] = "fixed"  # learned: one factor per modality
    logit_scale_value: float = 1.0  # the fixed factor (CLIP: 100), or where learned ones start

    def frozen_at(self, t: int) -> bool:
        """Whether the trunk keeps its weights after `t` target batches (paper 3.8).

        t: below 0 in a warm-up on another modality before the first of them.
        """
        if isinstance(self.trunk_frozen, bool):
            return self.trunk_frozen
        return self.trunk_frozen > 0 and t < self.trunk_frozen


@dataclass(frozen=True)
class WarmupSpec:
    """One modality alone at the start (paper B.4.1): give `steps`, or `epochs` of that modality.

    A recipe whose data is open holds steps only (uml_core/schedule.py, `steps_of_epochs`).
    """

    modality: str
    steps: int | None = None  # exactly so many; 0 = none
    epochs: float | None = None  # passes over the training samples of that modality; 0 = none

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.steps or self.epochs)


@dataclass(frozen=True)
class AdaptiveSpec:
    """How `ratio: adaptive` learns the mix during a run (uml_core/adaptive.py)."""

    mean: float = 1.0  # batches per target batch over the run, all adaptive modalities together
    price: dict[str, float] = field(default_factory=dict)  # batches that one counts as; default 1
    most: float = 4.0  # batches of one modality per target batch at any time
    rate: float = 1.0  # how fast the mix follows what the gradients say
    floor: float = 0.1  # share of the mix that no modality loses, so that it can come back


@dataclass(frozen=True)
class TrainSpec:
    """How a run trains. `steps` counts target batches."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    steps: int = 300
    batch_size: int = 64  # global batch of every modality
    lr: float = 1e-3
    weight_decay: float = 0.01
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    lr_warmup: int = 10  # target batches of linear warm-up
    lr_factors: dict[str, float] = field(default_factory=dict)  # part (stems.NAME, ...): times lr
    clip: float | None = None  # gradient norm
    label_smoothing: float = 0.0
    mode: Literal["joint", "alternate"] = "joint"
    warmup: WarmupSpec | None = None
    adaptive: AdaptiveSpec = field(default_factory=AdaptiveSpec)
    workers: int | list[int] = 2  # [least, most]: as many as the cluster has room for
    worker_resources: dict[str, float] = field(default_factory=dict)  # of Ray, of one worker
    data_nodes: dict[str, str] = field(default_factory=dict)  # labels of nodes that read and decode
    parallel: Literal["ddp", "fsdp"] = "ddp"  # fsdp: weights and moments shared out (FSDP2)
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  # tf32: faster float32 products on GPUs
    compile: bool = False
    validate_every: int = 25
    gradients_every: int | None = 50  # steps between looks at each modality's gradient; 0 = never
    patience: int | None = None  # validations without gain before a fit stops; null = never
    checkpoint_every: int = 100
    on_nan: Literal["stop", "skip"] = "stop"
    max_failures: int = 3  # restarts of the worker group before the run is given up
    resize_seconds: float = 60.0  # between looks whether an elastic group can grow
    storage: str | None = None  # shared folder or s3:// for checkpoints; null = inside --out

    @property
    def least_workers(self) -> int:
        """Workers without which the run waits."""
        return min(self.workers) if isinstance(self.workers, list) else self.workers

    @property
    def most_workers(self) -> int:
        """Workers at most; what a machine must be able to hold."""
        return max(self.workers) if isinstance(self.workers, list) else self.workers


@dataclass(frozen=True)
class ProbeSpec:
    """Linear probe on a frozen representation (self-supervised setting)."""

    C: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0, 10.0])
    label_fraction: float | None = None  # share of labelled target samples; null = `shots`


@dataclass(frozen=True)
class ShiftSpec:
    """A further test set of the target, read by `uml evaluate` only."""

    files: str | list[str]  # its shards, as modalities.NAME.test
    labels: str | None = None  # JSON {class of the set: class of the model | null}; null = by name


@dataclass(frozen=True)
class EvaluateSpec:
    """What `uml evaluate` measures on the frozen representation."""

    shots: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])  # few-shot protocol, k
    split_seeds: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])  # draws of each k
    samples: int = 10_000  # most of a set in probes and analyses; accuracies read all of it


@dataclass(frozen=True)
class CompareSpec:
    """The fair comparison: one grid of hyper-parameters per arm, all of the same size."""

    grid: dict[str, list[float]] = field(default_factory=dict)  # every arm: lr, weight_decay
    auxiliary_grid: dict[str, list[float]] = field(default_factory=dict)  # arms with other data
    unimodal_grid: dict[str, list[float]] = field(default_factory=dict)  # arms without
    arms: list[str] = field(default_factory=list)  # empty = all that apply
    parallel: Literal["fits", "data"] = "fits"  # workers share the fits, or the data of each fit


@dataclass(frozen=True)
class SweepSpec:
    """How `uml sweep` searches a space of tune_spaces, and what makes its trials comparable."""

    search: Searcher = "asha"  # asha stops poor trials early; grid, random: to the end; optuna
    trials: int = 24  # configurations beside the baselines, at most (grid: all)
    budget: Literal["target_samples", "flops"] = "target_samples"  # what every trial gets alike
    workers: int = 1  # of one trial; above 1 each trial is a Ray Train run with its start-up time
    confirm: int = 5  # fresh seeds of the confirmation at the end; 0 = none
    gpu_share: float = 1.0  # of a GPU that one trial takes; 0.25 = four small trials on each
    keep: int = 3  # trials whose weights stay on disk, the best ones
    max_failures: int = 1  # times a trial that failed is tried again


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
    val_shots: int | Literal["matched"] | None = None  # of val shards; matched = min(4, shots)
    data_root: str | None = None  # folder or URI that relative paths of shards start from
    source: str | None = None  # where this data comes from, its licence: --dry-run goes without it
    world: WorldSpec | None = None
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    probe: ProbeSpec = field(default_factory=ProbeSpec)
    compare: CompareSpec = field(default_factory=CompareSpec)
    sweep: SweepSpec = field(default_factory=SweepSpec)
    evaluate: EvaluateSpec = field(default_factory=EvaluateSpec)
    tests: dict[str, ShiftSpec] = field(default_factory=dict)
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
        """The target and the auxiliaries that are trained on at all: ratio and weight above 0."""
        warmup = self.train.warmup.modality if self.train.warmup else None
        used = [
            name
            for name in self.auxiliaries
            if self.modalities[name].weight > 0
            and (name == warmup or any(r > 0 for _, r in pieces(self.modalities[name].ratio)))
        ]
        return [self.target, *used]

    @property
    def adaptive(self) -> list[str]:
        """Modalities whose ratio is learned during the run."""
        return [n for n in self.auxiliaries if self.modalities[n].ratio == "adaptive"]

    @property
    def exchange(self) -> tuple[str, list[int]] | None:
        """The auxiliary whose exchange rate against the target is measured, and its shots rising.

        The last of them is the comparison's own number; None where no modality lists several.
        """
        for name, spec in self.modalities.items():
            if isinstance(spec.shots, list):
                return name, sorted(spec.shots)
        return None

    def schedule(self) -> Schedule:
        """The step schedule; adaptive modalities at the ratios they start from.

        A warm-up in epochs must have become steps before (open data).
        """
        spec, warmup = self.train.warmup, None
        if spec:
            assert spec.steps is not None, "how many steps an epoch has is known with the data only"
            warmup = Warmup(spec.modality, spec.steps)
        even, price = self.train.adaptive.mean, self.train.adaptive.price
        shared, most = even / max(1, len(self.adaptive)), self.train.adaptive.most
        start = {n: min(most, shared / price.get(n, 1.0)) for n in self.adaptive}
        ratios = {n: self.modalities[n].ratio for n in self.auxiliaries}
        return Schedule(
            target=self.target,
            ratios={
                n: ((0, start[n]),) if r == "adaptive" else as_ratio(r) for n, r in ratios.items()
            },
            steps=self.train.steps,
            warmup=warmup,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, the layout of the YAML file (a kind's options beside its paths)."""
        out = dataclasses.asdict(self)
        for spec in out["modalities"].values():
            spec.update(spec.pop("options"))
        return _plain(out)

    def to_yaml(self, *, secrets: bool = False) -> str:
        """The resolved recipe as a YAML file that `load` takes again.

        secrets  whether urls keep their user names, passwords and queries: only for a file that
                 the same job reads and removes. Without them such urls have to be given again.
        """
        plain = self.to_dict() if secrets else redacted_tree(self.to_dict())
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def as_ratio(value: float | Sequence[Sequence[float]] | str) -> Ratio:
    """A fixed ratio as the recipe writes it -> as `Schedule` takes it."""
    assert not isinstance(value, str), "an adaptive ratio is what `Recipe.schedule` says"
    if isinstance(value, int | float):
        return float(value)
    return tuple((int(step), float(ratio)) for step, ratio in value)


def pieces(ratio: float | Sequence[Sequence[float]] | str) -> list[tuple[int, float]]:
    """A ratio as [(from step, value), ...], constant or not; an adaptive one as 1."""
    ratio = 1.0 if isinstance(ratio, str) else as_ratio(ratio)
    return list(ratio) if isinstance(ratio, tuple) else [(0, ratio)]


def grid_points(spec: CompareSpec, auxiliary: bool) -> list[dict[str, float]]:
    """The hyper-parameter settings one arm tries; never empty."""
    axes = {**spec.grid, **(spec.auxiliary_grid if auxiliary else spec.unimodal_grid)}
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
