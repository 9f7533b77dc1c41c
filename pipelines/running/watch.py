"""Tells the person who watches when a worker waits long for data: which modality, which shard."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import ray

from pipelines.running.board import FRESH_SECONDS, Reporter
from pipelines.streams.slow import slow_reads

WAIT_SECONDS = 10.0  # before the first word
AGAIN_SECONDS = 60.0  # before the next about the same wait
NAMED = 3  # shards that a sentence names


class _Wait(NamedTuple):
    what: str
    shards: Collection[str]
    due: Callable[[], list[str]]
    since: float


class Watch:
    """One worker's waits. Use `waiting` around whatever may wait for data."""

    def __init__(self, reporter: Reporter, limit: float = WAIT_SECONDS) -> None:
        self.board = reporter.board
        self._reporter, self._limit = reporter, limit
        self._wait: _Wait | None = None
        self._told_at = 0.0  # seconds of the present wait when it was last told of
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uml-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    @contextlib.contextmanager
    def waiting(
        self, what: str, shards: Collection[str], due: Callable[[], list[str]]
    ) -> Iterator[None]:
        """The block may wait for `what`, which lies in `shards`; `due()` are those it reads now."""
        self._wait = _Wait(what, shards, due, time.monotonic())
        try:
            yield
        finally:
            self._wait = None
            if self._told_at:
                self._told_at = 0.0
                self._reporter.note(f"{what} is there again.", topic=f"end of wait for {what}")

    def _run(self) -> None:
        while not self._stop.wait(min(1.0, self._limit / 2)):
            wait = self._wait
            if wait is None:
                continue
            seconds = time.monotonic() - wait.since
            if seconds < (self._told_at + AGAIN_SECONDS if self._told_at else self._limit):
                continue
            slow = {url: s for url, s in self._slow().items() if url in wait.shards}
            text = sentence(wait.what, seconds, wait.due(), slow)
            if self._wait is wait:  # it may have ended meanwhile
                self._told_at = seconds
                self._reporter.note(text, topic=f"wait for {wait.what}")

    def _slow(self) -> dict[str, float]:
        """Slow reads of all processes of the job."""
        try:
            told: Any = ray.get(self.board.slow_reads.remote(), timeout=FRESH_SECONDS)
        except (ray.exceptions.RayError, TimeoutError):
            told = {}
        return {**told, **slow_reads()}


def sentence(what: str, seconds: float, due: list[str], slow: dict[str, float]) -> str:
    """What a person should know of a wait: the shards whose reads take long, else those due."""
    if slow:
        worst = sorted(slow, key=lambda url: -slow[url])[:NAMED]
        named = ", ".join(f"{url} ({slow[url]:.0f} s so far)" for url in worst)
        where = f"A read takes long: {named}."
    else:
        more = f" and {len(due) - NAMED} more" if len(due) > NAMED else ""
        where = f"It lies in {', '.join(due[:NAMED])}{more}; no single read of it is slow."
    return f"Training has waited {seconds:.0f} s for {what}. {where}"
