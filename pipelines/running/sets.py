"""Which samples an evaluation reads, and for what; chosen from indices alone, by seed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.running.data import Data, Round, make_round
from pipelines.running.finished import FinishedRun
from pipelines.sources.guards import check_labels, content_overlap, unnamed_classes
from pipelines.streams import storage
from pipelines.streams.scan import MAX_JSON_BYTES
from pipelines.streams.shards import Index, Sample, load_index, subset, write_shards
from uml_core import addresses
from uml_core.analysis.bootstrap import subsample
from uml_core.errors import UserError
from uml_core.shift import LabelMap, label_map
from uml_core.specs import Recipe, ShiftSpec
from uml_core.views import SPLITS
from uml_core.worlds import World, open_world

NO_PAIRS = "needs samples with the same key in both modalities"
WORLD_PAIRS = 960  # things that an embedded world shows in two modalities


@dataclass(frozen=True)
class Shift:
    """A named test set: its samples, what its classes mean, and its share of training content."""

    index: Index
    mapped: LabelMap
    overlap: float


@dataclass(frozen=True)
class Sets:
    """What is read.

    test         labelled test samples of the target
    train, val   labelled target samples of the run's own round, for probes
    pool         training samples that the few-shot protocol draws from
    pool_fresh   whether the model was never trained on the labels in `pool`
    auxiliary    modality -> samples for class means, and `splits` which split they are of
    pairs        modality -> (target samples, their partners), or why there are none
    views        self-supervised: auxiliary modality -> split -> samples for its own probe
    shifts       named test sets
    left_out     view -> why it cannot be measured
    """

    test: Index
    train: Index
    val: Index
    pool: Index
    pool_fresh: bool
    auxiliary: dict[str, Index]
    splits: dict[str, str]
    pairs: dict[str, tuple[Index, Index] | str]
    views: dict[str, dict[str, Index]]
    shifts: dict[str, Shift]
    left_out: dict[str, str] = field(default_factory=dict)

    def indices(self) -> Iterator[Index]:
        """Everything that is read, as often as it is."""
        yield from (self.test, self.train, self.val, self.pool, *self.auxiliary.values())
        for pair in self.pairs.values():
            yield from () if isinstance(pair, str) else pair
        for by_split in self.views.values():
            yield from by_split.values()
        yield from (shift.index for shift in self.shifts.values())


def choose_sets(run: FinishedRun, data: Data, others: list[str], folder: Path) -> Sets:
    """All sets of an evaluation; pairs drawn from an embedded world become shards in `folder`.

    others  auxiliary modalities that the model still has
    Raises UserError with every problem of the named test sets.
    """
    recipe, limit = run.recipe, run.recipe.evaluate.samples
    shifts, problems = _shifts(recipe, data)
    if problems:
        raise UserError(problems)
    at = make_round(recipe, data, run.seed, run.shots)
    pool, fresh = _pool(run, data, at)
    held = {name: _held(data, name) for name in others}
    views: dict[str, dict[str, Index]] = {}
    left_out: dict[str, str] = {}
    if recipe.setting == "self_supervised":
        for name in others:
            try:
                views[name] = _view(run, data, at, name)
            except UserError as error:
                left_out[name] = error.problems[0]
    test = labelled(data.test[recipe.target])
    return Sets(
        test=test,
        train=few(labelled(at.probe or at.train[recipe.target]), limit),
        val=few(labelled(at.val), limit),
        pool=pool,
        pool_fresh=fresh,
        auxiliary={name: few(index, limit) for name, (_, index) in held.items()},
        splits={name: split for name, (split, _) in held.items()},
        pairs={name: _pairs(recipe, data, name, folder) for name in others},
        views=views,
        shifts=shifts,
        left_out=left_out,
    )


def labelled(index: Index) -> Index:
    """The rows that have a label."""
    return subset(index, np.flatnonzero(index.labels >= 0))


def few(index: Index, limit: int) -> Index:
    """At most `limit` rows, drawn by seed 0 so that every model is asked the same."""
    return subset(index, subsample(len(index), limit, 0))


def _held(data: Data, name: str) -> tuple[str, Index]:
    """The split of an auxiliary modality that training saw least of, and its samples."""
    for split in ("test", "val", "train"):
        if name in (found := getattr(data, split)):
            return split, found[name]
    raise KeyError(name)


# ---------------------------------------------------------------------------- few-shot pool


def _pool(run: FinishedRun, data: Data, at: Round) -> tuple[Index, bool]:
    """Target training samples for the few-shot protocol, and whether their labels are fresh.

    A supervised model remembers the samples whose labels it was trained on, so they would make
    poor examples of what its features are worth: the pool is made of others where every class
    has enough of them.
    """
    spec, target = run.recipe.evaluate, data.train[run.recipe.target]
    most = max(spec.shots)
    need = most + min(4, most)
    rows = np.flatnonzero(target.labels >= 0)
    fresh = at.probe is not None
    if not fresh:
        used = [i.picked for i in (at.train[run.recipe.target], at.val) if _within(i, target)]
        rest = np.setdiff1d(rows, np.concatenate([p for p in used if p is not None]))
        counts = np.bincount(target.labels[rest], minlength=len(data.classes))
        if counts[np.unique(target.labels[rows])].min() >= need:
            rows, fresh = rest, True
    num_classes = len(np.unique(target.labels[rows]))
    each = max(need, min(need * len(spec.split_seeds), spec.samples // num_classes))
    rng = np.random.default_rng([run.seed, 0x9001])
    kept = [
        rng.permutation(rows[target.labels[rows] == c])[:each]
        for c in np.unique(target.labels[rows])
    ]
    return subset(target, np.sort(np.concatenate(kept))), fresh


def _within(index: Index, whole: Index) -> bool:
    return index.shards is whole.shards


# ------------------------------------------------------------------------- other modalities


def _view(run: FinishedRun, data: Data, at: Round, name: str) -> dict[str, Index]:
    """Labelled samples of an auxiliary modality: the partners of the target's where keys pair
    them, else a draw of its own by the same rules. Raises UserError where there are too few."""
    if name not in data.test:
        raise UserError(f"needs test shards of its own: modalities.{name}.test")
    limit, target = run.recipe.evaluate.samples, run.recipe.target
    assert at.probe is not None
    wanted = {"train": at.probe, "val": at.val, "test": data.test[target]}
    partners = {
        "train": with_keys(data.train[name], wanted["train"]),
        "val": with_keys(data.val.get(name, data.train[name]), wanted["val"]),
        "test": with_keys(data.test[name], wanted["test"]),
    }
    if all(len(partners[split]) >= len(wanted[split]) / 2 for split in SPLITS):
        return {split: few(labelled(index), limit) for split, index in partners.items()}
    recipe = dataclasses.replace(run.recipe, target=name)
    own = make_round(recipe, data, run.seed, run.shots)
    assert own.probe is not None
    found = {"train": own.probe, "val": own.val, "test": data.test[name]}
    return {split: few(labelled(index), limit) for split, index in found.items()}


def with_keys(index: Index, of: Index) -> Index:
    """The rows whose key also occurs in `of`; none where keys repeat and so name no sample."""
    keys = set(of.keys)
    rows = [row for row, key in enumerate(index.keys) if key in keys]
    unique = {index.keys[row] for row in rows}
    return subset(index, rows if len(unique) == len(rows) and len(keys) == len(of) else [])


def _pairs(recipe: Recipe, data: Data, name: str, folder: Path) -> tuple[Index, Index] | str:
    """(target samples, partners): the world's own, else test samples with an equal key."""
    target = recipe.target
    if recipe.world is not None:
        return _world_pairs(open_world(recipe.world.name), recipe, name, folder)
    test = data.test[target]
    splits = [getattr(data, split).get(name) for split in ("test", "val", "train")]
    partners = [with_keys(index, test) for index in splits if index is not None]
    best = max(partners, key=len)
    if not len(best):
        return NO_PAIRS
    best = few(best, recipe.evaluate.samples)
    return with_keys(test, best), best


