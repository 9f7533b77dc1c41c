"""`uml export`: which model is taken, and that MLflow and plain Python give the same numbers."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import mlflow
import numpy as np
import pandas
import pytest
import torch

from pipelines import cli
from pipelines.running import exporting
from pipelines.running.finished import load_learner, open_finished
from pipelines.streams.shards import load_index, read_rows
from uml_core.export import load
from uml_core.learner import UnpairedLearner


def same_weights(model: UnpairedLearner, whole: UnpairedLearner) -> bool:
    theirs = whole.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


@pytest.fixture
def pictures(tiny_data) -> list[bytes]:
    return read_rows(load_index("image-test-*.tar", str(tiny_data), "image"), range(5))


def test_the_chosen_model_and_any_other_fit(make_run, tmp_path, capsys, pictures):
    run = make_run("compare", seeds=[3, 1])
    assert cli.main(["export", str(run), "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "arm uml, seed 3" in said and "3 classes" in said
    chosen = load(tmp_path / "a")
    kept = load(run / "model")
    assert same_weights(chosen.learner, kept.learner)
    assert chosen.made_with["seed"] == 3 and chosen.classes == ("red", "green", "blue")

    arguments = ["export", str(run), "--arm", "unimodal", "--out", str(tmp_path / "b"), "--json"]
    assert cli.main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    # the second seed has the better validation, the first the better test accuracy
    assert (facts["made_with"]["arm"], facts["made_with"]["seed"]) == ("unimodal", 1)
    finished = open_finished(run)
    modalities = {n: finished.recipe.modalities[n].build() for n in finished.recipe.active}
    arm = load_learner(
        finished.arms["unimodal"][1], finished.recipe, modalities, arm="unimodal", num_classes=3
    )
    other = load(tmp_path / "b")
    assert same_weights(other.learner, arm)
    assert not np.allclose(
        other.predict(pictures).probabilities, chosen.predict(pictures).probabilities
    )


def test_a_training_run_is_exported_without_what_the_target_does_not_need(make_run, tmp_path):
    run = make_run("train")
    assert cli.main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    names = load(tmp_path / "out").learner.state_dict()
    assert not any("text" in name or "wave" in name for name in names)
    whole = (run / "checkpoint" / "model.safetensors").stat().st_size
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < whole


def test_what_cannot_be_exported_is_told(make_run, tmp_path, capsys):
    run = make_run("compare")
    trained = make_run("train", "trained")
    for arguments, said in (
        ([str(run), "--arm", "umll"], "did you mean 'uml'"),
        ([str(run), "--seed", "7"], "has 0, 1"),
        ([str(trained), "--seed", "0"], "choose among the fits"),
        ([str(tmp_path / "none")], "not a folder"),
        ([str(tmp_path)], "holds no finished run"),
    ):
        assert cli.main(["export", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    (run / "model" / "model.json").unlink()
    assert cli.main(["export", str(run)]) == 2
    assert "has not ended" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(make_run, tmp_path, capsys):
    run = make_run("compare")
    assert cli.main(["export", str(run), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "arm uml, seed 0" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_mlflow_serves_the_registered_model_with_the_numbers_of_plain_python(
    make_run, tmp_path, monkeypatch, pictures
):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run, out = make_run("compare"), tmp_path / "out"
    assert cli.main(["export", str(run), "--out", str(out), "--register", "tiny"]) == 0
    plain = load(out).predict(pictures)

    mlflow.set_tracking_uri(store)
    [version] = mlflow.MlflowClient(store).search_model_versions("name = 'tiny'")
    assert version.tags["arm"] == "uml" and version.tags["kind"] == "image"
    asked = tmp_path / "ask.json"
    encoded = [[base64.b64encode(data).decode()] for data in pictures]
    asked.write_text(json.dumps({"dataframe_split": {"columns": ["input"], "data": encoded}}))
    command = ["models", "predict", "-m", f"models:/tiny/{version.version}", "-i", str(asked)]
    answered = tmp_path / "answer.json"
    subprocess.run(
        [sys.executable, "-m", "mlflow", *command, "-o", str(answered), "--env-manager", "local"],
        check=True,
        cwd=tmp_path,
    )
    rows = json.loads(answered.read_text())["predictions"]
    assert [row["prediction"] for row in rows] == plain.classes
    assert np.allclose([row["probabilities"] for row in rows], plain.probabilities, atol=1e-6)
    assert np.allclose([row["embedding"] for row in rows], plain.embeddings, atol=1e-6)

    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's own code there
    served = mlflow.pyfunc.load_model(str(out))
    table = served.predict(pandas.DataFrame({"input": pictures}))
    assert np.allclose(np.stack(table["probabilities"]), plain.probabilities, atol=1e-6)


def test_the_exported_folder_predicts_without_this_project(make_run, tmp_path, pictures):
    """Its own copy of the method is enough: neither Ray nor MLflow nor the rest is imported."""
    out = tmp_path / "out"
    assert cli.main(["export", str(make_run("compare")), "--out", str(out)]) == 0
    (tmp_path / "a.png").write_bytes(pictures[0])
    program = """
import sys
from uml_core.export import load
print(*load("out").predict([open("a.png", "rb").read()]).classes)
assert not {"ray", "mlflow", "pipelines"} & set(sys.modules)
assert sys.modules["uml_core"].__file__.startswith(sys.path[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(out / 'code')!r})\n{program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == load(out).predict(pictures[:1]).classes


def test_exported_pins_name_public_versions(make_run, tmp_path, monkeypatch):
    """A build's local part (+cpu) is known to its own index only."""
    monkeypatch.setattr(exporting.importlib.metadata, "version", lambda name: "2.14.1+cpu")
    out = tmp_path / "out"
    assert cli.main(["export", str(make_run("compare")), "--out", str(out)]) == 0
    pins = (out / "requirements.txt").read_text().split()
    assert pins and all(pin.endswith("==2.14.1") for pin in pins)


@pytest.mark.ray
@pytest.mark.slow
def test_the_model_of_a_real_comparison(ray_cluster, tiny_recipe, write_recipe, tmp_path, capsys):
    """The fit that was exported reaches the test accuracy that the comparison gave it."""
    run, out = tmp_path / "run", tmp_path / "out"
    tiny_recipe["shots"] = [2, 4]
    assert cli.main(["compare", write_recipe(tiny_recipe), "--out", str(run)]) == 0
    assert cli.main(["export", str(run), "--out", str(out)]) == 0
    model = load(out)
    assert model.made_with["shots"] == 4
    index = load_index("image-test-*.tar", tiny_recipe["data_root"], "image")
    found = model.predict(read_rows(index, range(len(index))))
    right = [model.classes[k] == name for k, name in zip(index.labels, found.classes, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(model.made_with["test_accuracy"])
