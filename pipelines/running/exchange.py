"""The exchange rate of a comparison over a grid of shots: what one target sample is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.running.cohort import Result
from pipelines.running.data import Data
from pipelines.running.forecasting import spread
from pipelines.streams.shards import Index, load_index, read_rows
from uml_core.analysis.exchange_rate import ExchangeRate, exchange_rate
from uml_core.errors import UserError
from uml_core.modalities.text import tokenise
from uml_core.specs import Recipe


def exchange_json(recipe: Recipe, data: Data, results: Sequence[Result]) -> dict[str, Any] | None:
    """The field `exchange` of compare.json; None where no modality lists several shots.

    `ExchangeRate` with the names of both modalities and the auxiliary's `words_per_sample`.
    """
    if recipe.exchange is None:
        return None
    name, _ = recipe.exchange
    words = mean_words(recipe, data, name)
    names = {"target": recipe.target, "auxiliary": name, "words_per_sample": words}
    return names | measured_rate(recipe, results, words).to_json()


def measured_rate(recipe: Recipe, results: Sequence[Result], words: float | None) -> ExchangeRate:
    """The rate over the grid that the shots of the target and of one auxiliary span.

    Every point of the grid is UML with its own choice of hyper-parameters on validation; zero
    auxiliary samples are the target-only model of equal parameters.
    """
    assert recipe.exchange is not None
    name, counts = recipe.exchange
    runs = []
    for result in results:
        assert result.shots is not None  # `check` refuses it for an exchange rate
        for seed in recipe.seeds:
            runs.append((result.shots, 0, seed, result.test["unimodal", seed]))
            runs.append((result.shots, counts[-1], seed, result.test["uml", seed]))
            runs += [(result.shots, k, seed, by_seed[seed]) for k, by_seed in result.fewer.items()]
    shots, auxiliary_shots, seeds, accuracies = zip(*runs, strict=True)
    return exchange_rate(
        shots, auxiliary_shots, seeds, accuracies, recipe.target, name, words_per_sample=words
    )


def mean_words(recipe: Recipe, data: Data, name: str) -> float | None:
    """Mean number of words of a modality's training samples; None where they are not texts.

    Ready-made features of texts count too where the text stands beside them in the shards (a txt
    member of the same key).
    """
    index = _texts(recipe, data, name)
    if index is None:
        return None
    texts = [t.decode("utf-8-sig", "replace") for t in read_rows(index, spread(index.labels))]
    return float(np.mean([len(tokenise(text, "word")) for text in texts]))


def _texts(recipe: Recipe, data: Data, name: str) -> Index | None:
    spec = recipe.modalities[name]
    if spec.kind == "text":
        return data.train[name]
    assert recipe.data_root is not None
    try:
        index = load_index(spec.train, recipe.data_root, "text")
    except UserError:
        return None
    return index if len(index) == len(data.train[name]) else None
