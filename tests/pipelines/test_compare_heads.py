"""A comparison of heads in memory: the numbers of the general loop, without its streams."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import cli
from pipelines.streams.shards import Sample, write_classes, write_shards

CLASSES = 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Noisy vectors of four classes in two modalities of unlike length, and shots 1 and 2."""
    folder = tmp_path_factory.mktemp("heads")
    rng = np.random.default_rng(5)
    for name, dim in (("image", 6), ("text", 8)):
        points = rng.normal(size=(CLASSES, dim))
        for split, count in (("train", 40), ("val", 24), ("test", 120)):
            samples = []
            for i in range(count):
                stream = io.BytesIO()
                k = i % CLASSES
                np.save(stream, (points[k] + rng.normal(size=dim)).astype(np.float32))
                samples.append(Sample(f"{split}{i:03d}", "npy", stream.getvalue(), k))
            write_shards(samples, str(folder), f"{name}-{split}", "vector")
    write_classes(str(folder), [f"c{k}" for k in range(CLASSES)])
    path = folder / "recipe.yaml"
    path.write_text(f"""
name: heads
target: image
shots: [1, 2]
val_shots: matched
data_root: {folder}
modalities:
  image:
    kind: vector
    train: image-train-*.tar
    val: image-val-*.tar
    test: image-test-*.tar
    normalise: true
  text: {{kind: vector, train: text-train-*.tar, stem: identity, normalise: true}}
model: {{width: 8, trunk: none, heads: 1}}
train: {{steps: 60, batch_size: 6, validate_every: 5, patience: 4, gradients_every: 10}}
compare: {{grid: {{lr: [0.1, 0.01]}}}}
seeds: [3, 4, 5]
""")
    return str(path)


@pytest.fixture(scope="module")
def answers(ray_cluster, recipe, tmp_path_factory) -> dict[str, tuple[dict, Path]]:
    """compare.json in memory, and by the general loop: a clip that no gradient reaches."""
    found = {}
    for way, fields in (("memory", []), ("streams", ["train.clip=1.0e+6"])):
        out = tmp_path_factory.mktemp("compare") / "out"
        assert cli.main(["compare", recipe, *fields, "--out", str(out)]) == 0
        found[way] = json.loads((out / "compare.json").read_text()), out
    return found


@pytest.mark.ray
def test_the_answer_is_that_of_the_general_loop(answers):
    (held, folder), (streamed, other) = answers["memory"], answers["streams"]
    workers = [json.loads((f / "environment.json").read_text()) for f in (folder, other)]
    waited = [[w["wait_seconds"] for w in env["placement"]["workers"]] for env in workers]
    assert waited[0] == [{}, {}] and all(set(one) == {"image", "text"} for one in waited[1])
    for entry, its in zip(held["results"], streamed["results"], strict=True):
        assert entry["arms"] == its["arms"] and entry["baseline"] == its["baseline"]
        assert set(entry["arms"]) == {
            "unimodal",
            "unimodal_direct",
            "uml",
            "uml_init",
            "uml_permuted",
        }
        init, base = (entry["arms"][a]["test_accuracy"] for a in ("uml_init", entry["baseline"]))
        assert entry["init_gain"]["mean"] == pytest.approx(np.mean(np.subtract(init, base)))
    curves = [json.loads((f / "curves.json").read_text())["results"] for f in (folder, other)]
    for one, its in zip(*curves, strict=True):
        for arm in one["arms"]:
            a, b = one["arms"][arm], its["arms"][arm]
            assert a["steps"] == b["steps"] and a["val_accuracy"] == b["val_accuracy"]
            for name in a["loss"]:
                for x, y in zip(a["loss"][name], b["loss"][name], strict=True):
                    assert x == pytest.approx(y, rel=1e-4)
            assert (
                ("gradients" in a)
                == ("gradients" in b)
                == (arm not in ("unimodal_direct", "unimodal"))
            )


@pytest.mark.ray
def test_validation_is_as_small_as_the_training_set(answers):
    held, _ = answers["memory"]
    for entry in held["results"]:
        samples = CLASSES * entry["shots"]
        for arm in entry["arms"].values():
            shares = np.array(arm["val_accuracy"]) / 100 * samples
            assert shares == pytest.approx(shares.round())


@pytest.mark.ray
def test_a_finished_comparison_evaluates_as_it_was_tested(answers, tmp_path):
    held, folder = answers["memory"]
    out = tmp_path / "evaluated"
    assert cli.main(["evaluate", str(folder), "evaluate.shots=[1]", "--out", str(out)]) == 0
    found = json.loads((out / "evaluate.json").read_text())
    for arm, accuracies in found["arm_accuracy"].items():
        assert accuracies == pytest.approx(held["results"][1]["arms"][arm]["test_accuracy"]), arm
