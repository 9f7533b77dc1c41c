"""A pretrained encoder that trains along: in Ray Train, data-parallel, and taken home."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_encoders import vit

from pipelines import cli
from pipelines.streams.shards import load_index, read_rows
from uml_core.export import load


@pytest.mark.ray
@pytest.mark.slow
def test_a_tuned_encoder_is_trained_by_two_workers_and_exported(
    ray_cluster, tiny_recipe, write_recipe, tmp_path
):
    folder, run, out = vit(tmp_path / "vit"), tmp_path / "run", tmp_path / "out"
    image = {k: tiny_recipe["modalities"]["image"][k] for k in ("kind", "train", "test")}
    tuned = {"stem": "encoder", "encoder": str(folder), "tune": "lora", "recompute": True}
    tiny_recipe["modalities"] = {
        "image": {**image, **tuned},
        "text": tiny_recipe["modalities"]["text"],
    }
    tiny_recipe["train"] |= {"precision": "bf16", "lr_factors": {"stems.image.network": 0.1}}
    assert cli.main(["train", write_recipe(tiny_recipe), "--out", str(run)]) == 0
    assert cli.main(["export", str(run), "--out", str(out)]) == 0
    folder.rename(tmp_path / "gone")
    model = load(out)
    index = load_index("image-test-*.tar", tiny_recipe["data_root"], "image")
    found = model.predict(read_rows(index, range(len(index))))
    right = [model.classes[k] == name for k, name in zip(index.labels, found.classes, strict=True)]
    metrics = json.loads((run / "metrics.json").read_text())
    assert 100 * np.mean(right) == pytest.approx(metrics["test_accuracy"], abs=4)  # bf16 there
