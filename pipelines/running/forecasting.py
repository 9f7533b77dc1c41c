"""What the training data says before any training: will the auxiliary modalities help?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipelines.running.data import Data, Round
from pipelines.streams.shards import Index, read_rows, subset
from pipelines.streams.storage import is_remote
from uml_core.analysis import track_record
from uml_core.analysis.forecast import Forecast, forecast, together
from uml_core.modalities import Modality
from uml_core.modalities.base import BadSample
from uml_core.specs import Recipe

MAX_SAMPLES = 2000  # read per modality, evenly over classes: seconds, not minutes


def foresee(recipe: Recipe, data: Data, rounds: Sequence[Round]) -> dict[str, Forecast]:
    """Auxiliary modality -> forecast from coarse copies of the labelled training samples.

    rounds  views on the data (`make_round` without a folder). Of the target, only samples that
            some round trains on with their labels are read, neither validation nor test

    Auxiliaries without labels have no forecast.
    """
    target = _features(data.modalities[recipe.target], _labelled_target(recipe, data, rounds))
    spaces = {name: getattr(data.modalities[name].options, "stem", None) for name in recipe.active}
    found = {}
    for name in recipe.active[1:]:
        index = rounds[0].train[name]
        if recipe.modalities[name].shots == "average":
            index = data.train[name]  # means of these samples; a view on the data has none yet
        if not (index.labels >= 0).any():
            continue
        found[name] = forecast(
            *target,
            *_features(data.modalities[name], index),
            shared_space=spaces[recipe.target] == spaces[name] == "identity",
            names=(recipe.target, name),
        )
    return found


def is_quick(recipe: Recipe, data: Data) -> bool:
    """Whether a forecast takes seconds: nothing has to come over a network."""
    shards = (shard for name in recipe.active for shard in data.train[name].shards)
    return not any(is_remote(shard.url) for shard in shards)


def forecast_json(found: dict[str, Forecast]) -> dict[str, Any]:
    """The field `forecast` of compare.json."""
    known = track_record.rate(track_record.cases())
    return {
        "verdict": together(f.verdict for f in found.values()),
        "auxiliaries": {name: f.to_json() for name, f in found.items()},
        "record": {
            "right": track_record.right(known),
            "decided": known.decided,
            "open": known.open,
            "sentence": track_record.sentence(track_record.cases()),
        },
    }


def _labelled_target(recipe: Recipe, data: Data, rounds: Sequence[Round]) -> Index:
    """The target's labelled training samples of all rounds, each once."""
    parts = [r.train[recipe.target] if r.probe is None else r.probe for r in rounds]
    rows = [part.picked for part in parts if part.picked is not None]
    return subset(data.train[recipe.target], np.unique(np.concatenate(rows)))


def _features(modality: Modality, index: Index) -> tuple[np.ndarray, np.ndarray]:
    """((N, F) coarse copies, (N,) labels) of at most `MAX_SAMPLES` samples; bad ones left out."""
    rows = spread(index.labels)
    copies, kept = [], []
    for row, data in zip(rows, read_rows(index, rows), strict=True):
        try:
            copies.append(modality.coarse(modality.decode(data, index.suffixes[row])))
            kept.append(row)
        except BadSample:
            continue  # the streams count and report it
    return torch.stack(copies).numpy(), index.labels[kept]


def spread(labels: np.ndarray) -> np.ndarray:
    """Rows of labelled samples, as many of each class as fit, drawn by a fixed seed."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))
    ranks = np.zeros(len(rows), dtype=np.int64)
    for c in np.unique(labels[rows]):
        mine = labels[rows] == c
        ranks[mine] = np.arange(mine.sum())
    return np.sort(rows[np.argsort(ranks, kind="stable")][:MAX_SAMPLES])
