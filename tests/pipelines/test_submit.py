"""What `uml submit` sends, refuses and warns of without a cluster; test_hosts.py has a real one."""

from __future__ import annotations

import http.server
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from servers import free_port

from pipelines import cli, submit
from pipelines.running import job_server, upload
from uml_core.errors import UserError

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # so that what the code sets is taken back
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def submitted(capsys, *argv: str) -> tuple[int, str]:
    code = cli.main(["submit", *argv])
    said = capsys.readouterr()
    return code, said.out + said.err


def scatter(root: Path, names: Iterable[str]) -> None:
    """Small files of these names below `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def test_data_runs_and_environments_are_never_uploaded(tmp_path, monkeypatch):
    home, bundle = tmp_path / "home", tmp_path / "bundle"
    bundle.mkdir()
    scatter(
        home,
        ("data/x.tar", "runs/one/metrics.json", ".venv/bin/python", ".git/config", "big.tar"),
    )
    (home / "mine.yaml").write_text("name: mine")
    (home / "spaces").mkdir()
    (home / "spaces" / "own.py").write_text("")
    monkeypatch.chdir(home)
    size = upload.pack(bundle, ["mine.yaml", "--space", "spaces/own.py", "data_root=data"], {})
    sent = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    packages = {name for name in sent if name.startswith(tuple(f"{p}/" for p in upload.PACKAGES))}
    assert sent - packages == {"mine.yaml", "spaces/own.py", upload.ENVIRONMENT}
    assert {"pipelines/train.py", "pipelines/recipes/shapes.yaml", "uml_core/loop.py"} <= packages
    assert "pipelines/reporting/templates/report.html" in packages
    assert not any("__pycache__" in name for name in sent)
    assert 0 < size < 4 << 20


def test_the_image_can_bring_the_code(tmp_path):
    upload.pack(tmp_path, [], {}, code=False)
    assert [p.name for p in tmp_path.iterdir()] == [upload.ENVIRONMENT]


def test_the_bundle_runs_without_the_checkout(tmp_path):
    upload.pack(tmp_path, [], {"UML_SAYS": "it's $HOME"})
    line = upload.entrypoint("python", "cli", ["--help"])
    shown = subprocess.run(
        f"{line.replace('exec python', 'echo $UML_SAYS; exec ' + sys.executable)}",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere"},
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("it's $HOME\numl VERB")


def test_what_is_too_large_is_refused_and_named(tmp_path, monkeypatch):
    home, bundle = tmp_path / "home", tmp_path / "bundle"
    home.mkdir(), bundle.mkdir()
    with (home / "shards.tar").open("wb") as file:
        file.truncate(upload.MOST_BYTES + 1)
    monkeypatch.chdir(home)
    with pytest.raises(UserError, match=r"at most 64 MiB.*shards\.tar \(64 MiB\)"):
        upload.pack(bundle, ["tests.sketch.files=shards.tar"], {}, code=False)


@pytest.mark.parametrize("name", ["../secret.yaml", "pipelines/train.py"])
def test_names_that_would_leave_or_replace_are_refused(tmp_path, monkeypatch, name):
    home = tmp_path / "home"
    (home / "pipelines").mkdir(parents=True)
    (tmp_path / "secret.yaml").write_text("")
    (home / "pipelines" / "train.py").write_text("")
    monkeypatch.chdir(home)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    with pytest.raises(UserError, match=name):
        upload.pack(bundle, [name], {})


def test_secrets_stand_in_a_private_file_and_nowhere_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame")
    env = upload.environment(["AWS_SECRET_ACCESS_KEY", "MODE=a b"])
    assert env == {"AWS_SECRET_ACCESS_KEY": "sesame", "MODE": "a b"}
    upload.pack(tmp_path, [], env, code=False)
    file = tmp_path / upload.ENVIRONMENT
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "sesame" not in upload.entrypoint("python", "train", ["shapes"])
    code, said = submitted(
        capsys, "theory", "--env", "AWS_SECRET_ACCESS_KEY", "--out", "/x", "--dry-run"
    )
    assert code == 0 and "sesame" not in said
    assert "AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD" in said


def test_all_that_is_wrong_is_told_at_once(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = submitted(
        capsys, "train", "shapes", "train.stepps=3", "--out", "runs/one", "--address", NOBODY
    )
    assert code == 2
    assert "--out: name a folder by its absolute path" in said
    assert "train.stepps: unknown field (did you mean 'steps'?)" in said


def test_a_relative_data_root_means_nothing_to_a_cluster(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "digits", "data_root=data/digits", "--out", "/shared/one", "--dry-run"]
    code, said = submitted(capsys, *command)
    assert code == 2 and "the cluster does not know 'data/digits'" in said
    command[2] = "data_root=/shared/digits"
    code, said = submitted(capsys, *command)
    assert code == 0 and "pipelines.train digits data_root=/shared/digits --out /shared/one" in said


def test_embedded_data_goes_beside_the_results(capsys):
    code, said = submitted(
        capsys, "compare", "shapes", "shots=4", "--out", "/shared/runs/one", "--dry-run"
    )
    assert code == 0
    assert "pipelines.compare shapes data_root=/shared/runs/data/shapes shots=4 --out" in said


def test_arguments_of_the_verb_pass_through_in_order(capsys):
    command = ["sweep", "shapes", "--space", "modality_ratio", "sweep.trials=3", "--resume"]
    code, said = submitted(capsys, *command, "--out", "/shared/one", "--dry-run")
    assert code == 0
    assert "--space modality_ratio sweep.trials=3 --resume --out /shared/one" in said


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["trian", "shapes"], "no verb 'trian' (did you mean 'train'?)"),
        (["status"], "--address: name the cluster's dashboard"),
        (["status", "--address", "ftp://head"], "a dashboard's address is like"),
        (["status", "--address", NOBODY], "no job server answers at http://127.0.0.1:9"),
        (["logs"], "logs takes one job's id"),
        (["theory", "--out", "/x", "--env", "NOT_SET_HERE"], "--env NOT_SET_HERE: it is not set"),
    ],
)
def test_wrong_calls_say_what_to_do(capsys, argv, expected):
    code, said = submitted(capsys, *argv)
    assert code == 2 and expected in " ".join(said.split())


class OpenServer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        allowed = self.server.open
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps([]).encode() if allowed else b"Unauthorized")

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("open_to_all", [True, False])
def test_a_cluster_that_takes_everybodys_jobs_is_warned_of(open_to_all):
    port = free_port()
    with http.server.HTTPServer(("127.0.0.1", port), OpenServer) as server:
        server.open = open_to_all
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = job_server.risks(f"http://127.0.0.1:{port}")
        server.shutdown()
    assert ["takes jobs without a token" in risk for risk in found] == [True] * open_to_all


def test_a_token_over_plain_http_is_warned_of():
    assert "whoever reads along learns the token" in job_server.risks("http://head.invalid:8265")[0]
    assert job_server.risks("https://head.invalid") == []


def test_results_never_go_into_the_folder_that_ray_removes(tmp_path, monkeypatch, capsys):
    folder = tmp_path / cli.RUNTIME_ENV / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert cli.main(["train", "shapes"]) == 2
    assert "--out: Ray removes the folder" in capsys.readouterr().err


def test_ray_leaves_the_same_behind_for_a_plain_job_submit(tmp_path):
    """`ray job submit --working-dir .` packs what .gitignore and .rayignore leave."""
    from ray._private.runtime_env.packaging import create_package

    root = Path(__file__).resolve().parents[2]
    checkout = tmp_path / "checkout"
    left = ("data/x", "runs/one/x", ".venv/x", "tests/x", ".git/x", "a.tar")
    scatter(checkout, (*left, "pipelines/train.py"))
    for name in (".gitignore", ".rayignore"):
        (checkout / name).write_bytes((root / name).read_bytes())
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True)
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(package)], capture_output=True, text=True
    ).stdout
    files = {
        line.split()[0] for line in listed.splitlines()[1:] if not line.split()[0].endswith("/")
    }
    assert {name for name in files if not name.endswith("ignore")} == {"pipelines/train.py"}


@pytest.mark.parametrize(
    "typed, goes_on, stopped",
    [("y", False, ["j1"]), ("n", False, []), ("", False, []), ("c", True, [])],
)
def test_ctrl_c_asks_what_should_become_of_the_job(monkeypatch, capsys, typed, goes_on, stopped):
    asked, client = [], Stopper()
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or typed)
    monkeypatch.setattr(submit.sys.stdin, "isatty", lambda: True, raising=False)
    assert submit._wants_to_go_on(client, "j1") is goes_on
    assert client.stopped == stopped and "Stop the job as well?" in asked[0]


def test_without_a_terminal_ctrl_c_leaves_the_job_alone(monkeypatch, capsys):
    client = Stopper()
    monkeypatch.setattr(submit.sys.stdin, "isatty", lambda: False, raising=False)
    assert submit._wants_to_go_on(client, "j1") is False and client.stopped == []
    assert "uml submit logs j1" in " ".join(capsys.readouterr().err.split())


class Stopper:
    """As much of a job client as Ctrl-C needs."""

    def __init__(self) -> None:
        self.stopped: list[str] = []

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)
