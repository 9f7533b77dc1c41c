"""A recipe's data, opened and checked in full before anything runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.files import write_text
from pipelines.running.class_means import class_means, first_of_class
from pipelines.sources import guards
from pipelines.streams import gaps, layout, quarantine
from pipelines.streams.shards import Index, load_index, read_rows, subset, write_subset
from uml_core.addresses import redacted_tree
from uml_core.arms import head_source
from uml_core.checks import warmup_problems
from uml_core.errors import UserError
from uml_core.modalities import Modality
from uml_core.modalities.base import BadSample
from uml_core.probes import few_shot_split, few_val
from uml_core.schedule import steps_of_epochs
from uml_core.specs import Recipe, WarmupSpec

SUBSET_BYTES = 256 << 20  # a subset up to this size gets a shard of its own
NAMED = 5  # classes that a sentence names


@dataclass(frozen=True)
class Data:
    """The open data of a recipe: indices per modality and split, and what the guards found.

    classes     names in label order
    modalities  active modalities with the input sizes that only the data tells
    train       every active modality; val and test: those that name such shards
    guards      counts for reports; `warnings` holds what a person should read
    """

    classes: tuple[str, ...]
    modalities: dict[str, Modality]
    train: dict[str, Index]
    val: dict[str, Index]
    test: dict[str, Index]
    guards: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def indices(self) -> dict[str, list[Index]]:
        """Every index by the name of its modality and split."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {f"{m} ({s})": [i] for s, by in splits.items() for m, i in by.items()}


@dataclass(frozen=True)
class Round:
    """What the fits of one (shots, seed) train on and are validated by.

    train  stream -> rows that training steps stream: one per modality, by its name, and for an
           exchange rate more of one modality with fewer samples (`fewer`)
    val    validation rows of the target, never trained on
    probe  labelled target rows that a linear probe may use (self-supervised setting)
    """

    seed: int
    shots: int | None
    train: dict[str, Index]
    val: Index
    probe: Index | None = None


def open_data(recipe: Recipe) -> Data:
    """Opens and checks all shards of the active modalities; raises UserError with every problem.

    Embedded worlds are generated on first use.
    """
    assert recipe.data_root is not None  # `load` refuses a recipe without one
    if recipe.world is not None:
        from pipelines.prepare import ensure_world

        ensure_world(recipe.world, recipe.data_root)
    problems: list[str] = []
    splits = _open_splits(recipe)
    classes = _classes(splits, problems)
    if problems:
        raise UserError(problems)
    modalities = {}
    for name in recipe.active:
        modality = _with_input(recipe, name, splits["train"][name], problems)
        if modality is not None:
            modalities[name] = modality
    _check_labels(recipe, splits, classes, problems)
    _check_encoders(recipe, splits, problems)
    found, report = guards.check(
        splits["train"],
        splits["test"],
        target=recipe.target,
        allow_overlap=recipe.allow_overlap,
        val=splits["val"],
    )
    problems += found
    if problems:
        raise UserError(problems)
    urls = [s.url for by in splits.values() for index in by.values() for s in index.shards]
    report["warnings"] += gaps.holes(urls)
    if recipe.setting == "supervised":
        report["warnings"] += guards.unlabelled(_by_modality(splits))
    report["warnings"] += _absent_classes(recipe, splits["train"], classes)
    warnings = [
        f"{name} ({split}): {_what_is_lost(index, lost)}"
        for split, indices in splits.items()
        for name, index in indices.items()
        if (lost := _left_out(index))
    ]
    return Data(
        classes,
        modalities,
        splits["train"],
        splits["val"],
        splits["test"],
        report,
        (*report["warnings"], *warnings),
    )


def _open_splits(recipe: Recipe) -> dict[str, dict[str, Index]]:
    """Split -> modality -> index. Raises UserError with all problems, each told once."""
    splits: dict[str, dict[str, Index]] = {"train": {}, "val": {}, "test": {}}
    problems: dict[str, list[str]] = {}  # what is wrong -> where
    for name in recipe.active:
        for split in splits:
            try:
                index = _open_split(recipe, name, split)
            except UserError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(f"modalities.{name}.{split}")
                continue
            if index is not None:
                splits[split][name] = index
    shards = {
        (name, split): [shard.url for shard in index.shards]
        for split, indices in splits.items()
        for name, index in indices.items()
    }
    patterns = {at: getattr(recipe.modalities[at[0]], at[1]) for at in shards}
    said = [f"{', '.join(where)}: {problem}" for problem, where in problems.items()]
    said += layout.misplaced(patterns, shards, recipe.target)
    if said:
        raise UserError(said)
    return splits


