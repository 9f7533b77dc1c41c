"""`uml compare` with several numbers of auxiliary samples: the grid, its runs, words per text."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import cli
from pipelines.running.data import make_round, open_data
from pipelines.running.exchange import mean_words
from pipelines.streams.shards import Sample, write_classes, write_shards
from uml_core.analysis.exchange_rate import ExchangeRate
from uml_core.comparison import units_of
from uml_core.recipe import from_dict


@pytest.fixture(scope="module")
def recipe_of(tiny_data):
    """The same small comparison with any target and text shots."""

    def make(shots, text_shots, workers=1):
        return {
            "name": "grid",
            "target": "image",
            "shots": shots,
            "data_root": str(tiny_data),
            "modalities": {
                "image": {
                    "kind": "image",
                    "size": 12,
                    "channels": [8, 8],
                    "train": "image-train-*.tar",
                    "test": "image-test-*.tar",
                },
                "text": {
                    "kind": "text",
                    "vocab": 64,
                    "train": "text-train-*.tar",
                    "shots": text_shots,
                },
            },
            "model": {"width": 16, "depth": 1, "heads": 2},
            "train": {
                "steps": 8,
                "batch_size": 8,
                "lr": 0.01,
                "validate_every": 4,
                "workers": workers,
                "device": "cpu",
            },
            "seeds": [3, 4],
        }

    return make


def test_a_grid_adds_uml_with_fewer_samples_to_the_arms(recipe_of):
    recipe = from_dict(recipe_of([2, 4], [9, 1, 3]))
    arms = ["unimodal", "uml", "uml_permuted"]
    units = units_of(recipe, arms, 3, 2)
    assert [(u.arm, u.fewer) for u in units] == [*((a, None) for a in arms), ("uml", 1), ("uml", 3)]
    data = open_data(recipe)
    streams = make_round(recipe, data, 3, 2).train
    assert {name: len(rows) for name, rows in streams.items()} == {
        "image": 2 * 3,
        "text": 9 * 3,
        "text@1": 3,
        "text@3": 9,
    }
    # Nested: what few samples hold, more samples hold too.
    assert set(streams["text@1"].keys) < set(streams["text@3"].keys) < set(streams["text"].keys)


def test_words_of_texts_come_from_the_data(recipe_of, tmp_path):
    recipe = from_dict(recipe_of(4, None))
    data = open_data(recipe)
    assert mean_words(recipe, data, "text") == 4.0  # "red thing number 17"
    assert mean_words(recipe, data, "image") is None


@pytest.mark.parametrize("texts", [True, False])
def test_features_of_texts_have_the_words_that_stand_beside_them(recipe_of, tmp_path, texts):
    def vector(label):
        out = io.BytesIO()
        np.save(out, np.arange(4, dtype=np.float32) + label)
        return out.getvalue()

    said = ("one", "one two", "one two three, four!")
    samples = [
        Sample(f"t{k}", "npy", vector(k), k, text=said[k] if texts else None) for k in range(3)
    ]
    write_shards(samples, str(tmp_path), "text-train", "vector")
    write_classes(str(tmp_path), ("red", "green", "blue"))
    recipe = from_dict(recipe_of(4, None))
    data = open_data(recipe)
    spec = replace(recipe.modalities["text"], kind="vector", train="text-train-*.tar")
    recipe = replace(
        recipe, data_root=str(tmp_path), modalities={**recipe.modalities, "text": spec}
    )
    from pipelines.streams.shards import load_index

    data.train["text"] = load_index("text-train-*.tar", str(tmp_path), "vector")
    assert mean_words(recipe, data, "text") == (pytest.approx(7 / 3) if texts else None)


@pytest.fixture(scope="module")
def grid(ray_cluster, recipe_of, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    path, out = folder / "recipe.yaml", folder / "out"
    path.write_text(json.dumps(recipe_of([2, 4], [1, 3, 9])))
    assert cli.main(["compare", str(path), "--out", str(out)]) == 0
    return out


@pytest.mark.ray
def test_the_rate_is_that_of_the_grid(grid, capsys):
    compare = json.loads((grid / "compare.json").read_text())
    told = compare["exchange"]
    assert (told.pop("target"), told.pop("auxiliary")) == ("image", "text")
    assert told.pop("words_per_sample") == 4.0
    found = ExchangeRate.from_json(told)
    assert found.target_shots.tolist() == [2, 4]
    assert found.auxiliary_shots.tolist() == [0, 1, 3, 9]
    assert found.seeds == 2 and len(found.local) == 3
    for row, entry in zip(found.accuracy, compare["results"], strict=True):
        arms = entry["arms"]  # the arms themselves have the most samples
        assert row[0] == pytest.approx(np.mean(arms["unimodal"]["test_accuracy"]))
        assert row[-1] == pytest.approx(np.mean(arms["uml"]["test_accuracy"]))
    report = (grid / "report.html").read_text()
    assert "What is one image sample worth?" in report and found.sentence in report


@pytest.mark.ray
@pytest.mark.slow
def test_a_point_of_the_grid_is_the_comparison_at_that_point(grid, recipe_of, tmp_path):
    """Fits in lockstep with other streams learn what they learn without, on another worker."""
    compare = json.loads((grid / "compare.json").read_text())
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe_of([2, 4], 3, workers=2)))
    assert cli.main(["compare", str(path), "--out", str(tmp_path / "out")]) == 0
    alone = json.loads((tmp_path / "out" / "compare.json").read_text())
    column = compare["exchange"]["auxiliary_shots"].index(3)
    for row, entry in zip(compare["exchange"]["accuracy"], alone["results"], strict=True):
        assert row[column] == pytest.approx(np.mean(entry["arms"]["uml"]["test_accuracy"]))
        assert entry["arms"]["unimodal"] == next(
            r["arms"]["unimodal"] for r in compare["results"] if r["shots"] == entry["shots"]
        )
