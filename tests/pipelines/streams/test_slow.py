"""A read that takes long is told of while it lasts, by the process that waits for it."""

from __future__ import annotations

import contextlib
import os
import threading

import numpy as np
from runs import wait_until

from pipelines.streams import slow
from pipelines.streams.shards import read_places


def read(shard: str) -> None:
    with contextlib.suppress(OSError):  # a pipe has no byte offsets
        read_places([shard], np.array([0]), np.array([0]), np.array([4]))


def test_a_read_that_hangs_is_named_with_its_time(tmp_path, monkeypatch):
    """A named pipe that nobody writes to: opening it for reading takes until somebody does."""
    monkeypatch.setattr(slow, "LIMIT_SECONDS", 0.1)
    monkeypatch.setattr(slow, "_INTERVAL", 0.05)
    heard: list[tuple[str, float]] = []
    slow.report_to(lambda url, seconds: heard.append((url, seconds)))
    shard = str(tmp_path / "text-train-000000.tar")
    os.mkfifo(shard)
    assert slow.slow_reads(0.0) == {}
    reader = threading.Thread(target=read, args=(shard,), daemon=True)
    reader.start()
    wait_until(lambda: slow.slow_reads(0.1))
    assert set(slow.slow_reads(0.1)) == {shard} and slow.slow_reads(1000.0) == {}
    wait_until(lambda: len(heard) > 1)
    assert {url for url, _ in heard} == {shard} and heard[-1][1] > heard[0][1] > 0.1
    with open(shard, "wb"):
        reader.join(10)
    assert not reader.is_alive() and slow.slow_reads(0.0) == {}