def _open_split(recipe: Recipe, name: str, split: str) -> Index | None:
    """The index of a split, None where the recipe names none. Raises UserError."""
    spec = recipe.modalities[name]
    pattern = getattr(spec, split)
    if pattern is None:
        if split == "test" and name == recipe.target:
            raise UserError("the target needs test shards")
        return None
    assert recipe.data_root is not None
    index = load_index(pattern, recipe.data_root, spec.kind, spec.member)
    lost = _left_out(index)
    if len(lost) > quarantine.limit_of(recipe.quarantine_budget, len(index) + len(lost)):
        raise UserError(
            f"{_what_is_lost(index, lost)}. That is more than quarantine_budget "
            f"{recipe.quarantine_budget:g} allows: `uml verify` lists all; mend them or raise it"
        )
    return index


def _left_out(index: Index) -> dict[tuple[str, str | None], str]:
    """(url, key) -> cause of the samples that the scan could not use."""
    out: dict[tuple[str, str | None], str] = {}
    for url, problem in index.problems:
        if problem.lost:
            out.setdefault((url, problem.key), problem.cause)
    return out


def _what_is_lost(index: Index, lost: dict[tuple[str, str | None], str]) -> str:
    (url, key), cause = next(iter(lost.items()))
    return (
        f"{len(lost)} of {len(index) + len(lost)} samples cannot be used, such as "
        f"{key or 'the end'} of {url}: {cause}"
    )


def record_left_out(data: Data, out: Path) -> None:
    """Lists the samples that the scans of the shards could not use in `out`."""
    for split in (data.train, data.val, data.test):
        for name, index in split.items():
            lost = ((url, p.key, p.cause) for url, p in index.problems if p.lost)
            quarantine.record(out / quarantine.FILE, name, lost)


def _classes(splits: dict[str, dict[str, Index]], problems: list[str]) -> tuple[str, ...]:
    """The one class list; without any classes.json, the labels themselves."""
    lists = {
        f"{name} ({split})": index.classes
        for split, indices in splits.items()
        for name, index in indices.items()
        if index.classes is not None
    }
    try:
        guards.check_classes(lists)
    except UserError as error:
        problems += error.problems
    if lists:
        return next(iter(lists.values()))
    count, found = guards.unnamed_classes([i for by in splits.values() for i in by.values()])
    problems += found
    return () if found else tuple(str(k) for k in range(count))


def _with_input(recipe: Recipe, name: str, index: Index, problems: list[str]) -> Modality | None:
    """The modality with its input sizes read off the first decodable sample."""
    modality = recipe.modalities[name].build()
    cause = ""
    for row in range(min(20, len(index))):
        try:
            item = modality.decode(read_rows(index, [row])[0], index.suffixes[row])
            modality = modality.with_input(item)
            found = modality.check(
                modality.options,
                setting=recipe.setting,
                width=recipe.model.width,
                heads=recipe.model.heads,
            )
            problems += [f"modalities.{name}: {problem}" for problem in found]
            return modality
        except BadSample as error:
            cause = str(error)
        except UserError as error:
            problems += [f"modalities.{name}: {problem}" for problem in error.problems]
            return None
    problems.append(f"modalities.{name}: none of its first samples can be decoded: {cause}")
    return None


def _check_labels(
    recipe: Recipe,
    splits: dict[str, dict[str, Index]],
    classes: tuple[str, ...],
    problems: list[str],
) -> None:
    if len(classes) == 1:
        problems.append(
            f"modalities.{recipe.target}: all labels are of one class, '{classes[0]}': there is "
            "nothing to tell apart"
        )
    for split, indices in splits.items():
        for name, index in indices.items():
            problems += guards.check_labels(index, len(classes), f"modalities.{name}.{split}")
            needs_labels = name == recipe.target or recipe.setting == "supervised"
            if needs_labels and (index.labels < 0).all():
                problems.append(
                    f"modalities.{name}.{split}: no sample has a label, but the "
                    f"{recipe.setting} setting needs them here (<key>.cls or `label` in <key>.json)"
                )


