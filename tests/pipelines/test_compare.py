"""`uml compare` on a real worker group: the documented file, pairing, tracking, the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import cli
from pipelines.running.finished import stems_of


@pytest.fixture(scope="module")
def finished(ray_cluster, tiny_data, tmp_path_factory):
    """One comparison over two numbers of shots, shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("compare")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""
name: tiny
target: image
shots: [2, 4]
data_root: {tiny_data}
modalities:
  image: {{kind: image, train: image-train-*.tar, test: image-test-*.tar, size: 12}}
  text: {{kind: text, train: text-train-*.tar, vocab: 64}}
model: {{width: 16, depth: 1, heads: 2}}
train: {{steps: 8, batch_size: 8, validate_every: 4, workers: 2, device: cpu}}
compare:
  grid: {{lr: [1e-3, 1e-2]}}
seeds: [3, 4]
"""
    )
    out = folder / "out"
    assert cli.main(["compare", str(recipe), "--out", str(out)]) == 0
    return out


@pytest.mark.ray
def test_compare_json_has_the_documented_fields(finished: Path):
    compare = json.loads((finished / "compare.json").read_text())
    assert compare["shots"] == [2, 4] and len(compare["results"]) == 2
    for entry, shots in zip(compare["results"], (2, 4), strict=True):
        assert entry["target"] == "image" and entry["shots"] == shots
        assert entry["seeds"] == [3, 4] and entry["baseline"] == "unimodal"
        assert set(entry["arms"]) == {"unimodal", "uml", "uml_permuted"}
        for arm in entry["arms"].values():
            assert len(arm["test_accuracy"]) == len(arm["val_accuracy"]) == 2
            assert arm["chosen"]["lr"] in (1e-3, 1e-2) and arm["grid_size"] == 2
        uml, alone = (entry["arms"][a]["test_accuracy"] for a in ("uml", "unimodal"))
        assert entry["gain"]["mean"] == pytest.approx(np.mean(np.subtract(uml, alone)))
        low, high = entry["gain"]["ci95"]
        assert low <= entry["gain"]["mean"] <= high
        assert "derangement" in entry["control"]


@pytest.mark.ray
def test_the_files_of_a_comparison(finished: Path):
    for name in ("report.html", "compare.png", "curves.json", "recipe.yaml", "environment.json"):
        assert (finished / name).stat().st_size > 0, name
    environment = json.loads((finished / "environment.json").read_text())
    assert len(environment["placement"]["workers"]) == 2
    assert len(environment["dataset_sha256"]) == 64


@pytest.mark.ray
def test_arms_and_seeds_are_nested_runs(finished: Path):
    from mlflow import MlflowClient

    state = json.loads((finished / "tracking.json").read_text())
    client = MlflowClient(tracking_uri=state["uri"])
    [experiment] = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert len(runs) - len(children) == 1
    assert {(r.data.tags["arm"], r.data.tags["seed"], r.data.tags["shots"]) for r in children} == {
        (arm, seed, shots)
        for arm in ("unimodal", "uml", "uml_permuted")
        for seed in ("3", "4")
        for shots in ("2", "4")
    }
    assert all("test_accuracy" in r.data.metrics for r in children)
    for run in children:  # gradients are compared where there is more than one modality
        pulled = "grad_cosine/image/text" in run.data.metrics
        assert pulled == (run.data.tags["arm"] != "unimodal")
    [parent] = [r for r in runs if r not in children]
    assert len(parent.data.tags["dataset.sha256"]) == 64
    assert "unpaired text" in parent.data.tags["mlflow.note.content"]


@pytest.mark.ray
def test_the_chosen_fits_are_kept_and_evaluate_as_they_were_tested(finished: Path, tmp_path: Path):
    kept = sorted(path.name for path in (finished / "arms").iterdir())
    assert kept == [
        f"{arm}-seed{seed}.safetensors"
        for arm in ("uml", "uml_permuted", "unimodal")
        for seed in (3, 4)
    ]
    assert stems_of(finished / "arms" / "uml-seed3.safetensors") == {"image", "text"}
    assert stems_of(finished / "arms" / "uml-seed4.safetensors") == {"image"}
    assert stems_of(finished / "model" / "model.safetensors") == {"image"}
    out = tmp_path / "evaluated"
    assert cli.main(["evaluate", str(finished), "evaluate.shots=[1]", "--out", str(out)]) == 0
    found = json.loads((out / "evaluate.json").read_text())
    entry = json.loads((finished / "compare.json").read_text())["results"][1]  # the most shots
    for arm, accuracies in found["arm_accuracy"].items():
        assert accuracies == pytest.approx(entry["arms"][arm]["test_accuracy"]), arm
    assert (found["shots"], found["seed"], found["kind"]) == (4, 3, "compare")
    assert found["test"]["accuracy"]["value"] == found["arm_accuracy"]["uml"][0]
    shown = found["analyses"]["arms"]["numbers"]
    assert shown["seeds"] == [3, 4] and set(shown["differences"]["margin"]) == {
        "unimodal",
        "uml_permuted",
    }
    state = json.loads((finished / "tracking.json").read_text())
    assert "evaluation-evaluated" in state["runs"]


def test_a_comparison_needs_another_modality(tiny_recipe, write_recipe, tmp_path, capsys):
    tiny_recipe["modalities"]["text"]["ratio"] = 0
    del tiny_recipe["modalities"]["wave"]
    code = cli.main(["compare", write_recipe(tiny_recipe), "--out", str(tmp_path / "o")])
    assert code == 2
    assert "at least one auxiliary modality" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_self_supervised_comparison(ray_cluster, tiny_recipe, write_recipe, tmp_path):
    """Target: series; the probe reads frozen features; the control permutes values."""
    tiny_recipe["setting"] = "self_supervised"
    tiny_recipe["target"] = "wave"
    wave, image = tiny_recipe["modalities"]["wave"], tiny_recipe["modalities"]["image"]
    wave.update(ratio=1.0, test="wave-test-*.tar")
    image.update(stem="vit", patch=4)
    image.pop("channels")
    del tiny_recipe["modalities"]["text"]
    out = tmp_path / "out"
    assert cli.main(["compare", write_recipe(tiny_recipe), "--out", str(out)]) == 0
    compare = json.loads((out / "compare.json").read_text())
    assert compare["target"] == "wave" and "permuted independently" in compare["control"]
    assert all(0 <= a <= 100 for a in compare["arms"]["uml"]["test_accuracy"])
