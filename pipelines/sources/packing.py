"""Samples -> shards: checked, ordered and written by tasks, published all or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.sources.decoding import Decoder, plain
from pipelines.sources.parallel import Job, each
from pipelines.sources.reading import Item, Listing
from pipelines.streams.index import Shard, check_own, from_json, to_json
from pipelines.streams.scan import content_hash
from pipelines.streams.shards import (
    PER_SHARD,
    SHARD_BYTES,
    Sample,
    write_classes,
    write_index,
    write_shard,
)
from uml_core.errors import RunError, UserError
from uml_core.worlds import World, open_world

CHUNK = 256  # samples that one checking task decodes
WORLD_COST = 256  # a generated sample counts as that many bytes of work (0.25 ms or less)


@dataclass(frozen=True)
class Ready:
    """A sample that decodes, with its label and content hash."""

    item: Item
    label: int | None
    hash: str


@dataclass(frozen=True)
class Packing:
    """Where and how the samples of one modality become shards."""

    folder: Path
    modality: str
    kind: str
    classes: Sequence[str] | None
    per_shard: int = PER_SHARD
    seed: int = 0


# --------------------------------------------------------------------------------- checking


def check_samples(listing: Listing, options: Any) -> tuple[list[str | None], list[tuple[str, str]]]:
    """(content hash per item, None for bad ones; the bad ones as (name, cause)).

    Raises UserError when the samples are not all of one size.
    """
    items = listing.items
    fields = plain(options)
    jobs = [
        {
            "kind": listing.kind,
            "options": fields,
            "items": [[_absolute(item), item.text] for item in items[i : i + CHUNK]],
        }
        for i in range(0, len(items), CHUNK)
    ]
    results = each(
        check_chunk,
        jobs,
        sizes=[len(job["items"]) for job in jobs],
        cost=sum(map(_bytes_of, items)),
        title="Checking",
        unit="samples",
    )
    dims = {dim for _, dim in results} - {None}
    if len(dims) > 1:
        sizes = " or ".join(map(str, sorted(dims)))
        raise UserError(f"the samples are not of one size: they hold {sizes} numbers each")
    found = [pair for part, _ in results for pair in part]
    bad = [(item.name, cause) for item, (_, cause) in zip(items, found, strict=True) if cause]
    return [digest for digest, _ in found], bad


def check_chunk(job: Job) -> tuple[list[tuple[str | None, str | None]], int | None]:
    """[(content hash, None) or (None, cause)] of some samples, and their dimension if any."""
    decoder = Decoder(job["kind"], job["options"])
    out: list[tuple[str | None, str | None]] = []
    for path, text in job["items"]:
        item = Item("", path=path, text=text)
        try:
            data = _payload(item)
        except OSError as error:
            out.append((None, f"it cannot be read: {error.strerror}"))
            continue
        cause = decoder.cause(data, item.suffix)
        out.append((None, cause) if cause else (_hash(data, item.suffix), None))
    return out, decoder.dim


def draw_test(samples: Sequence[tuple[str, int | None]], share: float, seed: int) -> frozenset[str]:
    """The content hashes whose samples make the test split, drawn per class.

    samples: (content hash, label). Equal contents stay together, so that none is in both splits;
    the draw depends on contents and seed only, not on names or order. Every class of two or more
    contents has some in both splits.
    """
    by_class: dict[int | None, list[str]] = defaultdict(list)
    label_of: dict[str, int | None] = {}
    for digest, label in samples:
        if digest not in label_of:
            label_of[digest] = label
            by_class[label].append(digest)
    chosen: list[str] = []
    for digests in by_class.values():
        count = round(share * len(digests))
        if share > 0 and len(digests) > 1:
            count = min(max(count, 1), len(digests) - 1)
        chosen += sorted(digests, key=lambda digest: _rank(seed, digest))[:count]
    return frozenset(chosen)


# ---------------------------------------------------------------------------------- writing


def write(pack: Packing, splits: Mapping[str, Sequence[Ready]]) -> list[Shard]:
    """Writes the shards of one modality, their index and the class list; all or nothing.

    The order of samples is drawn by seed, so that classes are mixed within every shard. Raises
    RunError when the disk is full or a file changed since it was checked.
    """
    jobs: list[Job] = []
    for split, samples in sorted(splits.items()):
        order = sorted(samples, key=lambda s: _rank(pack.seed, f"{s.hash}|{s.item.name}"))
        first = 0
        for number, part in enumerate(_parts(order, pack.per_shard)):
            items = [
                {
                    "key": f"{pack.modality}-{split}-{first + i:06d}",
                    "path": _absolute(sample.item),
                    "text": sample.item.text,
                    "label": sample.label,
                    "source": sample.item.source,
                    "hash": sample.hash,
                }
                for i, sample in enumerate(part)
            ]
            jobs.append({"name": _shard_name(pack.modality, split, number), "items": items})
            first += len(part)
    cost = sum(_bytes_of(s.item) for samples in splits.values() for s in samples)
    return _publish(pack, write_part, jobs, [len(job["items"]) for job in jobs], cost)


def write_part(job: Job) -> Job:
    """Writes one shard of files and texts; returns {"shard": its index entry} or {"error"}."""

    def samples() -> Iterator[Sample]:
        for entry in job["items"]:
            item = Item("", path=entry["path"], text=entry["text"])
            data = _payload(item)
            if _hash(data, item.suffix) != entry["hash"]:
                raise UserError(f"{item.path} changed while it was read: run the command again")
            yield Sample(entry["key"], item.suffix, data, entry["label"], entry["source"])

    return _written(job, samples())


def write_world(
    world: World,
    folder: Path,
    seed: int,
    counts: Mapping[tuple[str, str], int],
    per_shard: int = PER_SHARD,
) -> list[Shard]:
    """Writes (modality, split) -> n samples of an embedded world; all or nothing."""
    pack = Packing(folder, world.name, "", world.class_names, per_shard, seed)
    jobs: list[Job] = []
    for (modality, split), n in counts.items():
        for number, start in enumerate(range(0, n, per_shard)):
            part = [modality, split, min(per_shard, n - start), seed, start]
            jobs.append(
                {
                    "name": _shard_name(modality, split, number),
                    "kind": world.kinds[modality],
                    "world": world.name,
                    "part": part,
                }
            )
    sizes = [job["part"][2] for job in jobs]
    return _publish(pack, write_world_part, jobs, sizes, WORLD_COST * sum(sizes))


def write_world_part(job: Job) -> Job:
    """Writes one shard of a world; as `write_part`."""
    drawn = open_world(job["world"]).sample(*job["part"])
    return _written(job, (Sample(d.key, d.suffix, d.data, d.label, d.source) for d in drawn))


def _written(job: Job, samples: Iterator[Sample]) -> Job:
    try:
        return {"shard": to_json(write_shard(job["path"], samples, job["kind"]))}
    except (UserError, RunError) as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"{error.filename or job['path']}: {error.strerror}"}


def _publish(
    pack: Packing, work: Callable[[Job], Job], jobs: list[Job], sizes: list[int], cost: int
) -> list[Shard]:
    """Lets tasks write into a folder of their own, then moves the shards into place."""
    check_own(str(pack.folder))
    pack.folder.mkdir(parents=True, exist_ok=True)
    stage = tempfile.mkdtemp(prefix=".uml-prepare-", dir=pack.folder)
    try:
        for job in jobs:
            job.setdefault("kind", pack.kind)
            job["path"] = os.path.join(stage, job["name"])
        results = each(work, jobs, sizes=sizes, cost=cost, title="Writing", unit="samples")
        errors = [result["error"] for result in results if "error" in result]
        if errors:
            more = f" (and {len(errors) - 1} more shards)" if len(errors) > 1 else ""
            raise RunError(f"nothing was written: {errors[0]}{more}")
        shards = []
        for job, result in zip(jobs, results, strict=True):
            shard = from_json(result["shard"], job["path"])
            assert shard is not None
            final = str(pack.folder / job["name"])
            os.replace(job["path"], final)
            shards.append(replace(shard, url=final))
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not any(pack.folder.iterdir()):
            pack.folder.rmdir()
    if pack.classes is not None:
        write_classes(str(pack.folder), pack.classes)
    write_index(str(pack.folder), shards)
    return shards


def _shard_name(modality: str, split: str, number: int) -> str:
    return f"{modality}-{split}-{number:06d}.tar"


def _parts(samples: Sequence[Ready], per_shard: int) -> Iterator[list[Ready]]:
    """Shards' worth of samples: closed at `per_shard` samples or `SHARD_BYTES` bytes."""
    part: list[Ready] = []
    size = 0
    for sample in samples:
        part.append(sample)
        size += _bytes_of(sample.item)
        if len(part) >= per_shard or size >= SHARD_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _payload(item: Item) -> bytes:
    if item.path is None:
        return (item.text or "").encode()
    with open(item.path, "rb") as file:
        return file.read()


def _hash(data: bytes, suffix: str) -> str:
    return content_hash(data, text=suffix == "txt")


def _bytes_of(item: Item) -> int:
    if item.path is None:
        return len(item.text or "")
    try:
        return os.path.getsize(item.path)
    except OSError:
        return 0  # the check names it as unreadable


def _rank(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}|{name}".encode("utf-8", "surrogateescape")).digest()


def _absolute(item: Item) -> str | None:
    """A task may run in another working directory."""
    return None if item.path is None else os.path.abspath(item.path)
