"""The forecast before training: which samples it sees, and what it says of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import cli
from pipelines.running.data import make_round, open_data, rounds_of
from pipelines.running.forecasting import forecast_json, foresee, spread
from pipelines.streams.shards import Sample, write_classes, write_shards
from uml_core.analysis.forecast import Forecast
from uml_core.recipe import from_dict

CLASSES = 12
HUES = np.random.default_rng(3).integers(0, 256, (CLASSES, 3))


def png(rng, label: int, hues=HUES) -> bytes:
    pixels = np.clip(hues[label] + rng.normal(0, 8, (8, 8, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values.astype(np.float32))
    return out.getvalue()


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """Colours as pictures and as noisy vectors; of each class six pictures have the right colour,
    the test pictures have that of another class."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for split, hues in (("train", HUES), ("test", HUES[::-1])):
        labels = [i % CLASSES for i in range(6 * CLASSES)]
        pictures = [
            Sample(f"{split}{i:03d}", "png", png(rng, k, hues), k) for i, k in enumerate(labels)
        ]
        write_shards(pictures, str(folder), f"image-{split}", "image")
    vectors = [
        Sample(f"v{i:03d}", "npy", npy(HUES[k] + rng.normal(0, 8, 3)), k)
        for i, k in enumerate(labels)
    ]
    vectors.append(Sample("broken", "npy", b"no array", 0))
    write_shards(vectors, str(folder), "hue-train", "vector")
    write_classes(str(folder), [f"c{k}" for k in range(CLASSES)])
    return folder


def recipe(folder: Path, **more):
    return from_dict(
        {
            "name": "colours",
            "target": "image",
            "shots": 2,
            "data_root": str(folder),
            "modalities": {
                "image": {
                    "kind": "image",
                    "size": 8,
                    "train": "image-train-*.tar",
                    "test": "image-test-*.tar",
                },
                "hue": {"kind": "vector", "train": "hue-train-*.tar"},
            },
            "seeds": [0, 1],
            **more,
        }
    )


def foreseen(made) -> dict[str, Forecast]:
    data = open_data(made)
    return foresee(made, data, [make_round(made, data, s, k) for k, s in rounds_of(made)])


def test_shared_geometry_is_seen_before_training_and_bad_samples_are_passed_over(colours):
    found = foreseen(recipe(colours))
    assert found["hue"].verdict == "likely" and found["hue"].geometry.value > 0.9
    # Two pictures per class and seed, some of them drawn twice; every readable vector.
    assert 2 * CLASSES < found["hue"].target_rank.samples <= 4 * CLASSES
    assert found["hue"].auxiliary_rank.samples == 6 * CLASSES
    told = forecast_json(found)
    assert told["verdict"] == "likely"
    assert Forecast.from_json(told["auxiliaries"]["hue"]) == found["hue"]
    assert told["record"]["decided"] >= told["record"]["right"]


def test_only_training_samples_of_the_target_are_read(colours, tmp_path, monkeypatch):
    from pipelines.running import forecasting

    read = []
    monkeypatch.setattr(
        forecasting, "read_rows", lambda index, rows: read.append(index) or real(index, rows)
    )
    from pipelines.streams.shards import read_rows as real

    made = recipe(colours)
    data = open_data(made)
    rounds = [make_round(made, data, s, k) for k, s in rounds_of(made)]
    foresee(made, data, rounds)
    target, auxiliary = read
    trained = set().union(*(r.train["image"].keys for r in rounds))
    assert set(target.keys) == trained
    assert not trained & set(data.test["image"].keys)
    assert set(auxiliary.keys) == set(data.train["hue"].keys)


def test_the_self_supervised_setting_sees_the_probes_labels_only(colours):
    made = recipe(
        colours,
        setting="self_supervised",
        modalities={
            "image": {
                "kind": "image",
                "size": 8,
                "train": "image-train-*.tar",
                "test": "image-test-*.tar",
            },
            "hue": {"kind": "vector", "train": "hue-train-*.tar"},
        },
    )
    assert foreseen(made)["hue"].target_rank.samples <= 4 * CLASSES


def test_spread_takes_classes_evenly():
    labels = np.array([0] * 5000 + [1] * 600 + [2] * 30 + [-1] * 50)
    rows = spread(labels)
    assert len(rows) == 2000 == len(set(rows.tolist()))
    assert np.bincount(labels[rows]).tolist() == [1370, 600, 30]


def test_a_dry_run_says_it(colours, write_recipe, capsys):
    path = write_recipe(recipe(colours).to_dict())
    assert cli.main(["compare", path, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "forecast    hue is likely to help (shared class geometry 1.00, p = 0.001)" in said
    assert "The rule: " in said
