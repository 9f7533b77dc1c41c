"""An exported model as MLflow serves it: `predict` over a table with one input column.

MLflow calls `_load_pyfunc` of this module, by its name in the model's MLmodel file. Nothing of
MLflow is needed here: `uml export` describes the columns, MLflow holds requests to them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas

from uml_core.export import TargetModel, load

INPUT = "input"  # the one column: bytes of files (base64 in JSON), texts, or lists of numbers


class Served:
    """The pyfunc protocol around a `TargetModel`."""

    def __init__(self, model: TargetModel) -> None:
        self.model = model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pandas.DataFrame:
        """A table with the column `input` -> one row per sample.

        Columns: prediction (class name) and probabilities (of the classes in the order of
        model.json), both left out of a self-supervised model; embedding.
        """
        values = model_input[INPUT].tolist() if hasattr(model_input, "columns") else model_input
        found = self.model.predict([_plain(value) for value in values])
        columns: dict[str, Any] = {}
        if found.classes is not None and found.probabilities is not None:
            columns["prediction"] = found.classes
            columns["probabilities"] = found.probabilities.astype(float).tolist()
        columns["embedding"] = found.embeddings.astype(float).tolist()
        return pandas.DataFrame(columns)


def _plain(value: Any) -> Any:
    """Arrays of arrays, as Parquet and JSON give series, become one array."""
    return np.stack(list(value)) if _is_nested(value) else value


def _is_nested(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object


def _load_pyfunc(path: str) -> Served:
    """What `mlflow.pyfunc` asks of a loader module. path: the model's folder."""
    return Served(load(Path(path)))
