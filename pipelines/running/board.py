"""What workers tell the driver while a job runs: progress and events, through one small actor.

The driver is blocked in `trainer.fit()` and Train's callbacks run in the controller process, so
progress bars and tracking need a channel of their own. Workers never wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle


@ray.remote(num_cpus=0)
class Board:
    """Holds the latest progress of each rank and the events not yet read."""

    def __init__(self) -> None:
        self._done: dict[int, float] = {}
        self._events: list[dict[str, Any]] = []

    def tick(self, rank: int, done: float) -> None:
        self._done[rank] = done

    def post(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def read(self) -> tuple[float, list[dict[str, Any]]]:
        events, self._events = self._events, []
        return sum(self._done.values()), events


class Reporter:
    """A worker's end: progress at most twice a second, events at once, neither waits."""

    def __init__(self, board: ActorHandle, rank: int) -> None:
        self._board, self._rank, self._last = board, rank, 0.0

    def tick(self, done: float) -> None:
        """`done` units of work are finished on this rank."""
        if time.monotonic() - self._last > 0.5:
            self._last = time.monotonic()
            self._board.tick.remote(self._rank, done)

    def post(self, **event: Any) -> None:
        """Sends one event to the driver."""
        self._board.post.remote(event)


class Listener:
    """The driver's end: a thread that polls the board and hands on what is new."""

    def __init__(
        self,
        board: ActorHandle,
        on_progress: Callable[[float], None],
        on_event: Callable[[dict[str, Any]], None],
        interval: float = 0.5,
    ) -> None:
        self._board, self._interval = board, interval
        self._on_progress, self._on_event = on_progress, on_event
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        self._poll()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._poll()

    def _poll(self) -> None:
        done: float
        events: list[dict[str, Any]]
        try:
            done, events = ray.get(self._board.read.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):
            return  # telemetry must never end the work it watches
        self._on_progress(done)
        for event in events:
            self._on_event(event)
