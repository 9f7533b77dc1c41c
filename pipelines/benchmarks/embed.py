"""Suite `embed`: `uml embed` against the bare encoder in a plain loop with cached inputs.

The bare encoder has nothing to do but its arithmetic: inputs are decoded and prepared before the
clock starts, results are dropped. It runs as one loop with all cores and as one process per core,
and the faster of both is the ceiling. Ours reads shards, decodes, prepares, encodes and writes
feature shards on the actors of Ray Data. Both find their batch size in the same way. Starts (Ray,
imports, weights) and the search for the batch size are left out on both sides.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.benchmarks.rivals import cores
from pipelines.benchmarks.workloads import Workload, jpeg
from pipelines.embed import Embedding
from pipelines.running.actors import Report, run_parts
from pipelines.running.runtime import ray_session
from pipelines.streams.quarantine import Quarantine
from pipelines.streams.shards import read_rows
from uml_core.encoders import Encoder, locate, open_encoder
from uml_core.encoders.base import Wanted
from uml_core.sizing import BatchSize

BOUNDS: dict[str, tuple[str, str]] = {"embed_vs_plain": ("≥ 0.9", "1.0")}
WIDTH, HEADS = 384, 6  # of ViT-S and of MiniLM
VOCABULARY = 2000
CPU_SAMPLES, GPU_SAMPLES = 1, 16  # times the samples below
WARM = 2  # parts of each actor that do not count: its batch size settles in them


@dataclass(frozen=True)
class Case:
    """An encoder and what it is fed: `part` samples per task, `parts` of them per actor."""

    name: str
    save: Callable[[Path], None]
    make: Callable[[np.random.Generator], bytes]
    kind: str
    suffix: str
    part: int
    parts: int


def measure(repeats: int = 3, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The ratio with its raw repeats; the worst encoder counts."""
    scratch = Path(tempfile.mkdtemp(prefix="uml-bench-"))
    found: dict[str, dict[str, list[float]]] = {}
    try:
        with ray_session():
            for case in CASES:
                say(f"{case.name}: saving an encoder and its data")
                made = _Measured(case, scratch / case.name)
                found[case.name] = {"embed": [], "loop": [], "processes": []}
                for number in range(repeats):
                    say(f"{case.name}: {number + 1} of {repeats}")
                    for contender, speed in made.once(number).items():
                        found[case.name][contender].append(speed)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {**summary(found), "repeats": found}


