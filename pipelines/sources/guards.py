"""What would make a result dishonest: test content in train, pairs in disguise, wrong labels.

Everything here is a pure function of indices; nothing is read from the shards again. Findings are
sentences for a person, counts are plain types for reports.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.streams.layout import WORDS
from pipelines.streams.shards import Index
from uml_core.addresses import name_of
from uml_core.errors import UserError, near

EXAMPLES = 3
MORE_THAN_CHANCE, LEAST_NUMBERS = 5, 10  # see `_beyond_chance`
_LETTERS = re.compile(r"[^\W\d_]+")
_SPLIT_WORDS = frozenset(WORDS)
NAMED = 5  # classes that a sentence names
LEAST_HOLES = 100  # numbers without a sample, more than classes, that make labels ids


def check(
    train: Mapping[str, Index],
    test: Mapping[str, Index],
    *,
    target: str,
    allow_overlap: float,
    val: Mapping[str, Index] | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """All guards over modality -> index; returns (problems, report).

    The report holds `overlap` per modality, `shared_sources` and the sentences in `warnings`.
    Overlap is a problem for the target only, above the share `allow_overlap` of its test set.
    """
    groups: dict[str, dict[str, Index]] = {}
    for split, part in (("train", train), ("val", val or {}), ("test", test)):
        for name, index in part.items():
            groups.setdefault(name, {})[split] = index
    problems: list[str] = []
    warnings: list[str] = []
    overlap = overlaps(groups)
    for name, found in overlap.items():
        if name == target and found["share"] > allow_overlap:
            problems.append(
                f"{overlap_sentence(name, found)}. At most {allow_overlap:.1%} is allowed: remove "
                "them from one side, or set allow_overlap"
            )
        elif found["shared"]:
            warnings.append(overlap_sentence(name, found))
    shared = shared_sources({name: list(splits.values()) for name, splits in groups.items()})
    warnings += [source_sentence(item) for item in shared]
    warnings += [overlap_sentence(*item) for item in strays(groups)]
    warnings += [*lopsided({target: groups[target]}), *copies(groups)]
    return problems, {"overlap": overlap, "shared_sources": shared, "warnings": warnings}


# ---------------------------------------------------------------------------------- content


def overlaps(groups: Mapping[str, Mapping[str, Index]]) -> dict[str, dict[str, Any]]:
    """`content_overlap` of every modality (-> split -> index) that has a test split.

    Validation samples count as seen: they choose the hyper-parameters. What of them also occurs in
    train stands under "NAME (val)"; it is no leak into the test set, but they choose badly.
    """
    out = {}
    for name, splits in groups.items():
        seen = [splits[part] for part in ("train", "val") if part in splits]
        if seen and "test" in splits:
            out[name] = content_overlap(seen, splits["test"])
        if "val" in splits and "train" in splits:
            found = content_overlap([splits["train"]], splits["val"])
            if found["shared"]:
                out[f"{name} (val)"] = found | {"split": "val"}
    return out


def strays(groups: Mapping[str, Mapping[str, Index]]) -> list[tuple[str, dict[str, Any]]]:
    """Test content of one modality that another one of the same kind trains on.

    Names alone say what belongs together; where they mislead, this still sees the leak. Texts are
    left out: equal short ones are no leak. Returns (a name for it, `content_overlap`).
    """
    out = []
    for name, other in itertools.permutations(groups, 2):
        held = groups[name].get("test", groups[name].get("val"))
        seen = [index for part, index in groups[other].items() if part != "test"]
        if held is None or not seen or held.shards[0].kind == "text":
            continue
        if held.shards[0].kind != seen[0].shards[0].kind:
            continue
        found = content_overlap(seen, held)
        if found["shared"]:
            split = "test" if "test" in groups[name] else "val"
            out.append((f"{name}, in {other}", found | {"split": split}))
    return out


def content_overlap(train: Sequence[Index], test: Index) -> dict[str, Any]:
    """Test samples whose content hash also occurs in any of `train`.

    Returns {"test": samples, "shared": how many, "share": 0..1, "examples": [[test key, train
    key], ...]}.
    """
    seen: dict[str, str] = {}
    for index in train:
        seen.update(zip(index.hashes, index.keys, strict=True))
    hits = [
        [key, seen[digest]]
        for key, digest in zip(test.keys, test.hashes, strict=True)
        if digest in seen
    ]
    return {
        "test": len(test),
        "shared": len(hits),
        "share": len(hits) / max(1, len(test)),
        "examples": hits[:EXAMPLES],
    }


def overlap_sentence(name: str, found: Mapping[str, Any]) -> str:
    """What `content_overlap` found, as a sentence without its full stop."""
    pairs = ", ".join(f"{test} = {train}" for test, train in found["examples"])
    split = found.get("split", "test")
    return (
        f"{name}: {found['shared']} of {found['test']} {split} samples ({found['share']:.1%}) also "
        f"occur in train ({split} key = train key: {pairs})"
    )


def copies(groups: Mapping[str, Mapping[str, Index]]) -> list[str]:
    """A sentence for every split with shards of equal bytes: their samples count twice."""
    out = []
    for name, splits in groups.items():
        for part, index in splits.items():
            first: dict[str, str] = {}
            more = [s.url for s in index.shards if first.setdefault(s.sha256, s.url) != s.url]
            if more:
                same = next(s for s in index.shards if s.url == more[0]).sha256
                out.append(
                    f"{name} ({part}): {name_of(more[0])} holds the same as "
                    f"{name_of(first[same])}, {len(more)} such in all: every sample counts again"
                )
    return out


# ----------------------------------------------------------------------------------- labels


def unlabelled(groups: Mapping[str, Mapping[str, Index]]) -> list[str]:
    """A sentence for every split that lacks labels which its modality has elsewhere."""
    out = []
    for name, splits in groups.items():
        without = {part: int((index.labels < 0).sum()) for part, index in splits.items()}
        if all(count == len(splits[part]) for part, count in without.items()):
            continue  # a modality without labels is legal
        for part, count in without.items():
            if count:
                out.append(f"{name} ({part}): {count} of {len(splits[part])} samples have no label")
    return out


def check_classes(lists: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError with the differences when class lists (by the name of their data) differ."""
    entries = list(lists.items())
    problems = []
    for (first, ours), (other, theirs) in zip(entries[:1] * len(entries), entries, strict=True):
        if tuple(ours) != tuple(theirs):
            problems.append(f"class lists differ: {_differences(first, ours, other, theirs)}")
    if problems:
        raise UserError(problems)


