"""A frozen encoder over shards: feature shards of the same samples, on an actor pool of Ray Data.

    uml embed data/mine --encoder DIR --modality image --out data/mine-features
    uml embed data/mine --encoder timm:vit_small_patch14_dinov2.lvd142m --out data/mine-dino
    uml embed data/mine --encoder sentence:sentence-transformers/all-MiniLM-L6-v2 --modality text \\
        --out data/mine-features
    uml embed data/mine --encoder DIR --tokens --out data/mine-tokens

DATA is a folder of shards (`uml prepare`). Every split of one modality is encoded; several
modalities go into one --out, one call each. --encoder is a folder of transformers, timm or
sentence-transformers, or transformers:ID, timm:NAME, sentence:ID, torchvision:NAME[=FILE],
torchaudio:BUNDLE[=FILE] with weights from the usual cache. Preprocessing is the encoder's own.

Leaves in --out: <modality>-<split>-*.tar with one .npy per sample (kind `vector`; with --tokens the
series of all patches, tokens or frames, kind `sequence`), the keys, labels and sources of DATA,
classes.json, and index.json, which names the encoder, the hash of its weights and its
preprocessing. Samples that cannot be used go to quarantine.jsonl. --resume goes on with a job that
was stopped; what is done is never done again. On a cluster, DATA, the weights and --out must be
visible to every node.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines import cli
from pipelines.files import local_path, new_folder
from pipelines.predict import (
    add_pool_arguments,
    check_pool_arguments,
    wanted_nodes,
)
from pipelines.reporting import terminal
from pipelines.running.actors import Part, Report, parts_of, run_parts
from pipelines.running.decoded import decoded
from pipelines.running.folder import kept
from pipelines.running.lock import alone, content
from pipelines.sources import holdings
from pipelines.sources.inputs import Raw, ShardInputs
from pipelines.sources.inspection import kinds_in, why_no_kind
from pipelines.streams import gaps, layout
from pipelines.streams.classes import CLASSES_NAME
from pipelines.streams.index import (
    MAX_INDEX_BYTES,
    Shard,
    check_out_folder,
    check_own,
    from_json,
    read_json,
    suffixes_of,
    to_json,
)
from pipelines.streams.quarantine import FILE, Quarantine
from pipelines.streams.shards import (
    Index,
    Sample,
    load_index,
    write_classes,
    write_index,
    write_shard,
)
from uml_core.encoders import Encoder, locate, open_encoder
from uml_core.encoders.base import Pooling, Wanted
from uml_core.encoders.opening import Located, reference
from uml_core.errors import RunError, UserError, near
from uml_core.sizing import BatchSize

KINDS = ("image", "text", "audio")
PER_PART = 500  # samples of a shard of features, and of an actor's task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("data", metavar="DATA", help="a folder of shards")
    parser.add_argument("--encoder", required=True, metavar="NAME", help="folder, or LIBRARY:NAME")
    parser.add_argument("--modality", metavar="NAME", help="which one (default: the only one)")
    parser.add_argument("--split", choices=layout.SPLITS, help="of shards whose names tell none")
    cli.add_member(parser)
    parser.add_argument("--tokens", action="store_true", help="all positions, not one vector")
    parser.add_argument(
        "--pooling",
        choices=Pooling.__args__,  # type: ignore[attr-defined]
        default="auto",
        help="of transformers models (default: as the model was made for)",
    )
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float32", help="of the features"
    )
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    add_pool_arguments(parser, PER_PART)


def run(args: argparse.Namespace) -> int:
    """Encodes; returns the exit code."""
    began = time.monotonic()
    if problems := check_pool_arguments(args):
        raise UserError(problems)
    data = local_path(args.data, "DATA")
    modality, splits = _choose(data, args.modality, args.split, args.member)
    kind = next(iter(splits.values())).shards[0].kind
    out = new_folder(args.out or f"{args.data.rstrip('/')}-features")
    found = locate(args.encoder)
    wanted = Wanted("tokens" if args.tokens else "pooled", args.pooling, args.bf16)
    classes = next(iter(splits.values())).classes
    _check_out(out, modality, args.resume, classes)
    if args.dry_run:
        for split, index in splits.items():
            print(f"{modality} {split}: {len(index)} samples of kind {kind}")
        print(f"{found.name}, {holdings.size(found.weights_bytes)} of weights -> {out}")
        return 0
    open_encoder(found, kind, wanted)  # what is wrong with it is told before anything is written
    stage = out / f".uml-embed-{modality}"
    work = Embedding(found, kind, wanted, splits, str(stage), modality, args)
    samples = sum(map(len, splits.values()))
    with alone(out):
        _check_out(out, modality, args.resume, classes)  # another job may have ended since
        kept(stage, work.request())
        reports = run_parts(
            work,
            work.parts(),
            stage / "progress.jsonl",
            title=f"Encoding {modality}",
            quarantine=Quarantine(
                out / FILE, args.quarantine_budget, modality=modality, rows=samples
            ),
            actors=args.actors,
            device=args.device,
            nodes=wanted_nodes(args),
        )
        shards = _publish(out, stage, reports, classes)
    result = _result(modality, reports, shards, time.monotonic() - began)
    if args.json:
        print(json.dumps(result))
        return 0
    _tell(result, shards)
    terminal.print_paths({"features": out})
    return 0


def _choose(
    data: Path, modality: str | None, split: str | None, member: str | None
) -> tuple[str, dict[str, Index]]:
    """The modality that is encoded, and its splits. Raises UserError."""
    if not data.is_dir():
        raise UserError(f"{data} is no folder with shards: `uml prepare` makes one")
    shelf = holdings.shards_in(str(data))
    found = layout.arrange(shelf.urls, lambda urls: _kind(urls[0], member), split)
    problems = [f"{path}: {cause}" for path, cause in (*shelf.problems, *found.problems)]
    if problems:
        raise UserError(problems)
    names = sorted({name for name, _ in found.groups})
    if modality is None:
        if len(names) > 1:
            raise UserError(f"{data} holds {', '.join(names)}: choose one with --modality")
        modality = names[0]
    if modality not in names:
        raise UserError(f"{data} has no shards of '{modality}'{near(modality, names)}")
    if (modality, None) in found.groups:
        raise UserError(f"the names of {data}'s {modality} shards tell no split: give --split")
    splits = {part: urls for (name, part), urls in found.groups.items() if name == modality}
    kind = _kind(next(iter(splits.values()))[0], member)
    return modality, {
        str(part): load_index(urls, ".", kind, member, gaps.alike(urls))
        for part, urls in splits.items()
    }


def _kind(url: str, member: str | None) -> str:
    """What a shard holds, or its member that is asked for; raises UserError where no encoder takes
    it."""
    if member is not None:
        last = member.lower().rpartition(".")[2]
        found = {kind: last for kind in KINDS if last in suffixes_of(kind)}
    else:
        found = kinds_in(url)
    if len(found) > 1:
        there = " and ".join(f"{kind} (.{suffix})" for kind, suffix in found.items())
        ways = " or ".join(f"--member {suffix}" for suffix in found.values())
        raise UserError(f"{url}: its samples hold {there}: say which is meant, {ways}")
    if not found or next(iter(found)) not in KINDS:
        there = f"its members end in .{next(iter(found.values()))}" if found else why_no_kind(url)
        raise UserError(f"{url} holds no picture, text or sound that an encoder takes: {there}")
    return next(iter(found))


def _check_out(out: Path, modality: str, resume: bool, classes: Sequence[str] | None) -> None:
    """Raises UserError where features would be mixed with others, or go on with nothing."""
    stage = out / f".uml-embed-{modality}"
    if resume and not stage.is_dir():
        raise UserError(f"--resume: {out} holds no stopped job of {modality}")
    if stage.is_dir() and not resume:
        raise UserError(f"{out} holds a stopped job: go on with --resume, or remove {stage}")
    if list(out.glob(f"{modality}-*.tar")) and not resume:
        raise UserError(f"{out} already holds features of {modality}: choose another --out")
    if not resume:
        own = (".uml-", FILE)  # of jobs that were stopped
        check_out_folder(str(out), [name for name in content(out) if not name.startswith(own)])
    check_own(str(out))
    known = read_json(str(out / CLASSES_NAME), MAX_INDEX_BYTES)
    if known is not None and classes is not None and list(classes) != known:
        raise UserError(f"{out / CLASSES_NAME} names other classes than those of the data")


@dataclass
class Embedding:
    """What an actor of `uml embed` does; see `actors.Work`."""

    found: Located
    kind: str
    wanted: Wanted
    splits: dict[str, Index]
    stage: str
    modality: str
    args: argparse.Namespace

    def parts(self) -> list[Part]:
        """All splits in one row of parts, none of which crosses from one split to the next."""
        return [part for part, *_ in self._places()]

    def place(self, part: Part) -> tuple[str, int, int]:
        """(split, number of its shard, rows of the splits before it)."""
        _, split, number, before = self._places()[part.number]
        return split, number, before

    def _places(self) -> list[tuple[Part, str, int, int]]:
        found: list[tuple[Part, str, int, int]] = []
        before = 0
        for split, index in self.splits.items():
            for p in parts_of(len(index), self.args.per_part):
                part = Part(len(found), before + p.first, before + p.stop)
                found.append((part, split, p.number, before))
            before += len(index)
        return found

    @property
    def weights_bytes(self) -> int:
        return self.found.weights_bytes

    def request(self) -> dict[str, Any]:
        """What must be the same for a job to go on."""
        return {
            "weights": self.found.weights_sha256(),
            "data": {split: index.fingerprint for split, index in self.splits.items()},
            "output": self.wanted.output,
            "pooling": self.wanted.pooling,
            "bf16": self.wanted.bf16,
            "dtype": self.args.dtype,
            "per_part": self.args.per_part,
        }

    def open(self, device: str) -> Callable[[Part], Report]:
        return Encoding(self, open_encoder(self.found, self.kind, self.wanted, device))


class Encoding:
    """One actor: encodes a part and writes it as a shard."""

    def __init__(self, work: Embedding, encoder: Encoder) -> None:
        self.work, self.encoder = work, encoder
        self.size = BatchSize(work.args.batch_size)
        self.about: dict[str, Any] | None = None

    def __call__(self, part: Part) -> Report:
        began = time.monotonic()
        bad: list[list[str]] = []
        samples: list[Sample] = []
        split, number, before = self.work.place(part)
        inputs = ShardInputs(self.work.splits[split], self.work.kind)
        read = inputs.read(part.first - before, part.stop - before)
        for raws, items in decoded(read, self.encoder.decode, bad):
            features: list[Any] = [None] * len(items)
            for places, rows in self.size.batches(
                items, self.encoder.encode, length=self.encoder.length, alike=self.encoder.alike
            ):
                for place, row in zip(places, rows, strict=True):
                    features[place] = row
            samples += self._samples(raws, features, bad)
        report: Report = {
            "split": split,
            "samples": len(samples),
            "bad": bad,
            "batch_size": self.size.size,
        }
        if samples:
            shard = self._write(f"{self.work.modality}-{split}-{number:06d}.tar", samples)
            report |= {"name": Path(shard.url).name, "shard": to_json(shard)}
        return {**report, "actor": os.getpid(), "began": began, "ended": time.monotonic()}

    def _samples(
        self, raws: Sequence[Raw], features: Sequence[torch.Tensor], bad: list[list[str]]
    ) -> list[Sample]:
        out = []
        for raw, row in zip(raws, features, strict=True):
            if not bool(torch.isfinite(row).all()):
                bad.append([raw.url, raw.key, "the encoder gives values that are not finite"])
                continue
            if self.about is None:
                about = reference(self.work.found, self.encoder, row.shape[-1])
                self.about = {**about, "dtype": self.work.args.dtype}
            label = raw.label if isinstance(raw.label, int) else None
            out.append(Sample(raw.key, "npy", self._npy(row), label, raw.source))
        return out

    def _npy(self, row: torch.Tensor) -> bytes:
        values = row.numpy().astype(self.work.args.dtype)
        if not np.isfinite(values).all():
            raise RunError("the features are too large for float16: use --dtype float32")
        stream = io.BytesIO()
        np.save(stream, values, allow_pickle=False)
        return stream.getvalue()

    def _write(self, name: str, samples: list[Sample]) -> Shard:
        kind = "sequence" if self.work.wanted.output == "tokens" else "vector"
        path = Path(self.work.stage, name)
        return replace(write_shard(str(path), _distinct(samples), kind), encoder=self.about)


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with keys that are unique: shards that were joined may repeat one."""
    seen: set[str] = set()
    out = []
    for sample in samples:
        key, number = sample.key, 1
        while key in seen:
            number += 1
            key = f"{sample.key}_{number}"
        seen.add(key)
        out.append(sample if key == sample.key else replace(sample, key=key))
    return out


