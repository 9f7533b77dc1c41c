"""An exported model over many samples, on an actor pool of Ray Data.

    uml predict models/shapes 'data/shapes/image-test-*.tar' --out predictions
    uml predict models/shapes photos/                     a folder of files
    uml predict models/shapes table.parquet               a column of bytes, texts or numbers
    uml predict models/frozen photos/ --encoder DIR       features are made on the way

MODEL is the folder of `uml export` (or a finished run, whose chosen model is taken). SOURCE holds
what the model takes: shards, a folder of files, a table of texts or files, or Parquet with a column
`input` (or `text`, `features`, ...). A model of features that `uml embed` made also takes what the
encoder takes: its weights are looked for where they lay, or in --encoder, and must be the same.

Leaves in --out (default: predictions/<timestamp>): predictions/part-*.parquet with one row per
sample (key, label where it is known, prediction, probabilities in the order of model.json's
classes, embedding), predict.json, and quarantine.jsonl with the samples that could not be used.
--resume goes on with a job that was stopped. On a cluster, all of it must be visible to every node.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines import cli
from pipelines.files import file_sha256, local_path, replaced
from pipelines.reporting import terminal
from pipelines.reporting.provenance import combined_sha256
from pipelines.running.actors import Part, Report, parts_of, run_parts
from pipelines.running.data import write_json
from pipelines.running.decoded import decoded
from pipelines.running.folder import kept
from pipelines.running.lock import alone
from pipelines.sources.inputs import Inputs, ShardInputs, open_inputs
from pipelines.streams.quarantine import FILE, Quarantine
from uml_core.encoders import Encoder, open_encoder
from uml_core.encoders.base import Wanted
from uml_core.encoders.opening import Located, of_reference
from uml_core.errors import UserError
from uml_core.export import FACTS, TargetModel, load
from uml_core.sizing import BatchSize

PER_PART = 500  # samples of a Parquet file, and of an actor's task
JOURNAL = "progress.jsonl"
Scores = tuple[np.ndarray | None, np.ndarray]  # probabilities (N, C), embeddings (N, D)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("model", metavar="MODEL", help="folder of an exported model")
    parser.add_argument("source", metavar="SOURCE", help="shards, a folder, a table or Parquet")
    cli.add_member(parser)
    parser.add_argument("--encoder", metavar="DIR", help="where the encoder's weights lie")
    parser.add_argument(
        "--no-embeddings", action="store_true", help="leave the column `embedding` out"
    )
    add_pool_arguments(parser, PER_PART)


def add_pool_arguments(parser: argparse.ArgumentParser, per_part: int) -> None:
    """What `predict` and `embed` share: how the samples are shared out and what may go wrong."""
    parser.add_argument(
        "--actors", type=int, metavar="N", help="processes (default: one per GPU, else per CPU)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--nodes",
        action="append",
        default=[],
        metavar="LABEL=VALUE",
        help="only on a cluster's nodes with this label, e.g. uml-role=data; may be repeated",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="samples (default: found while it works)"
    )
    parser.add_argument(
        "--per-part", type=int, default=per_part, metavar="N", help="samples of one file"
    )
    parser.add_argument(
        "--quarantine-budget",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of samples that may be bad (from 1 on: their number)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out")


def check_pool_arguments(args: argparse.Namespace) -> list[str]:
    """Problems of these arguments."""
    given = {"--actors": args.actors, "--batch-size": args.batch_size, "--per-part": args.per_part}
    out = [f"{name}: at least 1" for name, n in given.items() if n is not None and n < 1]
    if args.quarantine_budget < 0:
        out.append("--quarantine-budget: at least 0")
    out += [f"--nodes {text}: write LABEL=VALUE" for text in args.nodes if "=" not in text]
    return out


def wanted_nodes(args: argparse.Namespace) -> dict[str, str]:
    """label -> value of the nodes that --nodes allows."""
    return dict(text.split("=", 1) for text in args.nodes)


def run(args: argparse.Namespace) -> int:
    """Predicts; returns the exit code."""
    began = time.monotonic()
    if problems := check_pool_arguments(args):
        raise UserError(problems)
    if args.out is None and not args.resume:
        args.out = str(Path("predictions", datetime.now().strftime("%Y%m%d-%H%M%S")))
    out = cli.out_folder(args, "predictions", resume=args.resume)
    folder = model_folder(local_path(args.model, "MODEL"))
    model = load(folder)
    inputs, encoder = _open_inputs(args, model)
    work = Predicting(
        str(folder.resolve()), inputs, str(out), args.batch_size, not args.no_embeddings, encoder
    )
    if args.dry_run:
        print(f"{len(inputs)} samples of kind {inputs.kind} -> {out}")
        return 0
    with alone(out):
        kept(out, work.request() | {"per_part": args.per_part})
        (out / "predictions").mkdir(exist_ok=True)
        reports = run_parts(
            work,
            parts_of(len(inputs), args.per_part),
            out / JOURNAL,
            title="Predicting",
            quarantine=Quarantine(
                out / FILE, args.quarantine_budget, modality=model.name, rows=len(inputs)
            ),
            actors=args.actors,
            device=args.device,
            nodes=wanted_nodes(args),
        )
        result = _result(model, inputs, reports, time.monotonic() - began)
        write_json(out / "predict.json", result)
    if args.json:
        print(json.dumps(result))
        return 0
    _tell(result)
    terminal.print_paths({"rows": out / "predictions", "numbers": out / "predict.json"})
    return 0


def _open_inputs(
    args: argparse.Namespace, model: TargetModel
) -> tuple[Inputs, tuple[Located, Wanted] | None]:
    """The samples, and the encoder where they are what it takes; raises UserError."""
    entry = model.encoder
    if args.encoder is not None and entry is None:
        raise UserError("--encoder: this model takes its input as it is, without an encoder")
    try:
        if args.encoder is None:
            return open_inputs(args.source, model.modality.kind, args.member), None
    except UserError:
        if entry is None:
            raise
    assert entry is not None
    inputs = open_inputs(args.source, entry["kind"], args.member)
    found, wanted = of_reference(entry, args.encoder)
    open_encoder(found, inputs.kind, wanted)  # what is wrong with it is told before the start
    return inputs, (found, wanted)


def model_folder(path: Path) -> Path:
    """The folder of a model, or of the chosen model of a finished run."""
    places = [path, path / "export", path / "model", path / "checkpoint"]
    return next((place for place in places if (place / FACTS).is_file()), path)


@dataclass
class Predicting:
    """What an actor of `uml predict` does; see `actors.Work`."""

    folder: str
    inputs: Inputs
    out: str
    batch_size: int | None
    embeddings: bool
    encoder: tuple[Located, Wanted] | None = None

    @property
    def weights_bytes(self) -> int:
        own = sum(p.stat().st_size for p in Path(self.folder).glob("*.safetensors"))
        return own + (self.encoder[0].weights_bytes if self.encoder else 0)

    def request(self) -> dict[str, Any]:
        """What must be the same for a job to go on."""
        return {
            "model": self._model_sha256(),
            "data": self.inputs.fingerprint,
            "samples": len(self.inputs),
            "embeddings": self.embeddings,
            "encoder": self.encoder[0].weights_sha256() if self.encoder else None,
        }

    def _model_sha256(self) -> str:
        """Of the weights and of what model.json says; where they lie does not matter."""
        files = [*sorted(Path(self.folder).glob("*.safetensors")), Path(self.folder, FACTS)]
        return combined_sha256(file_sha256(path) for path in files)

    def open(self, device: str) -> Callable[[Part], Report]:
        encoder = None
        if self.encoder is not None:
            found, wanted = self.encoder
            encoder = open_encoder(found, self.inputs.kind, wanted, device)
        return _Predictor(self, load(self.folder, device), encoder)


class _Predictor:
    """One actor: predicts a part and writes it as a Parquet file."""

    def __init__(self, work: Predicting, model: TargetModel, encoder: Encoder | None) -> None:
        self.work, self.model, self.encoder = work, model, encoder
        self.size = BatchSize(work.batch_size)
        classes = None
        if isinstance(work.inputs, ShardInputs):
            classes = work.inputs.index.classes
        self.names = classes

    def __call__(self, part: Part) -> Report:
        keys: list[str] = []
        labels: list[str | None] = []
        rows: list[tuple[np.ndarray | None, np.ndarray]] = []
        bad: list[list[str]] = []
        samples = self.work.inputs.read(part.first, part.stop)
        decode = self.model.decode_file if self.encoder is None else self.encoder.decode
        for raws, items in decoded(samples, decode, bad):
            found: list[Any] = [None] * len(items)
            for places, (scores, embedded) in self._batches(items):
                for i, place in enumerate(places):
                    found[place] = (None if scores is None else scores[i], embedded[i])
            rows += found
            keys += [raw.key for raw in raws]
            labels += [self._label(raw.label) for raw in raws]
        table = self._table(keys, labels, rows)
        path = Path(self.work.out, "predictions", f"part-{part.number:06d}.parquet")
        with replaced(path) as scratch:
            pq.write_table(table, scratch)
        known = [i for i, label in enumerate(labels) if label is not None]
        right = 0
        if self.model.classes is not None:
            said = table.column("prediction").to_pylist()
            right = sum(said[i] == labels[i] for i in known)
        return {"samples": len(keys), "bad": bad, "labelled": len(known), "right": right}

    def _batches(self, items: list[Any]) -> Iterator[tuple[list[int], Scores]]:
        if self.encoder is None:
            return self.size.batches(items, self._run, alike=lambda item: tuple(item.shape))
        encoder = self.encoder
        return self.size.batches(items, self._encoded, length=encoder.length, alike=encoder.alike)

    def _encoded(self, items: list[Any]) -> Scores:
        """Through the encoder, with features as exact as those that the model was trained on."""
        assert self.encoder is not None and self.model.encoder is not None
        dtype = self.model.encoder.get("dtype", "float32")
        rows = [row.numpy().astype(dtype) for row in self.encoder.encode(items)]
        return self._run([self.model.decode(row) for row in rows])

    def _run(self, items: list[torch.Tensor]) -> Scores:
        scores, embedded = self.model.run(items)
        return None if scores is None else scores.cpu().numpy(), embedded.cpu().numpy()

    def _label(self, label: str | int | None) -> str | None:
        if isinstance(label, int) and self.names is not None and label < len(self.names):
            return self.names[label]
        return label if isinstance(label, str) else None

    def _table(
        self,
        keys: list[str],
        labels: list[str | None],
        rows: list[tuple[np.ndarray | None, np.ndarray]],
    ) -> pa.Table:
        columns: dict[str, pa.Array] = {"key": pa.array(keys, pa.string())}
        if any(label is not None for label in labels):
            columns["label"] = pa.array(labels, pa.string())
        classes = self.model.classes
        if classes is not None:
            scores = [row[0] for row in rows if row[0] is not None]
            said = [classes[int(score.argmax())] for score in scores]
            columns["prediction"] = pa.array(said, pa.string())
            columns["probabilities"] = _lists(scores)
        if self.work.embeddings or classes is None:
            columns["embedding"] = _lists([row[1] for row in rows])
        return pa.table(columns)


def _lists(rows: Sequence[np.ndarray]) -> pa.Array:
    """Rows of equal length as a column of lists."""
    return pa.array([row.astype(np.float32) for row in rows], pa.list_(pa.float32()))


def _result(
    model: TargetModel, inputs: Inputs, reports: Sequence[Report], seconds: float
) -> dict[str, Any]:
    """The object of predict.json."""
    labelled = sum(r["labelled"] for r in reports)
    right = sum(r["right"] for r in reports)
    return {
        "target": model.name,
        "kind": inputs.kind,
        "samples": sum(r["samples"] for r in reports),
        "quarantined": sum(len(r["bad"]) for r in reports),
        "classes": None if model.classes is None else list(model.classes),
        "labelled": labelled,
        "accuracy": 100.0 * right / labelled if labelled and model.classes else None,
        "made_with": model.made_with,
        "wall_seconds": round(seconds, 1),
    }


def _tell(result: dict[str, Any]) -> None:
    print(f"{result['samples']} samples predicted in {terminal.clock(result['wall_seconds'])}")
    if result["quarantined"]:
        print(f"{result['quarantined']} could not be used: see quarantine.jsonl")
    if result["accuracy"] is not None:
        print(f"{result['accuracy']:.2f} % of {result['labelled']} labelled samples are right")


if __name__ == "__main__":
    raise SystemExit(cli.main(["predict", *sys.argv[1:]]))
