"""Tracking against a real SQLite store, and against a real server that goes down in mid-run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import MlflowServer, free_port

from pipelines import tracking
from pipelines.reporting.mlflow_store import PARENT, resolve_uri
from pipelines.tracking import Tracker, flatten


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory) -> str:
    """One SQLite store for the module: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(uri, experiment):
    found = client(uri).get_experiment_by_name(experiment)
    return client(uri).search_runs([found.experiment_id])


def test_flatten():
    tree = {"train": {"lr": 1e-3, "mode": "joint"}, "seeds": [0, 1], "shots": None, "more": {}}
    assert flatten(tree) == {
        "train.lr": "0.001",
        "train.mode": "joint",
        "seeds": "[0, 1]",
        "shots": "null",
        "more": "{}",
    }


def test_default_store_lies_in_the_runs_folder_whatever_the_working_directory(
    tmp_path, monkeypatch
):
    out = tmp_path / "runs" / "shapes" / "now"
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(out) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri(Path("elsewhere")) == f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_uri(out) == "http://server:5000"
    assert resolve_uri(out, "sqlite:///mine.db") == f"sqlite:///{tmp_path}/mine.db"


def test_nested_runs_hold_params_metrics_tags_and_artifacts(tmp_path, store_uri, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    report = tmp_path / "report.html"
    report.write_text("<p>answer</p>")
    with Tracker.open(out, "nested", store_uri) as tracker:
        recipe = {"train": {"lr": 0.1}, "modalities": {"émage": {"ratio": 1}}}
        tracker.start(PARENT, "compare", params=recipe, tags={"git.commit": "abc"})
        tracker.describe(PARENT, "Yes.")
        tracker.start("uml/0", "uml, seed 0", params={"seed": 0}, tags={"arm": "uml"})
        for step in range(3):
            tracker.log_metrics("uml/0", {"loss": 1.0 / (step + 1), "a,b": 1.0}, step)
        tracker.log_series("uml/0", "val", range(2500), map(float, range(2500)))
        tracker.log_artifact(PARENT, report, "reports")
    by_name = {run.info.run_name: run for run in runs_of(store_uri, "nested")}
    parent, child = by_name["compare"], by_name["uml, seed 0"]
    assert parent.data.params == {"train.lr": "0.1", "modalities.émage.ratio": "1"}
    assert parent.data.tags["git.commit"] == "abc"
    assert parent.data.tags["mlflow.note.content"] == "Yes."
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["arm"] == "uml"
    assert {parent.info.status, child.info.status} == {"FINISHED"}
    reader = client(store_uri)
    history = reader.get_metric_history(child.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert len(reader.get_metric_history(child.info.run_id, "val")) == 2500
    assert child.data.metrics["a_b"] == 1.0
    assert [f.path for f in reader.list_artifacts(parent.info.run_id, "reports")] == [
        "reports/report.html"
    ]
    assert parent.info.artifact_uri.startswith(out.as_uri())
    assert not Path("mlruns").exists()
    assert not (out / tracking.SPOOL).exists()


def test_a_repeated_job_continues_its_runs(tmp_path, store_uri):
    said: list[str] = []

    def job(steps):
        with Tracker.open(tmp_path, "resumed", store_uri, say=said.append) as tracker:
            tracker.start(PARENT, "train", params={"lr": 1, "steps": steps})
            tracker.start("seed/0", "seed 0")
            for step in range(steps):
                tracker.log_metrics("seed/0", {"loss": float(step)}, step)

    job(3)
    job(5)
    runs = {run.info.run_name: run for run in runs_of(store_uri, "resumed")}
    assert len(runs_of(store_uri, "resumed")) == 2
    history = client(store_uri).get_metric_history(runs["seed 0"].info.run_id, "loss")
    assert [m.step for m in history] == [0, 1, 2, 3, 4]
    assert runs["train"].data.params == {"lr": "1", "steps": "3"}
    assert said == []


def test_a_run_whose_id_was_lost_is_found_again(tmp_path, store_uri):
    def job():
        with Tracker.open(tmp_path, "lost", store_uri) as tracker:
            tracker.start(PARENT, "train")

    job()
    path = tmp_path / "tracking.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"runs": {}}))
    job()
    assert len(runs_of(store_uri, "lost")) == 1


def test_a_failed_job_ends_its_runs_as_failed(tmp_path, store_uri):
    with pytest.raises(ZeroDivisionError), Tracker.open(tmp_path, "failed", store_uri) as tracker:
        tracker.start(PARENT, "train")
        tracker.start("a", "child")
        tracker.end("a")
        raise ZeroDivisionError
    states = {run.info.run_name: run.info.status for run in runs_of(store_uri, "failed")}
    assert states == {"train": "FAILED", "child": "FINISHED"}


def test_what_can_never_be_delivered_is_told_and_holds_nothing_up(tmp_path, store_uri):
    said: list[str] = []
    with Tracker.open(tmp_path, "refused", store_uri, say=said.append) as tracker:
        tracker.start(PARENT, "train")
        tracker.log_artifact(PARENT, tmp_path / "never-written.png")
        tracker.log_metrics(PARENT, {"loss": 1.0}, 0)
    assert runs_of(store_uri, "refused")[0].data.metrics == {"loss": 1.0}
    assert "never-written.png" in said[0]
    assert "1 tracking event" in said[1]
    assert not (tmp_path / tracking.SPOOL).exists()


def test_a_child_needs_its_parent_and_a_metric_its_run(tmp_path, store_uri):
    with Tracker.open(tmp_path, "order", store_uri) as tracker:
        with pytest.raises(ValueError, match="parent"):
            tracker.start("child", "child")
        with pytest.raises(ValueError, match="not started"):
            tracker.log_metrics("child", {"loss": 1.0}, 0)


def test_a_torn_last_line_of_the_spool_is_dropped(tmp_path, store_uri):
    event = {"kind": "start", "run": "", "time": 1, "name": "torn", "params": {}, "tags": {}}
    (tmp_path / tracking.SPOOL).write_text(json.dumps(event) + "\n" + '{"kind": "metr')
    Tracker.open(tmp_path, "torn", store_uri).close()
    assert [run.info.run_name for run in runs_of(store_uri, "torn")] == ["torn"]


def test_without_a_server_work_goes_on_and_events_wait(tmp_path, store_uri, monkeypatch):
    said: list[str] = []
    dead = f"http://user:secret@127.0.0.1:{free_port()}"
    with Tracker.open(tmp_path, "waiting", dead, say=said.append) as tracker:
        tracker.start(PARENT, "train")
        for step in range(20):
            tracker.log_metrics(PARENT, {"loss": float(step)}, step)
        tracker.start("uml/0", "child")
    assert "does not take events" in said[0]
    assert "24 tracking events wait" in said[1]
    assert len(said) == 2
    waiting = [json.loads(x) for x in (tmp_path / tracking.SPOOL).read_text().splitlines()]
    assert [(event["kind"], event["run"]) for event in waiting[-2:]] == [
        ("end", "uml/0"),
        ("end", PARENT),
    ]
    kept = "".join(said) + (tmp_path / "tracking.json").read_text()
    assert "secret" not in kept
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    tracking.deliver_waiting(tmp_path)
    run = next(r for r in runs_of(store_uri, "waiting") if r.info.run_name == "train")
    assert len(client(store_uri).get_metric_history(run.info.run_id, "loss")) == 20
    assert run.info.status == "FINISHED"
    assert not (tmp_path / tracking.SPOOL).exists()


@pytest.mark.slow
def test_a_server_that_never_answers_holds_nothing_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Tracker.open(tmp_path, "silent", url, say=lambda _: None) as tracker:
            began = time.monotonic()
            tracker.start(PARENT, "train")
            for step in range(200):
                tracker.log_metrics(PARENT, {"loss": float(step)}, step)
            # A request to this server takes its full timeout of 10 s, and there would be 201.
            assert time.monotonic() - began < 60
        assert time.monotonic() - began < 240
    assert len((tmp_path / tracking.SPOOL).read_text().splitlines()) == 202


@pytest.mark.slow
def test_a_server_killed_in_mid_run_loses_nothing(tmp_path):
    server = MlflowServer(tmp_path)
    said: list[str] = []
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"weights")
    server.start()
    try:
        with Tracker.open(tmp_path / "out", "killed", server.url, say=said.append) as tracker:
            tracker.start(PARENT, "compare")
            tracker.start("uml/0", "uml, seed 0")
            for step in range(60):
                if step == 20:
                    server.kill()
                if step == 40:
                    server.start()
                began = time.monotonic()
                tracker.log_metrics("uml/0", {"loss": float(step)}, step)
                assert time.monotonic() - began < 10, "a dead server must not hold the work up"
                time.sleep(0.1)
            tracker.log_artifact(PARENT, model)
        assert len(said) == 2, said
        assert "does not take events" in said[0]
        assert "back" in said[1]
        by_name = {run.info.run_name: run for run in runs_of(server.url, "killed")}
        assert set(by_name) == {"compare", "uml, seed 0"}
        history = client(server.url).get_metric_history(by_name["uml, seed 0"].info.run_id, "loss")
        assert sorted(m.step for m in history) == list(range(60))
        files = client(server.url).list_artifacts(by_name["compare"].info.run_id)
        assert [file.path for file in files] == ["model.safetensors"]
        assert not (tmp_path / "out" / tracking.SPOOL).exists()
    finally:
        server.kill()


def test_no_path_sends_the_database_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "a?b 100%#1" / "runs" / "x"
    with Tracker.open(out, "e", say=lambda text: pytest.fail(text)) as tracker:
        tracker.start(PARENT, "x", params={"data_root": "https://u:word@h/d?sig=abc"})
    assert (out.parent / "mlflow.db").is_file() and "?" not in tracker.where
    assert sorted(os.listdir(tmp_path)) == ["a?b 100%#1", "cache"]
    [run] = runs_of(tracker.where.split()[-1], "e")
    assert run.data.params["data_root"] == "https://***@h/d?***"


def test_a_folder_that_the_shell_names_is_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with Tracker.open(tmp_path / "out", "e", say=lambda text: pytest.fail(text)) as tracker:
        tracker.start(PARENT, "x", tags={"k": "v"})
    assert (tmp_path / "mlruns").is_dir()
    assert not (tmp_path / "mlruns" / ("0" * 32)).exists()


def test_variables_of_other_work_do_not_end_a_job(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipelines.tracking import Tracker\n"
        "with Tracker.open(Path(sys.argv[1]), 'e') as t: t.start('', 'x')"
    )
    env = os.environ | {"MLFLOW_LOGGING_LEVEL": "nonsense", "MLFLOW_HTTP_REQUEST_TIMEOUT": "soon"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
