"""The private folder of a local Ray: gone after its job; after the next one if that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.running.runtime import _private_folder

HOLD = """
import sys
from pathlib import Path
from pipelines.running.runtime import _private_folder
with _private_folder(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_only_folders_of_killed_jobs_are_removed(tmp_path):
    def start():
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return job, job.stdout.readline().strip()

    def age(folder):
        past = time.time() - 3600
        os.utime(os.path.join(folder, "owner"), (past, past))

    (running, kept), (killed, orphan) = start(), start()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with _private_folder(tmp_path):
        assert os.path.isdir(orphan)  # so young a folder may be one that is just being made
    age(kept)
    age(orphan)
    with _private_folder(tmp_path) as mine:
        assert os.path.isdir(kept) and os.path.isdir(mine) and not os.path.exists(orphan)
    assert not os.path.exists(mine)
    running.communicate()
    assert os.listdir(tmp_path) == []


@pytest.mark.ray
def test_processes_of_a_local_ray_find_it_among_others(ray_cluster):
    """Ray Train's cleaner of placement groups looks for its Ray this way."""
    import ray

    @ray.remote(num_cpus=0)
    def found() -> str:
        return (Path(os.environ["RAY_TMPDIR"]) / "ray" / "ray_current_cluster").read_text()

    assert ray.get(found.remote()) == ray.get_runtime_context().gcs_address
    assert "uml-ray-" not in os.environ.get("RAY_TMPDIR", "")  # nothing is left for other Rays


@pytest.mark.ray
def test_a_private_ray_listens_on_loopback_alone():
    code = """
import socket, ray
from pipelines.running import cluster
from pipelines.running.runtime import ray_session
with ray_session():
    place = ray.get_runtime_context().gcs_address
    cluster.check(place)
    print(place)
    here = socket.gethostbyname(socket.gethostname())
    with socket.socket() as other:
        other.settimeout(5)
        print(other.connect_ex((here, int(place.rpartition(":")[2]))) if here[:4] != "127." else 1)
"""
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place, refused = done.stdout.split()
    assert place.startswith("127.0.0.1:") and int(refused) != 0
