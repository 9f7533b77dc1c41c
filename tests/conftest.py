"""Fixtures shared by all tests."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Several test processes and Ray workers share two cores: more threads only fight each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import yaml
from budget import Budget
from PIL import Image

from pipelines.streams.shards import Sample, write_classes, write_shards

# A script's background job (`make test-slow &`) ignores Ctrl-C, and so would every job that a test
# interrupts: they inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Durations are summed, and too long ones fail the run."""
    config.pluginmanager.register(Budget(), "uml-budget")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for the whole test session, in a private temporary folder."""
    from pipelines.running.runtime import ray_session

    with ray_session(workers=2, streams=2):
        yield


@pytest.fixture(autouse=True)
def private_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Index caches and tracking stores of a test never touch the person's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that may lie beside the checkout; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder of real data beside the checkout (../shared/data)")
    return folder


CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three classes in three modalities: coloured pictures, words, waves."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(7)
    for split, per_class in (("train", 16), ("test", 10)):
        samples: dict[str, list[Sample]] = {"image": [], "text": [], "wave": []}
        for i in range(per_class * len(CLASSES)):
            label = i % len(CLASSES)
            key = f"{split}{i:04d}"
            pixels = rng.integers(0, 120, (12, 12, 3), dtype=np.uint8)
            pixels[..., label] += 100
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "PNG")
            samples["image"].append(Sample(key, "png", picture.getvalue(), label))
            words = f"{CLASSES[label]} thing number {rng.integers(1000)}"
            samples["text"].append(Sample(key, "txt", words.encode(), label))
            steps = int(rng.integers(3, 12))
            wave = np.sin((label + 1) * np.arange(steps))[:, None] + 0.1 * rng.normal(size=(1, 2))
            series = io.BytesIO()
            np.save(series, wave.astype(np.float32))
            samples["wave"].append(Sample(key, "npy", series.getvalue(), label))
        for name, kind in (("image", "image"), ("text", "text"), ("wave", "sequence")):
            write_shards(samples[name], str(folder), f"{name}-{split}", kind, per_shard=20)
    write_classes(str(folder), CLASSES)
    return folder


@pytest.fixture
def tiny_recipe(tiny_data: Path) -> dict[str, Any]:
    """A recipe on `tiny_data` as plain types, small enough for seconds of training."""
    return {
        "name": "tiny",
        "target": "image",
        "shots": 4,
        "data_root": str(tiny_data),
        "modalities": {
            "image": {
                "kind": "image",
                "train": "image-train-*.tar",
                "test": "image-test-*.tar",
                "size": 12,
                "channels": [8, 8],
            },
            "text": {"kind": "text", "train": "text-train-*.tar", "vocab": 64},
            "wave": {"kind": "sequence", "train": "wave-train-*.tar", "ratio": 0.5},
        },
        "model": {"width": 16, "depth": 1, "heads": 2},
        "train": {
            "steps": 12,
            "batch_size": 8,
            "validate_every": 4,
            "checkpoint_every": 4,
            "workers": 2,
            "device": "cpu",
        },
        "seeds": [0, 1],
    }


@pytest.fixture(scope="session")
def fault_recipe(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A traced run of 160 steps with a checkpoint every 20: long enough to be disturbed."""
    path = tmp_path_factory.mktemp("faults") / "recipe.yaml"
    path.write_text(f"""
name: faults
target: image
shots: 4
data_root: {tiny_data}
modalities:
  image: {{kind: image, train: image-train-*.tar, test: image-test-*.tar, size: 12}}
  text: {{kind: text, train: text-train-*.tar, vocab: 64}}
  wave: {{kind: sequence, train: wave-train-*.tar, ratio: 0.5}}
model: {{width: 16, depth: 1, heads: 2}}
train:
  {{steps: 160, batch_size: 8, validate_every: 40, checkpoint_every: 20, workers: 2, device: cpu}}
seeds: [0]
trace: true
""")
    return str(path)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Writes a recipe given as plain types; returns its path."""

    def write(recipe: dict[str, Any], name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return str(path)

    return write