def _differences(first: str, ours: Sequence[str], other: str, theirs: Sequence[str]) -> str:
    parts = []
    for name, mine, lacking, others in (
        (first, ours, other, theirs),
        (other, theirs, first, ours),
    ):
        there, left = set(others), sorted(set(others) - set(mine))
        extra = [c for c in mine if c not in there]
        if extra:
            more = f" and {len(extra) - EXAMPLES} more" if len(extra) > EXAMPLES else ""
            shown = ", ".join(f"'{c}'{near(c, left)}" for c in extra[:EXAMPLES])
            parts.append(f"{name} has {shown}{more}, which {lacking} lacks")
    if not parts:
        at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        parts.append(
            f"same names in another order: class {at} is '{ours[at]}' in {first} and "
            f"'{theirs[at]}' in {other}"
        )
    return "; ".join(parts)


def check_labels(index: Index, num_classes: int, where: str) -> list[str]:
    """A sentence for each of the first labels that no class belongs to, with shard and key."""
    rows = np.flatnonzero(index.labels >= num_classes)
    problems = []
    if len(rows) and (hint := counted_from_one(index.labels, num_classes)):
        problems.append(f"{where}: {hint}")
    for row in rows[:EXAMPLES]:
        shard, place = index.locate(int(row))
        problems.append(
            f"{where}: label {shard.labels[place]} of key {shard.keys[place]} in {shard.url} is "
            f"out of range: there are {num_classes} classes, 0 to {num_classes - 1}"
        )
    if len(rows) > EXAMPLES:
        problems.append(f"{where}: {len(rows) - EXAMPLES} more labels are out of range")
    return problems


def counted_from_one(labels: np.ndarray, num_classes: int) -> str | None:
    """A sentence where labels look counted from 1 though the names count from 0."""
    used = labels[labels >= 0]
    if len(used) and used.min() >= 1 and used.max() == num_classes:
        return (
            f"its labels run from {used.min()} to {num_classes}, the names in classes.json from 0: "
            "it seems that the labels count from 1, so that every name is one off"
        )
    return None


def unnamed_classes(indices: Sequence[Index]) -> tuple[int, list[str]]:
    """(number of classes, problems) of data without classes.json, whose labels name themselves.

    Whatever the labels are, this takes no more memory than they do.
    """
    used = [np.unique(index.labels[index.labels >= 0]) for index in indices]
    present = np.unique(np.concatenate([np.zeros(0, np.int64), *used]))
    if not len(present):
        return 0, []
    first, top, count = int(present[0]), int(present[-1]), len(present)
    if top + 1 - count > max(count, LEAST_HOLES):
        return count, [
            f"the labels are ids, not 0 to C-1: {count} different ones, from {first} to {top}, and "
            f"there is no classes.json. Write each class's number, 0 to {count - 1}, instead (`uml "
            "prepare` does so for a table or class folders), its names in that order into "
            "classes.json beside the shards"
        ]
    if first:
        none = "class 0 has" if first == 1 else f"classes 0 to {first - 1} have"
        return top + 1, [
            f"the labels start at {first}: {none} no sample. Count the classes from 0, or put "
            f"classes.json with {top + 1} names, from that of label 0 on, beside the shards"
        ]
    return top + 1, []


