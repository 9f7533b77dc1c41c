"""Samples -> frozen features: decoded once, given to every model, in bounded memory.

Small sets are read and decoded in this process; large ones by Ray Data tasks, wherever CPUs are
free, while the models run here. Bad samples go to quarantine and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import ray
import torch

from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import FILE, Quarantine
from pipelines.streams.reader import BatchStream, iter_plan, ray_stream
from pipelines.streams.shards import Index, subset
from pipelines.streams.source import Segment
from uml_core.analysis.bootstrap import subsample
from uml_core.errors import RunError
from uml_core.learner import UnpairedLearner
from uml_core.modalities import Modality
from uml_core.views import Features

BATCH = 256
RAY_BYTES = 512 << 20  # raw bytes of a set from which Ray Data pays for its start
FEATURE_BYTES = 2 << 30  # features of one set in memory, all models together


def wants_ray(sets: Iterable[Index]) -> bool:
    """Whether any of these sets is worth a Ray session."""
    return any(int(index.sizes.sum()) > RAY_BYTES for index in sets)


def within_memory(index: Index, width: int, models: int, seed: int = 0) -> Index:
    """The index, or a seeded subset of it whose features fit `FEATURE_BYTES`."""
    return subset(index, subsample(len(index), FEATURE_BYTES // (4 * width * models), seed))


@torch.no_grad()
def embed(
    models: Mapping[str, UnpairedLearner],
    name: str,
    index: Index,
    modality: Modality,
    *,
    budget: float,
    out: Path,
) -> dict[str, Features]:
    """Features of every sample that decodes, under every model: mean-pooled outputs of the trunk.

    models  label -> learner in evaluation mode that has the modality `name`
    budget  of `Quarantine`; out: the folder of its file

    Raises RunError when too many samples are bad or none is left.
    """
    size = {label: learner.spec.width for label, learner in models.items()}
    x = {label: np.empty((len(index), width), np.float32) for label, width in size.items()}
    y, keys, done = np.empty(len(index), np.int64), [], 0
    path = out / FILE
    quarantine = Quarantine(path, budget, modality=name, rows=len(index))
    with _stream(name, index, modality, quarantine) as stream:
        for item in stream:
            rows = slice(done, done + len(item.batch))
            for label, learner in models.items():
                batch = item.batch.to(next(learner.parameters()).device)
                x[label][rows] = learner.embed(name, batch).float().cpu().numpy()
            y[rows] = item.batch.y.numpy()
            keys += item.batch.keys
            done = rows.stop
    if not done:
        raise RunError(f"{name}: none of {len(index)} samples can be decoded; see {path}")
    return {label: Features(part[:done], y[:done], keys) for label, part in x.items()}


def _stream(name: str, index: Index, modality: Modality, quarantine: Quarantine) -> BatchStream:
    plan = Plan(len(index), BATCH, 0, name, shuffle=False)
    if wants_ray([index]) and ray.is_initialized():
        segments = [Segment(index, plan, 0, plan.num_batches)]
        return ray_stream(segments, modality, augment=False, quarantine=quarantine)
    return iter_plan(index, plan, modality, augment=False, decode_threads=1, quarantine=quarantine)
