"""Embedding: every sample once, in order, the same alone and through Ray; bad ones are left out."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.running import embedding
from pipelines.running.data import open_data
from pipelines.running.embedding import embed, wants_ray, within_memory
from pipelines.running.feed import load_batches
from pipelines.running.finished import new_learner
from pipelines.streams.shards import Sample, load_index, write_shards
from uml_core.errors import RunError
from uml_core.evaluation import embeddings
from uml_core.recipe import load


@pytest.fixture
def opened(tiny_recipe, write_recipe):
    recipe = load(write_recipe(tiny_recipe))
    data = open_data(recipe)
    learners = {
        f"seed {seed}": new_learner(recipe, data.modalities, seed=seed, num_classes=3)
        for seed in (0, 1)
    }
    return data, learners


def test_all_models_see_every_sample_in_order(opened, tmp_path):
    data, learners = opened
    index = data.test["image"]
    found = embed(learners, "image", index, data.modalities["image"], budget=0.01, out=tmp_path)
    batches = load_batches(index, data.modalities["image"])
    for label, learner in learners.items():
        x, y = embeddings(learner, "image", batches)
        np.testing.assert_allclose(found[label].x, x, atol=1e-6)
        assert found[label].y.tolist() == y.tolist() == index.labels.tolist()
        assert list(found[label].keys) == index.keys
    assert not np.allclose(found["seed 0"].x, found["seed 1"].x)


@pytest.mark.ray
def test_a_large_set_comes_through_ray_data_alike(ray_cluster, opened, tmp_path, monkeypatch):
    data, learners = opened
    arguments = (learners, "wave", data.train["wave"], data.modalities["wave"])
    here = embed(*arguments, budget=0.01, out=tmp_path)
    monkeypatch.setattr(embedding, "RAY_BYTES", 0)
    monkeypatch.setattr(embedding, "BATCH", 10)
    assert wants_ray([data.train["wave"]])
    spread = embed(*arguments, budget=0.01, out=tmp_path)
    for label in learners:
        np.testing.assert_allclose(spread[label].x, here[label].x, atol=1e-5)
        assert spread[label].y.tolist() == here[label].y.tolist()
        assert list(spread[label].keys) == list(here[label].keys)


def pictures(folder, bad: int):
    out = io.BytesIO()
    Image.new("RGB", (12, 12), (200, 10, 10)).save(out, "PNG")
    samples = [
        Sample(f"s{i}", "png", b"torn" if i < bad else out.getvalue(), i % 3) for i in range(12)
    ]
    write_shards(samples, str(folder), "image-test", "image")
    return load_index("image-test-*.tar", str(folder), "image")


def test_bad_samples_are_listed_and_left_out(opened, tmp_path):
    data, learners = opened
    index = pictures(tmp_path, bad=2)
    found = embed(learners, "image", index, data.modalities["image"], budget=0.5, out=tmp_path)
    assert list(found["seed 0"].keys) == [f"s{i}" for i in range(2, 12)]
    assert found["seed 0"].x.shape == (10, 16) and len(found["seed 0"].y) == 10
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["s0", "s1"]


def test_too_many_bad_samples_end_the_run(opened, tmp_path):
    data, learners = opened
    index = pictures(tmp_path, bad=6)
    with pytest.raises(RunError, match="cannot be used"):
        embed(learners, "image", index, data.modalities["image"], budget=0, out=tmp_path)


def test_features_stay_within_memory(opened, monkeypatch):
    data, _ = opened
    index = data.test["image"]
    assert within_memory(index, 16, 2).keys == index.keys
    monkeypatch.setattr(embedding, "FEATURE_BYTES", 4 * 16 * 2 * 7)
    few = within_memory(index, 16, 2)
    assert len(few) == 7 and set(few.keys) <= set(index.keys)
    assert not wants_ray([index])
    assert torch.float32.itemsize == 4