def lopsided(groups: Mapping[str, Mapping[str, Index]]) -> list[str]:
    """A sentence for the classes of a modality that its train split has and its val or test split
    lacks, and the other way round."""
    out = []
    for name, splits in groups.items():
        for part in ("val", "test"):
            if "train" not in splits or part not in splits:
                continue
            train, held = splits["train"], splits[part]
            seen, asked = (np.unique(i.labels[i.labels >= 0]) for i in (train, held))
            if not len(seen) or not len(asked):
                continue
            if len(only := np.setdiff1d(asked, seen)):
                out.append(
                    f"{name}: {_classes(only, held)} in {part}, but {_has(only)} no training sample"
                )
            if len(only := np.setdiff1d(seen, asked)):
                total = len(np.union1d(seen, asked))
                out.append(
                    f"{name}: {_classes(only, train)} in train, but {_has(only)} no {part} sample: "
                    f"{part} accuracy is measured on {len(asked)} of {total} classes"
                )
    return out


def _has(labels: np.ndarray) -> str:
    return "has" if len(labels) == 1 else "have"


def _classes(labels: np.ndarray, index: Index) -> str:
    """`class 'a' is` or `3 classes ('a', 'b', 'c') are`."""
    names = index.classes or ()
    shown = [f"'{names[k]}'" if k < len(names) else str(k) for k in labels[:NAMED]]
    if len(labels) == 1:
        return f"class {shown[0]} is"
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return f"{len(labels)} classes ({', '.join(shown)}{more}) are"


# ---------------------------------------------------------------------------------- sources


def shared_sources(parts: Mapping[str, Sequence[Index]]) -> list[dict[str, Any]]:
    """Pairs in disguise: sources that samples of two modalities name alike.

    parts: modality -> its indices (all splits). A source is compared without letter case, without
    the file's suffix and, where one side gives more of the path, from the end. Numbers alone mean
    nothing, for many data sets are simply numbered, unless far more agree than chance explains.
    Returns one {"modalities": [a, b], "count", "share", "examples"} per pair that shares any;
    share is of the modality with fewer sources.
    """
    classes = {
        name.casefold() for indices in parts.values() for i in indices for name in i.classes or ()
    }
    words = _SPLIT_WORDS | {word for name in classes for word in _LETTERS.findall(name)}
    ids = {name: _source_ids(indices) for name, indices in parts.items()}
    found = []
    for a, b in itertools.combinations(ids, 2):
        common = _matches(ids[a], ids[b])
        named = sorted(source for source in common if _is_named(source, words))
        numbers = [source for source in common if not _is_named(source, words)]
        if _beyond_chance(numbers, ids[a], ids[b], words):
            named += sorted(numbers)
        if named:
            fewer = min(len(ids[a]), len(ids[b]))
            found.append(
                {
                    "modalities": [a, b],
                    "count": len(named),
                    "share": len(named) / fewer,
                    "examples": named[:EXAMPLES],
                }
            )
    return found


def source_sentence(item: Mapping[str, Any]) -> str:
    """What `shared_sources` found for two modalities, as a sentence without its full stop."""
    a, b = item["modalities"]
    examples = ", ".join(f"'{source}'" for source in item["examples"])
    count = f"{item['count']} source{'s' * (item['count'] != 1)}"
    return (
        f"{a} and {b} share {count} ({item['share']:.0%} of the smaller), such as {examples}: "
        "pairs in disguise? A result on them says nothing about unpaired data"
    )


def _source_ids(indices: Sequence[Index]) -> set[str]:
    out = set()
    for index in indices:
        for source in index.sources:
            if source is not None:
                path = source.replace("\\", "/").casefold()
                out.add(re.sub(r"\.[a-z][a-z0-9]{0,4}$", "", path).strip("./ "))
    return out - {""}


def _matches(a: Collection[str], b: Collection[str]) -> set[str]:
    """Ids of either side that the other side has, whole or as the end of a longer path."""
    a, b = set(a), set(b)
    return {end for one, other in ((a, b), (b, a)) for s in one for end in _ends(s) & other}


def _ends(path: str) -> set[str]:
    parts = path.split("/")
    return {"/".join(parts[i:]) for i in range(len(parts))}


def _is_named(source: str, words: Collection[str]) -> bool:
    """Whether an id says more than a number within a class or split."""
    return any(word not in words for word in _LETTERS.findall(source))


def _beyond_chance(
    common: Sequence[str], a: Collection[str], b: Collection[str], words: Collection[str]
) -> bool:
    """Whether two numbered sets agree far more often than two draws from one range would.

    Two modalities numbered 1..N share every number by chance; two that share most of a few
    thousand picture numbers out of a million do not. The range leaves out the outermost tenth,
    which a single odd number would stretch.
    """
    sides = [_numbers(s for s in ids if not _is_named(s, words)) for ids in (a, b)]
    if min(map(len, sides)) == 0:
        return False
    low, high = np.percentile(np.concatenate(sides), [5, 95])
    counts = [int(((side >= low) & (side <= high)).sum()) for side in sides]
    hits = _numbers(common)
    shared = int(((hits >= low) & (hits <= high)).sum())
    expected = counts[0] * counts[1] / (high - low + 1)
    return shared >= LEAST_NUMBERS and shared > MORE_THAN_CHANCE * expected


def _numbers(ids: Any) -> np.ndarray:
    """The last number in each id (those of more than 15 digits are left out), as floats."""
    runs = (re.findall(r"\d+", source) for source in ids)
    return np.array([float(run[-1]) for run in runs if run and len(run[-1]) <= 15])
