"""One mean vector per class in place of a modality's samples (`shots: average`, paper 2.3)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipelines.streams.plan import Plan
from pipelines.streams.reader import iter_plan
from pipelines.streams.shards import Index, Sample, subset, write_index, write_shard
from uml_core.errors import UserError
from uml_core.modalities import Modality

KIND = "vector"


def first_of_class(index: Index) -> Index:
    """The first row of each class that occurs: as many rows as there will be means."""
    labels, rows = np.unique(index.labels, return_index=True)
    return subset(index, np.sort(rows[labels >= 0]))


@lru_cache(maxsize=8)  # every seed of a comparison has the same means
def class_means(index: Index, modality: Modality, path: Path) -> Index:
    """Writes the mean of each class's vectors, as `modality` reads them, as the shard `path`.

    Samples without a label or that cannot be read take no part, classes without any have no mean.
    Raises UserError where no sample has a label.
    """
    if not (index.labels >= 0).any():
        raise UserError("shots: average needs labels, and no sample has one")
    path.parent.mkdir(parents=True, exist_ok=True)
    shard = write_shard(str(path), _means(index, modality), KIND)
    write_index(str(path.parent), [shard])
    return Index((shard,), index.classes)


def _means(index: Index, modality: Modality) -> Iterator[Sample]:
    sums: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}
    plan = Plan(len(index), 256, 0, KIND, shuffle=False)
    for item in iter_plan(index, plan, modality, augment=False):
        labels, vectors = item.batch.y.numpy(), item.batch.x.numpy().astype(np.float64)
        for k in np.unique(labels[labels >= 0]).tolist():
            sums[k] = sums.get(k, 0) + vectors[labels == k].sum(0)
            counts[k] = counts.get(k, 0) + int((labels == k).sum())
    for k in sorted(sums):
        stream = io.BytesIO()
        np.save(stream, (sums[k] / counts[k]).astype(np.float32))
        yield Sample(f"average-{k:06d}", "npy", stream.getvalue(), k)