def _check_encoders(
    recipe: Recipe, splits: dict[str, dict[str, Index]], problems: list[str]
) -> None:
    """Features of one modality must come from one encoder, or a test means nothing."""
    for name in recipe.active:
        shards = [s for by in splits.values() if name in by for s in by[name].shards]
        made = [shard.encoder for shard in shards]
        if any(one != made[0] for one in made):
            names = {str((one or {}).get("name", "none that is known")) for one in made}
            problems.append(
                f"modalities.{name}: its shards hold features of different encoders or settings "
                f"({', '.join(sorted(names))}): make all of them with one `uml embed`"
            )


def _by_modality(splits: dict[str, dict[str, Index]]) -> dict[str, dict[str, Index]]:
    names = dict.fromkeys(name for indices in splits.values() for name in indices)
    return {n: {part: by[n] for part, by in splits.items() if n in by} for n in names}


def _absent_classes(recipe: Recipe, train: dict[str, Index], classes: tuple[str, ...]) -> list[str]:
    """A sentence per auxiliary modality that has no sample of some class (supervised setting)."""
    if recipe.setting != "supervised":
        return []
    said = []
    for name in recipe.active[1:]:
        absent = np.setdiff1d(np.arange(len(classes)), train[name].labels)
        if not len(absent):
            continue
        names = ", ".join(classes[k] for k in absent[:NAMED])
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        head = "; a head that starts at its class means keeps random rows for them"
        said.append(
            f"{name} has no sample of {len(absent)} of {len(classes)} classes ({names}{more})"
            + (head if name == head_source(recipe) else "")
        )
    return said


# ---------------------------------------------------------------------------------- rounds


def make_round(
    recipe: Recipe, data: Data, seed: int, shots: int | None, folder: Path | None = None
) -> Round:
    """Draws the rows of one (shots, seed); small target subsets become a shard in `folder`.

    Without a folder nothing is written: such a round serves for counts, since a modality whose
    classes are averaged then holds a sample of each class instead of the means.
    Raises UserError naming every class with too few samples.
    """
    target = data.train[recipe.target]
    own_val = data.val.get(recipe.target)
    train_rows, val_rows = few_shot_split(
        target.labels,
        shots,
        seed,
        0 if own_val is not None else None,
        data.classes,
        modality=recipe.target,
    )
    if own_val is None:
        val = subset(target, val_rows)
    else:
        val = _few_of(own_val, recipe.target, val_shots(recipe, shots), seed, data.classes)
    streams = _auxiliary_streams(recipe, data, seed, folder)
    if recipe.setting == "self_supervised":
        # Self-supervised steps need no labels: every target row outside validation is theirs.
        rest = np.setdiff1d(np.arange(len(target)), val_rows)
        probe = subset(target, _labelled(recipe, target, train_rows, seed))
        return Round(seed, shots, {recipe.target: subset(target, rest), **streams}, val, probe)
    picked = subset(target, train_rows)
    if folder is not None and shots is not None and int(picked.sizes.sum()) <= SUBSET_BYTES:
        path = folder / f"{recipe.target}-{shots}shot-seed{seed}-000000.tar"
        picked = write_subset(target, train_rows, str(path))
    return Round(seed, shots, {recipe.target: picked, **streams}, val)


def val_shots(recipe: Recipe, shots: int | None) -> int | None:
    """Samples per class of the target's own val shards that validate a round; None: all."""
    if recipe.val_shots != "matched":
        return recipe.val_shots
    return None if shots is None else few_val(shots)


def _few_of(
    index: Index, name: str, shots: int | None, seed: int, classes: tuple[str, ...]
) -> Index:
    """So many samples of every class that occurs in this set of modality `name`; None: all."""
    if shots is None:
        return index
    rows, _ = few_shot_split(
        index.labels, shots, seed, 0, classes, modality=name, allow_absent=True
    )
    return subset(index, rows)


def fewer(name: str, shots: int) -> str:
    """The stream of a modality that repeats so many samples per class, beside its own stream."""
    return f"{name}@{shots}"


def modality_of(stream: str) -> str:
    """The modality that a stream carries."""
    return stream.partition("@")[0]