def summary(found: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Ratios of medians of samples per second, against the faster plain way."""
    ratios = {}
    for name, speeds in found.items():
        middle = {contender: statistics.median(values) for contender, values in speeds.items()}
        ratios[name] = middle["embed"] / max(middle["loop"], middle["processes"])
    return {"embed_vs_plain": min(ratios.values()), "by_encoder": ratios}


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """(figure, value, must, aim) for the terminal."""
    bounds = BOUNDS["embed_vs_plain"]
    return [
        [f"embed_vs_plain {name}", f"{ratio:.2f}", *bounds]
        for name, ratio in result["by_encoder"].items()
    ]


class _Measured:
    """One case with its files; `once` lets every contender take its turn."""

    def __init__(self, case: Case, root: Path) -> None:
        self.case, self.root = case, root
        self.gpu = torch.cuda.is_available()
        self.actors = torch.cuda.device_count() if self.gpu else cores()
        self.factor = GPU_SAMPLES if self.gpu else CPU_SAMPLES
        self.part = case.part * self.factor
        samples = self.part * (WARM + case.parts) * self.actors
        load = Workload("data", case.kind, case.suffix, case.make, samples, 1, shards=1)
        self.index = load.index(root)
        case.save(root / "encoder")
        self.found = locate(str(root / "encoder"))
        # As many as a contender takes per measurement, cached for all that need no reading.
        self.data = read_rows(self.index, range(self.part * case.parts))

    def once(self, number: int) -> dict[str, float]:
        """Samples per second of every contender."""
        out = {"embed": self._ours(number)}
        encoder = self._open()
        out["loop"] = _loop(encoder, self.data, cores())
        del encoder
        out["processes"] = out["loop"] if self.gpu else self._processes()
        return out

    def _open(self) -> Encoder:
        device = "cuda" if self.gpu else "cpu"
        return open_encoder(self.found, self.case.kind, Wanted(), device)

    def _ours(self, number: int) -> float:
        stage = self.root / f"stage-{number}"
        stage.mkdir()
        options = argparse.Namespace(batch_size=None, dtype="float32", per_part=self.part)
        work = Embedding(
            self.found, self.case.kind, Wanted(), {"train": self.index}, str(stage), "data", options
        )
        reports = run_parts(
            work,
            work.parts(),
            stage / "progress.jsonl",
            title=self.case.name,
            quarantine=Quarantine(None, 0),
            actors=self.actors,
        )
        return throughput(reports)

    def _processes(self) -> float:
        """One bare encoder per core, each with its share of the cached inputs."""
        context = multiprocessing.get_context("spawn")
        pipes: list[Connection] = []
        processes = []
        for place in range(cores()):
            ours, theirs = context.Pipe()
            arguments = (str(self.found.path), self.case.kind, self.data[place :: cores()], theirs)
            processes.append(context.Process(target=_bare, args=arguments, daemon=True))
            processes[-1].start()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()  # ready: the clock of each starts when all are
        for pipe in pipes:
            pipe.send(True)
        speeds = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join()
        return sum(speeds)


def throughput(reports: Sequence[Report]) -> float:
    """Samples per second of all actors together, each from its first part that counts to its last.

    What lies between two parts of an actor (waiting for work, reports) is in it.
    """
    total = 0.0
    for actor in {report["actor"] for report in reports}:
        mine = sorted((r for r in reports if r["actor"] == actor), key=lambda r: r["began"])
        counted = mine[WARM:] or mine
        seconds = counted[-1]["ended"] - counted[0]["began"]
        total += sum(r["samples"] for r in counted) / seconds
    return total


def _bare(path: str, kind: str, data: list[bytes], pipe: Connection) -> None:
    torch.set_num_threads(1)
    encoder = open_encoder(locate(path), kind, Wanted())
    items = [encoder.decode(one) for one in data]
    size = BatchSize()
    _run(encoder, items, size)
    pipe.send(None)
    pipe.recv()
    began = time.perf_counter()
    _run(encoder, items, size)
    pipe.send(len(items) / (time.perf_counter() - began))


def _loop(encoder: Encoder, data: Sequence[bytes], threads: int) -> float:
    """Samples per second of the bare encoder in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        items = [encoder.decode(one) for one in data]
        size = BatchSize()
        _run(encoder, items, size)
        began = time.perf_counter()
        _run(encoder, items, size)
        return len(items) / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)


def _run(encoder: Encoder, items: Sequence[Any], size: BatchSize) -> None:
    for _ in size.batches(items, encoder.encode, length=encoder.length, alike=encoder.alike):
        pass


# ------------------------------------------------------------------------------- encoders


def _vit(folder: Path) -> None:
    """ViT-S/16 with random weights: what it computes costs what a trained one costs."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=12,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)


def _bert(folder: Path) -> None:
    """A language model of MiniLM's size, with a word tokeniser."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=6,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)


def _sentences(rng: np.random.Generator) -> bytes:
    """A description of 15 to 30 words, as a language model writes them of a class."""
    count = int(rng.integers(15, 31))
    return " ".join(f"w{i}" for i in rng.integers(2, VOCABULARY, size=count)).encode()


CASES = (
    Case("vision", _vit, jpeg(320), "image", "jpg", part=16, parts=3),
    Case("text", _bert, _sentences, "text", "txt", part=300, parts=3),
)
