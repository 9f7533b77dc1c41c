"""Keeps a stream's read tasks a few chunks ahead of its consumer, without polling.

A Ray Data execution that is held back by its limits has no running task to wait for, and its
scheduling loop then spins: in the training process it takes the interpreter from the training
thread (measured: as much time as the training itself). So no stream ever reaches its limits:
a task waits for its turn instead, and the loop sleeps until the task goes on.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0)
class _Turns:
    def __init__(self, ahead: int) -> None:
        self._ahead, self._at = ahead, 0
        self._moved = asyncio.Condition()

    async def wait(self, chunk: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: chunk <= self._at + self._ahead)

    async def reached(self, chunk: int) -> None:
        async with self._moved:
            self._at = max(self._at, chunk)
            self._moved.notify_all()


class Pace:
    """What the consumer and the tasks of one stream share.

    starts  (segment, first batch) of every chunk, in order
    ahead   chunks that may be read or wait beyond the one the consumer is at
    """

    def __init__(self, starts: Sequence[tuple[int, int]], ahead: int) -> None:
        self._starts, self._at, self._ahead = list(starts), 0, ahead
        # On the consumer's node: with another one its stream would be lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._turns: Any = _Turns.options(scheduling_strategy=here).remote(ahead)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return _task_end, (self._turns, self._ahead)

    def reached(self, segment: int, batch: int) -> None:
        """The consumer has got to this batch; does not wait."""
        chunk = bisect_right(self._starts, (segment, batch)) - 1
        if chunk > self._at:
            self._at = chunk
            self._turns.reached.remote(chunk)

    def wait_for(self, chunk: int) -> None:
        """In a task: returns when the consumer is near enough to chunk number `chunk`."""
        if chunk > self._ahead:  # the first few need not wait for the actor to start
            ray.get(self._turns.wait.remote(chunk))


def _task_end(turns: Any, ahead: int) -> Pace:
    """A pace as the tasks see it: without the list of chunks."""
    pace = Pace.__new__(Pace)
    pace._starts, pace._at, pace._ahead, pace._turns = [], 0, ahead, turns
    return pace
