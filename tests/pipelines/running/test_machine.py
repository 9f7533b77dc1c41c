"""Each check of a machine, with its failing case provoked for real where this machine allows it."""

import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import mounts
import pytest
from runs import wait_until

from pipelines.running import machine
from pipelines.running.need import Need

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    with mounts.small_disk(tmp_path / "small", "4m") as folder:
        yield folder


# ------------------------------------------------------------------------------------- disk


def states(findings):
    return {finding.name: finding.state for finding in findings}


def test_a_disk_that_cannot_hold_one_checkpoint_stops_a_job(small_disk, tmp_path):
    free, out = tmp_path, small_disk / "runs" / "one"  # not made yet
    assert states(machine.disk(Need(checkpoint=MIB, results=MIB // 4), out)) == {
        "disk": "ok",
        "disk for copies": "ok",
    }
    assert machine.disk(Need(checkpoint=2 * MIB), out)[0].state == "warn"
    full = machine.disk(Need(checkpoint=8 * MIB), out)[0]
    assert full.state == "stop" and str(small_disk) in full.found and "--out" in full.fix
    copies = machine.disk(Need(checkpoint=8 * MIB), free, temp=str(small_disk))
    assert states(copies) == {"disk": "ok", "disk for copies": "stop"}
    assert "TMPDIR" in copies[1].fix and not out.exists()


def test_a_full_disk_below_ray_is_told(small_disk):
    assert machine.temp_folder(str(small_disk)).state == "ok"
    (small_disk / "filler").write_bytes(bytes(4 * MIB - 64 * 1024))
    found = machine.temp_folder(str(small_disk))
    assert found.state == "warn" and "spills" in found.found
    assert machine.temp_folder(str(small_disk / "nothing")).state == "stop"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert states(machine.disk(Need(), tmp_path / "out")) == {
        "disk": "stop",
        "disk for copies": "stop",
    }


def test_small_shared_memory_is_told(small_disk):
    found = machine.shared_memory(str(small_disk))
    assert found.state == "warn" and "4.0 MiB" in found.found and "--shm-size=" in found.fix
    assert machine.shared_memory("/dev/nothing").state == "ok"
    assert machine.object_store_bytes(str(small_disk)) < 4 * MIB


# --------------------------------------------------------------------------------- tracking


def test_a_tracking_server_that_is_down_is_a_warning(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    found = machine.tracking(tmp_path)
    assert found.state == "warn" and "does not answer" in found.found
    assert "secret" not in found.found + found.fix


def test_a_tracking_server_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "TRACKING_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        port = server.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        assert machine.tracking(tmp_path).state == "warn"


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (404, "ok"), (503, "warn")])
def test_a_tracking_server_that_answers(tmp_path, monkeypatch, status, state):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}/")
        assert machine.tracking(tmp_path).state == state
        server.shutdown()


def test_a_database_that_another_program_holds(tmp_path, monkeypatch):
    path = tmp_path / "runs" / "mlflow.db"
    out = tmp_path / "runs" / "one"
    assert machine.tracking(out).state == "ok" and not path.exists()  # it is made later
    path.parent.mkdir()
    holder = sqlite3.connect(path)
    holder.execute("CREATE TABLE t (x)")
    assert machine.tracking(out).state == "ok"
    holder.execute("BEGIN EXCLUSIVE")
    found = machine.tracking(out)
    assert found.state == "warn" and "locked" in found.found
    holder.close()
    path.write_bytes(b"no database" * 1000)
    assert "not a database" in machine.tracking(out).found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert machine.tracking(out).state == "ok"


# ------------------------------------------------------------------------ packages and limits


def install(folder: Path, name: str, version: str, *requires: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in ("default", "other")]
    lines += [f"Requires-Dist: {need}" for need in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def test_packages_that_are_missing_or_of_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    install(tmp_path, "umltestray", "2.0", 'umltestboard>=1; extra == "default"', "umltestbase")
    install(tmp_path, "umltestbase", "1.5")
    install(tmp_path, "umltestgood", "1.0", "umltestray[default]==2.*", 'umlno; extra == "other"')
    found = machine.packages("umltestgood")
    assert found.state == "warn" and found.found == "umltestboard is missing (umltestray[default])"
    install(tmp_path, "umltestboard", "1.2")
    assert machine.packages("umltestgood").state == "ok"
    install(tmp_path, "umltestold", "1.0", "umltestray>=3")
    assert "umltestray 2.0 is not >=3" in machine.packages("umltestold").found
    assert machine.packages("umltestnothing").state == "warn"


def test_this_installation_is_complete():
    assert machine.packages().state == "ok"


def test_limits():
    assert machine.limits((1024, 1024), 10_000).fix == "ulimit -n 65536"
    assert machine.limits((1024, 1_000_000), 10_000).state == "ok"  # Ray raises it itself
    assert machine.limits((65536, -1), -1).state == "ok"
    few = machine.limits((65536, 65536), 200)
    assert few.state == "warn" and "--pids-limit" in few.fix
    assert machine.limits().state in ("ok", "warn") and machine.processes_left() >= -1


# -------------------------------------------------------------------------- need and machine


def test_memory_and_cores():
    need = Need(workers=4, memory=100 * MIB)
    assert machine.memory(need, 4, 1000 * MIB).state == "ok"
    assert machine.memory(need, 4, 450 * MIB).state == "warn"
    stop = machine.memory(need, 4, 300 * MIB)
    assert stop.state == "stop" and "model.width" in stop.fix
    assert machine.cores(need, 4).state == "ok"
    assert machine.cores(need, 2).fix == "train.workers=2"


def test_fewer_shards_than_workers_are_legal():
    need = Need(workers=4, shards=(("image", 1), ("text", 8)))
    local = machine.shards(need)
    assert local.state == "ok" and "costs local files nothing" in local.found
    remote = machine.shards(Need(workers=4, shards=need.shards, remote=("image", "text")))
    assert remote.state == "warn" and "image has 1 for 4" in remote.found
    assert "text" not in remote.found and "--per-shard" in remote.fix


def test_rays_that_share_a_temporary_folder():
    def command(session: str) -> list[str]:
        return ["/x/gcs_server", "--log_dir=/y", f"--session-dir={session}"]

    commands = [command("/tmp/ray/session_1"), command("/tmp/uml-ray-a/session_2"), ["python"], []]
    assert machine.other_rays(None, commands).found == "2 more on this machine, apart"
    found = machine.other_rays("/tmp/ray/session_3", [*commands, command("/tmp/ray/session_3")])
    assert found.state == "warn" and "1 more live in /tmp/ray" in found.found
    assert machine.other_rays("/tmp/uml-ray-b/session_4", commands).state == "ok"
    assert machine.other_rays("/tmp/ray/session_1", [commands[0]]).found == "none"


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc on this system")
def test_a_ray_that_really_runs_is_seen(tmp_path):
    session = tmp_path / "session_1"
    line = ["gcs_server", "-c", "read line", f"--session-dir={session}"]
    process = subprocess.Popen(line, executable="/bin/sh", stdin=subprocess.PIPE)
    try:
        wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes())
        found = machine.other_rays(str(tmp_path / "session_2"))
        assert found.state == "warn" and str(tmp_path) in found.found
    finally:
        process.communicate(b"\n")
    assert machine.other_rays(str(tmp_path / "session_2")).state == "ok"
