"""Jobs look before they start: refused in words where they would hang or lose data."""

import json
import subprocess
import sys
import time

import pytest
from mounts import small_disk

from pipelines import cli
from pipelines.running import machine
from pipelines.running.data import open_data, resolved
from pipelines.running.need import Need, count_parameters, estimate, evaluation_bytes
from pipelines.running.preflight import preflight
from uml_core.errors import UserError
from uml_core.learner import UnpairedLearner
from uml_core.recipe import from_dict


@pytest.fixture
def opened(tiny_recipe):
    recipe = from_dict(tiny_recipe)
    data = open_data(recipe)
    return resolved(recipe, data), data


def test_the_need_of_a_job(opened):
    recipe, data = opened
    learner = UnpairedLearner(data.modalities, recipe.model, num_classes=3)
    parameters = sum(p.numel() for p in learner.parameters())
    assert count_parameters(recipe, data) == parameters
    one = estimate(recipe, data)
    assert (one.workers, one.streams, one.device) == (2, 3, "cpu")
    assert one.checkpoint == 16 * parameters and one.remote == ()
    assert dict(one.shards) == {"image": 3, "text": 3, "wave": 3} and len(one.paths) == 4
    many = estimate(recipe, data, together=5, fits=100, workers=1)
    assert many.checkpoint == 400 * parameters and many.memory > one.memory


def test_an_evaluation_set_that_no_worker_can_hold_is_refused_before_the_training(
    opened, tmp_path, monkeypatch
):
    """It used to fail after the training, when the test set was read."""
    recipe, data = opened
    picture = 3 * 12 * 12  # pixels travel as bytes
    assert estimate(recipe, data).evaluation == 30 * picture == evaluation_bytes(recipe, data)
    monkeypatch.setattr(machine.evaluation, "__defaults__", (30 * picture - 1,))
    with pytest.raises(UserError, match=r"evaluation set: about .* decoded, more than"):
        preflight(recipe, data, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    enough = machine.evaluation(Need(evaluation=30 * picture), 30 * picture)
    assert enough.state == "ok"


def test_a_good_job_passes_soon_and_leaves_nothing(opened, tmp_path, capsys):
    preflight(*opened, tmp_path / "out")  # the first call imports
    start = time.process_time()
    findings = preflight(*opened, tmp_path / "out")
    assert time.process_time() - start < 2
    assert not [finding for finding in findings if finding.state == "stop"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["train", "compare"])
def test_gpus_that_are_not_there_stop_a_job_before_it_starts(
    verb, tiny_recipe, write_recipe, tmp_path, capsys
):
    import torch

    there, out = torch.cuda.device_count(), tmp_path / "out"
    fields = ["train.device=cuda", f"train.workers={there + 1}"]
    code = cli.main([verb, write_recipe(tiny_recipe), *fields, "--out", str(out)])
    said = capsys.readouterr().err
    assert code == 2 and not out.exists()
    assert f"GPUs: {there} GPUs" in said and "→ train.device=auto" in said


def test_a_tracking_server_that_is_down_is_told_and_no_more(opened, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    preflight(*opened, tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "Before the start: tracking: http://127.0.0.1:9: it does not answer" in said


def test_a_full_disk_stops_a_job(tiny_recipe, write_recipe, tmp_path, capsys):
    with small_disk(tmp_path / "small", "64k") as folder:
        (folder / "filler").write_bytes(bytes(48 * 1024))
        code = cli.main(["train", write_recipe(tiny_recipe), "--out", str(folder / "out")])
        assert code == 2 and not (folder / "out").exists()
        assert "not one can be kept" in capsys.readouterr().err


def test_a_model_that_fits_no_memory_stops_a_job(
    tiny_recipe, write_recipe, tmp_path, capsys, monkeypatch
):
    """Counted without making it: 60 000 wide, it would take all memory of most machines."""
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 << 30)
    fields = ["model.width=60000", "model.depth=20", "model.heads=2"]
    out = tmp_path / "out"
    assert cli.main(["train", write_recipe(tiny_recipe), *fields, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "they do not fit" in said and not out.exists()


# ----------------------------------------------------------------------------------- doctor


def doctor(*words):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "doctor", *map(str, words)],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.ray
def test_doctor_starts_a_ray_and_tells_all(tiny_recipe, write_recipe, tmp_path):
    out = tmp_path / "out"
    code, shown, errors = doctor(write_recipe(tiny_recipe), "--out", out)
    report = json.loads((out / "doctor.json").read_text())
    found = {check["name"]: check for check in report["checks"]}
    assert code == 0 and report["ready"], errors
    assert found["Ray"]["state"] == "ok" and "starts in" in found["Ray"]["found"]
    assert {"packages", "dashboard", "CPU plan", "shards", "disk", "tracking"} <= set(found)
    lines = [line for line in shown.splitlines() if not line.startswith("details")]
    assert max(map(len, lines)) <= 80 and "Ready" in shown


@pytest.mark.ray
def test_doctor_finds_what_stops_a_recipe(ray_cluster, tiny_recipe, write_recipe, tmp_path, capsys):
    tiny_recipe["modalities"]["text"]["train"] = "txet-*.tar"
    path, out = write_recipe(tiny_recipe), tmp_path / "out"
    assert cli.main(["doctor", path, "train.device=cuda", "--json", "--out", str(out)]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "doctor.json").read_text()) and not report["ready"]
    (data,) = [check for check in report["checks"] if check["name"] == "data"]
    assert data["state"] == "stop" and "txet-*.tar" in data["found"]
    assert cli.main(["doctor", "--dry-run"]) == 0
    assert cli.main(["doctor", "shappes"]) == 2
