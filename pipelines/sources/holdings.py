"""What a folder of shards holds: which modality and split each belongs to, and how much it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.reporting.terminal import table
from pipelines.streams import foreign, layout, storage
from pipelines.streams.index import Shard
from pipelines.streams.layout import SPLITS, UNSPLIT
from pipelines.streams.shards import Index
from uml_core.addresses import problem_of
from uml_core.errors import UserError

DEPTH = 4  # folders below the one given in which shards are looked for
_UNFINISHED = (".part", ".partial", ".incomplete", ".crdownload", ".aria2", ".download", ".tmp")

Groups = dict[str, dict[str, Index]]  # modality -> split -> index


@dataclass
class Shelf:
    """The shards that lie in a folder, what there is none though it is called so, and what else.

    problems  (path, cause)
    """

    urls: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def shards_in(source: str) -> Shelf:
    """The shards of a folder or a store's prefix.

    Those in the folder itself and in folders below it whose names tell a split; where it has none
    of its own, those in all folders below. Raises UserError where there is nothing.
    """
    if problem := problem_of(source):
        raise UserError(problem)
    if storage.is_remote(source):
        shelf = Shelf(storage.tars_below(source.rstrip("/")))
        top = [url for url in shelf.urls if storage.folder_of(url) == source.rstrip("/")]
        shelf.urls = top or shelf.urls
        if not shelf.urls:
            raise UserError(f"{source} holds no tar")
        return shelf
    root = os.path.abspath(source)
    shelf, skipped, others = Shelf(), Counter[str](), Counter[str]()
    found = list(_walk(root))
    own = any(names and folder == root for folder, names in found if _shards(folder, names))
    for folder, names in found:
        inside = os.path.relpath(folder, root)
        told = any(layout.place(f"/-/{part}/0.tar").split for part in inside.split(os.sep))
        if own and folder != root and not told:
            if tars := len(_shards(folder, names)):
                skipped[inside] += tars
            continue
        for name in names:
            path = os.path.join(folder, name)
            if (cause := _no_shard(path)) is not None:
                shelf.problems.append((path, cause))
            elif name.lower().endswith(".tar"):
                shelf.urls.append(path)
            else:
                others[os.path.splitext(name)[1] or "without suffix"] += 1
    if skipped:
        count, first = sum(skipped.values()), min(skipped)
        shelf.notes.append(
            f"{count} more tar{'s' * (count != 1)} in folders below, such as {first}, not looked "
            f"at: name the folders too, or a recipe"
        )
    if not shelf.urls and not shelf.problems:
        there = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items())[:6])
        advice = f", only {there}: `uml prepare` makes shards of files" if there else ""
        raise UserError(f"{source} holds no tar{advice}")
    shelf.urls.sort()
    return shelf


def _walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """(folder, its names that are not hidden, without the folders that are walked)."""
    seen: set[str] = set()  # a link may lead back up
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        tars = [name for name in folders if name.lower().endswith(".tar")]
        deep = os.path.relpath(folder, root).count(os.sep) + (folder != root) >= DEPTH
        folders[:] = [] if deep else sorted(n for n in folders if n[0] != "." and n not in tars)
        yield folder, sorted(name for name in (*files, *tars) if name[0] != ".")


def _shards(folder: str, names: Iterable[str]) -> list[str]:
    return [n for n in names if n.lower().endswith(".tar") or _no_shard(os.path.join(folder, n))]


def _no_shard(path: str) -> str | None:
    """Why something called like a shard cannot be read as one; None for shards and other files."""
    name = os.path.basename(path).lower()
    if name.endswith(".tar"):
        cause = foreign.no_shard(path)
        return None if cause is None else cause.removeprefix(f"{path} is ")
    if ".tar" in name and name.endswith(_UNFINISHED):
        return "an unfinished download: finish or remove it"
    tool = foreign.compressed_name(name)
    if tool is not None and (".tar." in name or name.endswith((".tgz", ".tbz2", ".txz"))):
        return f"a compressed tar: {tool} it. Samples are read from the middle of a tar"
    return None


def group(shards: Iterable[Shard], classes: tuple[str, ...] | None) -> Groups:
    """The indices of shards by the modality and split that their names tell (`layout`)."""
    by_url = {shard.url: shard for shard in shards}
    found = layout.arrange(list(by_url), lambda urls: by_url[urls[0]].kind)
    out: Groups = {}
    for (modality, split), urls in found.groups.items():
        index = Index(tuple(by_url[url] for url in urls), classes)
        out.setdefault(modality, {})[split or UNSPLIT] = index
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
        for split in sorted(splits, key=(*SPLITS, UNSPLIT).index):
            found = facts(splits[split])
            counts = list(found["class_histogram"].values())
            each = f"{min(counts)}-{max(counts)}" if counts else "-"
            rows.append(
                [
                    modality if split == UNSPLIT else f"{modality} {split}",
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
