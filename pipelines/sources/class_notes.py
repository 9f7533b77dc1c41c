"""What a person should know of the classes of new shards: names that look alike, empty splits."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from pipelines.sources.folders import normal
from pipelines.sources.packing import Ready
from pipelines.sources.tables import shown

MISSING = ("nan", "none", "null", "n/a", "na", "<na>")  # how missing values are written


def loose(name: str) -> str:
    """A class name without case, `_`, `-` and double blanks."""
    return re.sub(r"[\s_-]+", " ", normal(name)).casefold().strip()


def name_notes(classes: Sequence[str]) -> list[str]:
    """Sentences on names that may be one class twice, or no class at all."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[loose(name)].append(name)
    out = [
        f"classes {shown(names)} differ in case or separators only, and stay {len(names)} classes"
        for names in alike.values()
        if len(names) > 1
    ]
    odd = [name for name in classes if name.casefold() in MISSING]
    if odd:
        out.append(f"class {shown(odd)}: a missing value that was written as a word?")
    return out


def class_notes(
    splits: Mapping[str, Sequence[Ready]], classes: Sequence[str] | None, *, drawn: bool
) -> list[str]:
    """`name_notes`, and sentences on classes that a split lacks.

    drawn  whether a test split was to be drawn
    """
    if classes is None:
        return []
    out = name_notes(classes)
    counts = {split: Counter(s.label for s in samples) for split, samples in splits.items()}
    found = {label for count in counts.values() for label in count if label is not None}
    if len(found) == 1 and len(classes) == 1:
        out.append(f"all samples are of one class, '{classes[0]}': is it one?")
    if (
        drawn
        and list(splits) == ["train"]
        and found
        and len(counts["train"]) == len(splits["train"])
    ):
        out.append("each class has one sample: no test split can be drawn, nor a validation set")
    for split, count in sorted(counts.items()):
        lacking = [classes[k] for k in sorted(found) if not count[k]]
        if lacking:
            out.append(
                f"{split} has no sample of {len(lacking)} of {len(found)} classes: {shown(lacking)}"
                + (" (a class with a single content cannot be divided)" if split == "test" else "")
            )
    return out
