"""What a folder of shards holds: which modality and split each belongs to, and how much it is."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.reporting.terminal import table
from pipelines.streams import storage
from pipelines.streams.index import Shard
from pipelines.streams.shards import Index

SPLITS = ("train", "val", "test")
_NAME = re.compile(
    r"^(?P<modality>.+?)[-_.](?P<split>train|val|valid|test)(?:[-_.].*)?\.tar$", re.I
)

Groups = dict[str, dict[str, Index]]  # modality -> split -> index


def place(url: str) -> tuple[str, str]:
    """(modality, split) as a shard's name tells them; unusual names are the training split."""
    name = storage.name_of(url)
    match = _NAME.match(name)
    if match is None:
        return re.sub(r"[-_.]?\d*$", "", name.removesuffix(".tar")) or name, "train"
    split = match["split"].lower()
    return match["modality"], "val" if split == "valid" else split


def group(shards: Iterable[Shard], classes: tuple[str, ...] | None) -> Groups:
    """The indices of shards by the modality and split that their names tell."""
    found: dict[tuple[str, str], list[Shard]] = {}
    for shard in sorted(shards, key=lambda shard: shard.url):
        found.setdefault(place(shard.url), []).append(shard)
    out: Groups = {}
    for (modality, split), group_shards in sorted(found.items()):
        out.setdefault(modality, {})[split] = Index(tuple(group_shards), classes)
    return out


def facts(index: Index) -> dict[str, Any]:
    """Counts of one split for a JSON report; the histogram's keys are class names or labels."""
    labels, counts = _histogram(index)
    return {
        "kind": index.shards[0].kind,
        "shards": len(index.shards),
        "samples": len(index),
        "bytes": sum(shard.bytes for shard in index.shards),
        "unlabelled": int((index.labels < 0).sum()),
        "class_histogram": dict(zip(labels, counts, strict=True)),
    }


def summary(groups: Mapping[str, Mapping[str, Index]]) -> Table:
    """One line per modality and split."""
    rows = []
    for modality, splits in groups.items():
        for split in sorted(splits, key=SPLITS.index):
            found = facts(splits[split])
            counts = list(found["class_histogram"].values())
            each = f"{min(counts)}-{max(counts)}" if counts else "-"
            rows.append(
                [
                    f"{modality} {split}",
                    found["kind"],
                    str(found["shards"]),
                    str(found["samples"]),
                    str(sum(count > 0 for count in counts)),
                    each,
                    size(found["bytes"]),
                ]
            )
    return table(["data", "kind", "shards", "samples", "classes", "per class", "size"], rows)


def size(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def shown_path(path: Path) -> str:
    """A path as a person would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _histogram(index: Index) -> tuple[list[str], list[int]]:
    """Every class of the list, also empty ones, and whatever labels lie outside it."""
    names = index.classes or ()
    counts = Counter(index.labels[index.labels >= 0].tolist())
    labels = [*range(len(names)), *sorted(k for k in counts if k >= len(names))]
    return [names[k] if k < len(names) else str(k) for k in labels], [counts[k] for k in labels]
