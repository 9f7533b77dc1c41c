"""A folder has one owner: by process where processes can be seen, by signs of life elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.running import lock
from pipelines.running.lock import LOCK, alone, content
from uml_core.errors import RunError, UserError

HOLD = """
import sys
from pathlib import Path
from pipelines.running.lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def elsewhere(folder: Path, age: float = 0.0) -> Path:
    """A lock of another host, last written `age` seconds ago."""
    folder.mkdir(exist_ok=True)
    path = folder / LOCK
    owner = {"host": "far", "pid": 1, "machine": "far", "born": "1", "token": "x"}
    path.write_text(json.dumps(owner))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_process_that_lives_is_left_alone_and_one_that_died_is_not_waited_for(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=f"another job is at work.*process {other.pid} on"):
            alone(tmp_path).__enter__()
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, but not yet forgotten
        began = time.monotonic()
        with alone(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert time.monotonic() - began < 5
    assert os.listdir(tmp_path) == []


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path):
    with alone(tmp_path):
        told = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(told | {"born": "1"}))
    with alone(tmp_path):
        taken = json.loads((tmp_path / LOCK).read_text())
    assert taken["born"] == told["born"] and taken["token"] != told["token"]


def test_another_host_that_shows_life_is_left_alone(tmp_path):
    path, over = elsewhere(tmp_path), threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            os.utime(path)  # never empty in between, as the owner's own beats

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(UserError, match=r"process 1 on far\): wait for it, or end it"):
        alone(tmp_path).__enter__()
    over.set()
    thread.join()
    assert json.loads(path.read_text())["host"] == "far"


def test_another_host_that_is_silent_is_taken_over(tmp_path, monkeypatch):
    elsewhere(tmp_path, age=lock.STALE + 1)
    began = time.monotonic()
    with alone(tmp_path):
        pass
    assert time.monotonic() - began < 5
    monkeypatch.setattr(lock, "STALE", 1.0)
    elsewhere(tmp_path)
    began = time.monotonic()
    with alone(tmp_path):
        assert time.monotonic() - began > 0.5  # it was watched first


def test_many_that_wait_come_one_by_one_and_a_stale_lock_goes_to_one(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOOK", 0.001)
    elsewhere(tmp_path, age=lock.STALE + 1)
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with alone(tmp_path, wait=True):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8 and os.listdir(tmp_path) == []


def test_a_clearing_that_nobody_ends_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOOK", 0.001)
    elsewhere(tmp_path, age=lock.STALE + 1)
    left = tmp_path / f"{LOCK}.clear"
    left.touch()
    os.utime(left, (time.time() - lock.STALE - 1,) * 2)
    with alone(tmp_path):
        assert not left.exists()


def test_a_job_that_lost_its_folder_ends_and_leaves_the_other_one_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with pytest.raises(RunError, match="another job took"), alone(tmp_path):
        elsewhere(tmp_path)
        time.sleep(20)
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "far"


def test_the_owner_shows_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with alone(tmp_path):
        before = (tmp_path / LOCK).stat().st_mtime_ns
        time.sleep(0.5)
        assert (tmp_path / LOCK).stat().st_mtime_ns > before


def test_an_empty_folder_that_was_made_for_nothing_goes(tmp_path):
    with alone(tmp_path / "a" / "b"):
        assert content(tmp_path / "a" / "b") == []
    assert not (tmp_path / "a" / "b").exists()
    with alone(tmp_path / "c"):
        (tmp_path / "c" / "x").touch()
    assert content(tmp_path / "c") == ["x"]