def _publish(
    out: Path,
    stage: Path,
    reports: Sequence[Report],
    classes: Sequence[str] | None,
) -> list[Shard]:
    """Moves all shards into place, with their index and the class list."""
    shards = []
    for report in (r for r in reports if "shard" in r):
        name = report["name"]
        shard = from_json(report["shard"], str(out / name))
        assert shard is not None
        if (stage / name).exists():  # else it was moved before the job was stopped
            (stage / name).replace(out / name)
        shards.append(shard)
    if not shards:
        raise RunError("no sample could be encoded: see quarantine.jsonl")
    if classes is not None and not (out / CLASSES_NAME).exists():
        write_classes(str(out), classes)
    write_index(str(out), shards)
    shutil.rmtree(stage)
    return shards


def _result(
    modality: str, reports: Sequence[Report], shards: Sequence[Shard], seconds: float
) -> dict[str, Any]:
    samples: Counter[str] = Counter()
    for report in reports:
        samples[report["split"]] += report["samples"]
    return {
        "modality": modality,
        "samples": dict(samples),
        "quarantined": sum(len(r["bad"]) for r in reports),
        "batch_size": max(r["batch_size"] for r in reports),
        "encoder": shards[0].encoder,
        "wall_seconds": round(seconds, 1),
    }


def _tell(result: dict[str, Any], shards: Sequence[Shard]) -> None:
    about = result["encoder"]
    print(
        f"{about['name']}: {about['width']} numbers per "
        f"{'position' if about['output'] == 'tokens' else 'sample'} ({about['pooling']} pooling), "
        f"batches of {result['batch_size']}, {terminal.clock(result['wall_seconds'])}"
    )
    terminal.console().print(holdings.summary(holdings.group(shards, None)))
    if result["quarantined"]:
        print(f"{result['quarantined']} samples could not be used: see quarantine.jsonl")


if __name__ == "__main__":
    raise SystemExit(cli.main(["embed", *sys.argv[1:]]))