def _world_pairs(
    world: World, recipe: Recipe, name: str, folder: Path
) -> tuple[Index, Index] | str:
    modalities = (recipe.target, name)
    if any(world.kinds.get(m) != recipe.modalities[m].kind for m in modalities):
        return NO_PAIRS
    assert recipe.world is not None
    try:
        drawn = list(world.pairs(modalities, WORLD_PAIRS, recipe.world.seed))
    except UserError as error:
        return f"{NO_PAIRS}: {error.problems[0]}"
    found = []
    for side, modality in enumerate(modalities):
        kind, prefix = recipe.modalities[modality].kind, f"{name}-{modality}"
        samples = [Sample(d.key, d.suffix, d.data, d.label) for d in (pair[side] for pair in drawn)]
        write_shards(samples, str(folder), prefix, kind)
        found.append(load_index(f"{prefix}-*.tar", str(folder), kind))
    return found[0], found[1]


# --------------------------------------------------------------------------- named test sets


def _shifts(recipe: Recipe, data: Data) -> tuple[dict[str, Shift], list[str]]:
    found: dict[str, Shift] = {}
    problems: list[str] = []
    for name, spec in recipe.tests.items():
        try:
            found[name] = _shift(recipe, data, spec)
        except UserError as error:
            problems += [f"tests.{name}: {problem}" for problem in error.problems]
    return found, problems


def _shift(recipe: Recipe, data: Data, spec: ShiftSpec) -> Shift:
    target = recipe.target
    assert recipe.data_root is not None
    modality = recipe.modalities[target]
    index = load_index(spec.files, recipe.data_root, modality.kind, modality.member)
    if (index.labels < 0).all():
        raise UserError("no sample has a label")
    # Without a list of names beside the shards, the labels themselves are the names.
    names = index.classes or _numbers(index, len(data.classes))
    problems = check_labels(index, len(names), "files")
    if problems:
        raise UserError(problems)
    mapping = None
    if spec.labels is not None:
        mapping = _read_map(addresses.absolute(spec.labels, recipe.data_root))
    overlap = content_overlap([data.train[target]], index)
    return Shift(index, label_map(names, data.classes, mapping), overlap["share"])


def _numbers(index: Index, known: int) -> tuple[str, ...]:
    """The labels as names. A set may hold few of the run's classes, but no other numbers than it
    could have itself. Raises UserError."""
    count, problems = unnamed_classes([index])
    top = int(index.labels.max()) + 1
    if problems and top > max(known, count):
        raise UserError(problems)
    return tuple(str(k) for k in range(top))


def _read_map(url: str) -> Mapping[str, str | None]:
    """A label map from JSON. Raises UserError with what it should be."""
    try:
        found: Any = json.loads(storage.read_all(url, MAX_JSON_BYTES))
    except FileNotFoundError as error:
        raise UserError(f"labels: there is no {url}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"labels: {url} is not valid JSON: {error}") from error
    values = found.values() if isinstance(found, dict) else [0]
    if not all(value is None or isinstance(value, str) for value in values):
        raise UserError(
            f'labels: {url} must hold {{"class of the set": "class of the model" or null, ...}}'
        )
    return found
