"""What workers tell the driver while a job runs: progress and events, through one small actor.

The driver waits for `trainer.fit()` and Train's callbacks run in the controller process, so
progress bars, notes and tracking need a channel of their own. Workers never wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.reporting import terminal

STALL_SECONDS = 60.0  # without a step: then the person should know what the job waits for
FRESH_SECONDS = 10.0  # a slow read that was told of longer ago has ended


@ray.remote(num_cpus=0)
class _Board:
    def __init__(self) -> None:
        self._done: dict[int, float] = {}
        self._events: list[dict[str, Any]] = []
        self._failure: str | None = None
        self._slow: dict[str, tuple[float, float]] = {}  # url -> seconds so far, when told

    def tick(self, rank: int, done: float) -> None:
        self._done[rank] = done

    def post(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def restart(self) -> None:
        self._done = {}  # the group may have fewer workers now

    def read(self) -> tuple[float, list[dict[str, Any]]]:
        events, self._events = self._events, []
        return sum(self._done.values()), events

    def fail(self, why: str) -> None:
        self._failure = self._failure or why

    def failure(self) -> str | None:
        return self._failure

    def slow(self, url: str, seconds: float) -> None:
        self._slow[url] = (seconds, time.monotonic())

    def slow_reads(self) -> dict[str, float]:
        now = time.monotonic()
        return {u: s for u, (s, told) in self._slow.items() if now - told < FRESH_SECONDS}


def new_board() -> ActorHandle:
    """A board for one job, on the node of its driver: other nodes may go away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: ActorHandle = _Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    return board


class Reporter:
    """A worker's end: progress at most twice a second, events at once, neither waits."""

    def __init__(self, board: ActorHandle, rank: int) -> None:
        self.board, self._rank, self._last = board, rank, 0.0

    def tick(self, done: float) -> None:
        """`done` units of work are finished on this rank."""
        if time.monotonic() - self._last > 0.5:
            self._last = time.monotonic()
            self.board.tick.remote(self._rank, done)

    def post(self, **event: Any) -> None:
        """Sends one event to the driver."""
        self.board.post.remote(event)

    def note(self, text: str, topic: str = "") -> None:
        """A sentence for the person who watches; of a topic only one a minute is shown."""
        self.post(note=text, topic=topic)

    def began(self, at: int, unit: str) -> None:
        """The worker group is ready and goes on after `at` steps (or rounds); rank 0 says it."""
        self.board.restart.remote()
        self.post(began=at, unit=unit)


class Listener:
    """The driver's end: a thread that polls the board and hands on what is new.

    on_event  gets the events that are neither notes nor starts of the worker group
    say       gets the sentences for the person who watches

    `restarts` counts how often the worker group was started again.
    """

    def __init__(
        self,
        board: ActorHandle,
        on_progress: Callable[[float], None],
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        *,
        say: Callable[[str], None] = terminal.note,
        interval: float = 0.5,
    ) -> None:
        self._board, self._interval, self._say = board, interval, say
        self._on_progress, self._on_event = on_progress, on_event
        self._starts = 0
        self._done, self._moved = 0.0, time.monotonic()
        self._told: dict[str, float] = {}  # topic -> when
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def restarts(self) -> int:
        return max(0, self._starts - 1)

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
            self._watch()

    def _poll(self) -> None:
        done: float
        events: list[dict[str, Any]]
        try:
            done, events = ray.get(self._board.read.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):
            return  # telemetry must never end the work it watches
        if done != self._done or events:
            self._done, self._moved = done, time.monotonic()
        self._on_progress(done)
        for event in events:
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        if "note" in event:
            self._note(event["note"], event["topic"])
        elif "began" in event:
            self._starts += 1
            at = f"{event['unit']} {event['began']}"
            if self._starts > 1:
                self._say(f"The worker group was started again; it goes on from {at}.")
            elif event["began"]:
                self._say(f"Going on from {at}.")
        else:
            self._on_event(event)

    def _note(self, text: str, topic: str) -> None:
        now = time.monotonic()
        if not topic or now - self._told.get(topic, -STALL_SECONDS) >= STALL_SECONDS:
            self._told[topic] = now
            self._say(text)

    def _watch(self) -> None:
        """Tells of a job that stands still, say because no node is left for its workers."""
        quiet = time.monotonic() - self._moved
        if quiet < STALL_SECONDS:
            return
        try:
            nodes, free = ray.nodes(), ray.available_resources()
        except ray.exceptions.RayError:
            return
        spare = ", ".join(f"{free[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in free)
        alive = sum(bool(node["Alive"]) for node in nodes)
        self._note(
            f"Nothing has moved for {quiet:.0f} s. Ray has {alive} nodes; free: {spare or 0}.",
            "stall",
        )


def failure_of(board: ActorHandle) -> str | None:
    """Why the job cannot go on whatever is started again; None where no worker said so."""
    try:
        found: Any = ray.get(board.failure.remote(), timeout=30)
    except (ray.exceptions.RayError, TimeoutError):
        return None
    return None if found is None else str(found)
