"""What a job needs of the machine it runs on, estimated from its recipe before it starts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.running.data import Data, num_classes
from pipelines.streams.shards import read_rows
from pipelines.streams.source import AHEAD, CHUNK_BYTES, DECODED_BYTES, LOCAL_TASKS, REMOTE_TASKS
from pipelines.streams.storage import is_remote
from uml_core.learner import UnpairedLearner
from uml_core.modalities.base import BadSample
from uml_core.specs import Recipe

WEIGHT, STATE = 4, 16  # bytes per parameter: weights; weights, two moments and the best weights
PROCESS_BYTES = 700 << 20
KEPT = 3  # checkpoints on disk while one is replaced
EVALUATION_BYTES = 4 << 30  # decoded evaluation sets stay in memory up to this size
SAMPLED = 16  # samples of an evaluation set that are decoded to learn their size


@dataclass(frozen=True)
class Need:
    """What one job asks for. All sizes are bytes and rough.

    workers, streams  training processes, and modalities that each of them streams
    device            as the recipe says it: auto, cpu, cuda
    checkpoint        one checkpoint; `results`: what the end of the job leaves beside them
    memory            of one worker
    evaluation        of the target's largest evaluation set, decoded: a worker holds it whole
    store             of shared memory: blocks of all streams on their way
    shards            modality -> shards of its training split; remote: those read over a network
    paths             local shards, one per modality and split, for a look from other nodes
    tunes             trials are stopped early by Ray Tune
    least             workers without which the job does not start; None: all of them
    resources         beside CPUs and GPUs, of one worker; data_nodes: labels of those that read
    """

    workers: int = 1
    streams: int = 1
    device: str = "auto"
    checkpoint: int = 0
    results: int = 0
    memory: int = PROCESS_BYTES
    evaluation: int = 0
    store: int = 0
    shards: tuple[tuple[str, int], ...] = ()
    remote: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    tunes: bool = False
    least: int | None = None
    resources: tuple[tuple[str, float], ...] = ()
    data_nodes: tuple[tuple[str, str], ...] = ()

    @property
    def fewest(self) -> int:
        """Workers without which the job does not start."""
        return self.workers if self.least is None else self.least


def count_parameters(recipe: Recipe, data: Data) -> int:
    """Parameters of the learner, counted without making them."""
    with torch.device("meta"):
        learner = UnpairedLearner(
            data.modalities, recipe.model, num_classes=num_classes(recipe, data)
        )
    return sum(p.numel() for p in learner.parameters())


def worker_memory(recipe: Recipe, data: Data, parameters: int) -> int:
    """Bytes of a worker: weights, gradients, two moments and the best copy of all parameters in
    training, streams in flight, the process itself."""
    streams = sum(
        int(index.sizes.mean()) * recipe.train.batch_size * 16 for index in data.train.values()
    )
    return parameters * (STATE + WEIGHT) + streams + PROCESS_BYTES


def evaluation_bytes(recipe: Recipe, data: Data) -> int:
    """Bytes of the largest evaluation set of the target, decoded; 0 where no sample can be read.

    Some samples tell the size of one: pictures and vectors are all alike, clips and series vary.
    """
    target = recipe.target
    sets = [by[target] for by in (data.val, data.test) if target in by and len(by[target])]
    if not sets:
        return 0
    index, modality = max(sets, key=len), data.modalities[target]
    rows = np.unique(np.linspace(0, len(index) - 1, SAMPLED).astype(int))
    sizes = []
    for row, payload in zip(rows, read_rows(index, rows), strict=True):
        with contextlib.suppress(BadSample):
            item = modality.decode(payload, index.suffixes[row])
            x, _ = modality.collate([item])
            sizes.append(x.element_size() * x.nelement())
    return round(float(np.mean(sizes)) * len(index)) if sizes else 0


def estimate(
    recipe: Recipe,
    data: Data,
    *,
    workers: int | None = None,
    together: int = 1,
    fits: int = 1,
    tunes: bool = False,
) -> Need:
    """The need of a job.

    workers   processes that train at a time; default: the recipe's
    together  fits that one worker trains in lockstep; fits: of the whole job
    """
    workers = recipe.train.most_workers if workers is None else workers
    parameters = count_parameters(recipe, data)
    urls = {name: [shard.url for shard in index.shards] for name, index in data.train.items()}
    remote = tuple(name for name, found in urls.items() if any(map(is_remote, found)))
    tasks = {name: REMOTE_TASKS if name in remote else LOCAL_TASKS for name in urls}
    store = sum((n + AHEAD) * 2 * CHUNK_BYTES + DECODED_BYTES for n in tasks.values())
    splits = (data.train, data.val, data.test)
    first = [index.shards[0].url for split in splits for index in split.values()]
    evaluation = evaluation_bytes(recipe, data)
    kept = WEIGHT * parameters * fits if fits > 1 else STATE * parameters
    return Need(
        workers=workers,
        streams=len(data.train),
        device=recipe.train.device,
        checkpoint=kept,
        results=2 * WEIGHT * parameters,  # the model, and MLflow's copy of it
        memory=worker_memory(recipe, data, parameters * together) + evaluation,
        evaluation=evaluation,
        store=workers * store,
        shards=tuple((name, len(found)) for name, found in urls.items()),
        remote=remote,
        paths=tuple(url for url in first if not is_remote(url)),
        tunes=tunes,
        least=min(workers, recipe.train.least_workers),
        resources=tuple(recipe.train.worker_resources.items()),
        data_nodes=tuple(recipe.train.data_nodes.items()),
    )