def _auxiliary_streams(
    recipe: Recipe, data: Data, seed: int, folder: Path | None
) -> dict[str, Index]:
    """Rows of every auxiliary; where one lists several shots, its own stream has the most."""
    streams: dict[str, Index] = {}
    for name in recipe.active[1:]:
        shots = recipe.modalities[name].shots
        if isinstance(shots, list):
            *less, shots = sorted(shots)
            streams |= {fewer(name, k): _auxiliary(data, name, k, seed, folder) for k in less}
        streams[name] = _auxiliary(data, name, shots, seed, folder)
    return streams


def _auxiliary(
    data: Data, name: str, shots: int | str | None, seed: int, folder: Path | None
) -> Index:
    index = data.train[name]
    if shots is None:
        return index
    if shots == "average":
        if folder is None:
            return first_of_class(index)
        return class_means(index, data.modalities[name], folder / f"{name}-average-000000.tar")
    assert isinstance(shots, int)
    return _few_of(index, name, shots, seed, data.classes)


def _labelled(recipe: Recipe, target: Index, train_rows: np.ndarray, seed: int) -> np.ndarray:
    """Rows whose labels the probe may see: `shots` per class, or a share of each class."""
    fraction = recipe.probe.label_fraction
    if fraction is None:
        return train_rows
    rng = np.random.default_rng([seed, 0x1ABE1])
    labels = target.labels[train_rows]
    kept = []
    for c in np.unique(labels):
        rows = train_rows[labels == c]
        kept.append(rng.permutation(rows)[: max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(kept))


def rounds_of(recipe: Recipe) -> Iterator[tuple[int | None, int]]:
    """Every (shots, seed) of a recipe, shots outermost."""
    shots = recipe.shots if isinstance(recipe.shots, list) else [recipe.shots]
    for k in shots:
        for seed in recipe.seeds:
            yield k, seed


def analysed(recipe: Recipe) -> tuple[int | None, int]:
    """The (shots, seed) whose fits are looked at closely: the most shots, the first seed.

    Fixed before anything runs, so that no arm was picked for what it shows.
    """
    found = [k for k, _ in rounds_of(recipe)]
    return max(found, key=lambda k: float("inf") if k is None else k), recipe.seeds[0]


def num_classes(recipe: Recipe, data: Data) -> int | None:
    """C of the shared classifier, None in the self-supervised setting."""
    return len(data.classes) if recipe.setting == "supervised" else None


def resolved(recipe: Recipe, data: Data) -> Recipe:
    """The recipe with everything filled in that the data told: input sizes, steps of epochs."""
    specs = {
        name: dataclasses.replace(spec, options=data.modalities[name].options)
        if name in data.modalities
        else spec
        for name, spec in recipe.modalities.items()
    }
    train = dataclasses.replace(recipe.train, warmup=_warmup_in_steps(recipe, data))
    found = dataclasses.replace(recipe, modalities=specs, train=train)
    if problems := warmup_problems(found):
        raise UserError(problems)
    return found


def _warmup_in_steps(recipe: Recipe, data: Data) -> WarmupSpec | None:
    """A warm-up given in epochs, counted in the training samples that its modality streams."""
    warmup = recipe.train.warmup
    if warmup is None or warmup.epochs is None:
        return warmup
    if not warmup:
        return None
    steps = {}
    for shots, seed in rounds_of(recipe):
        if shots not in steps:
            rows = len(make_round(recipe, data, seed, shots).train[warmup.modality])
            steps[shots] = steps_of_epochs(warmup.epochs, rows, recipe.train.batch_size)
    if len(set(steps.values())) > 1:
        raise UserError(
            f"train.warmup.epochs: an epoch of {warmup.modality} differs between the numbers of "
            "shots; give train.warmup.steps, or one number of shots"
        )
    return dataclasses.replace(warmup, steps=next(iter(steps.values())), epochs=None)


def sample_inputs(recipe: Recipe, data: Data) -> dict[str, list[tuple[bytes, str, str]]]:
    """A few training samples per modality for the report: (bytes, suffix, class name)."""
    out = {}
    for name in recipe.active:
        index = data.train[name]
        rows = range(min(6, len(index)))
        names = [data.classes[k] if (k := int(index.labels[row])) >= 0 else "" for row in rows]
        suffixes = [index.suffixes[row] for row in rows]
        out[name] = list(zip(read_rows(index, rows), suffixes, names, strict=True))
    return out


def write_json(path: Path, content: Any) -> None:
    """Writes a result file, whole or not at all; urls in it without their secrets."""
    write_text(path, json.dumps(redacted_tree(content), indent=1))
