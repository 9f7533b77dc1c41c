"""What the folders of a source mean: splits, classes, or one more folder around them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def normal(name: str) -> str:
    """A class name as it is compared: trimmed, composed accents (file systems differ in these)."""
    return unicodedata.normalize("NFC", str(name).strip())


def split_of(name: str) -> tuple[str, str] | None:
    """(split, the rest of the name) of a folder such as test, seg_train, val2017, test_set."""
    words = [w for w in re.split(r"[^a-z]+", name.lower()) if w]
    found = [w for w in words if w in SPLITS]
    if len(found) != 1:
        return None
    return SPLITS[found[0]], " ".join("" if w in SPLITS else w for w in words).strip()


def places(names: Sequence[str], notes: list[str]) -> dict[str, tuple[str | None, str | None]]:
    """File -> (split, class) for paths below a source: [around/][split/][around/]class/.../file.

    The split is None where the folders name none, and "" for files beside the split folders; the
    class is None for a file in no class folder. Whatever was decided against a plainer reading is
    told in `notes`.
    """
    parts = {name: name.split("/") for name in names}
    _unwrap(parts, notes)
    splits = _splits(parts)
    if splits is not None:
        groups: dict[str | None, dict[str, list[str]]] = defaultdict(dict)
        for name, rest in parts.items():
            split = splits.get(rest[0], "") if len(rest) > 1 else ""
            groups[split][name] = rest[1:] if split else rest
        told = [t for t in splits if t.lower() not in SPLITS]
        if told:
            notes.append(f"split folders: {', '.join(f'{t} ({splits[t]})' for t in sorted(told))}")
        for part, inner in groups.items():
            if part:
                _unwrap(inner, notes, part)
    else:
        groups = _splits_below(parts, notes) or {None: parts}
    out = {name: (s, _label(rest)) for s, inner in groups.items() for name, rest in inner.items()}
    spelled: dict[str, set[str]] = defaultdict(set)
    for inner in groups.values():
        for rest in inner.values():
            if len(rest) > 1:
                spelled[normal(rest[0])].add(rest[0])
    for label, ways in sorted(spelled.items()):
        if len(ways) > 1:
            notes.append(
                f"{len(ways)} folders are one class, '{label}': their names differ in blanks or in "
                "how accents are stored only"
            )
    return {name: out[name] for name in names}


def _label(rest: Sequence[str]) -> str | None:
    return (normal(rest[0]) or None) if len(rest) > 1 else None


def _unwrap(parts: dict[str, list[str]], notes: list[str], split: str | None = None) -> None:
    """Takes off folders that lie around the classes: archives are often unpacked into one more."""
    while parts:
        tops = {rest[0] for rest in parts.values()}
        if len(tops) > 1 or min(map(len, parts.values())) < 3:
            return
        [top] = tops
        same = split is not None and (split_of(top) or ("",))[0] == split
        if split is None and split_of(top) is not None:
            return
        inner = {rest[1] for rest in parts.values()}
        if not same and len(inner) < 2:
            return
        if all(i.lower() in SPLITS for i in inner) and min(map(len, parts.values())) < 4:
            return  # a class, divided
        if not same:
            notes.append(f"{top}: taken for a folder around the classes, not for a class")
        for name, rest in parts.items():
            parts[name] = rest[1:]


def _splits(parts: dict[str, list[str]]) -> dict[str, str] | None:
    """Top folder -> split, where the tops are splits: train and another one, named alike."""
    tops = {rest[0] for rest in parts.values() if len(rest) > 1}
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for top in tops:
        if (found := split_of(top)) is not None:
            groups[found[1]][top] = found[0]
    best = max(groups.values(), key=lambda group: len(set(group.values())), default={})
    found_splits = set(best.values())
    if "train" in found_splits and len(found_splits) > 1:
        return best
    deep = min(map(len, parts.values()), default=0) > 2
    return best if best and deep and set(best) == tops else None


def _splits_below(
    parts: dict[str, list[str]], notes: list[str]
) -> dict[str | None, dict[str, list[str]]] | None:
    """Files by split where every class folder holds the split folders."""
    found: dict[str | None, dict[str, list[str]]] = defaultdict(dict)
    for name, rest in parts.items():
        split = split_of(rest[1]) if len(rest) > 2 else None
        if split is None or rest[1].lower() not in SPLITS:
            return None
        found[split[0]][name] = [rest[0], *rest[2:]]
    if "train" not in found or len(found) < 2:
        return None
    notes.append("each class folder holds its splits")
    return found
