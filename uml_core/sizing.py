"""Frozen models over many samples, in batches of a size that is found by itself.

The batch grows while larger batches do more work per second, and is halved where one does not fit
the memory. Every batch counts as work done: nothing is run only to be timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from uml_core.errors import RunError

FIRST, MOST = 8, 1024  # samples
TRIALS = 2  # batches of a size before it is judged by the faster of them
WORTH = 1.05  # a larger batch must do so many times more per second

CPU_FULL = "not enough memory: you tried to allocate"  # what torch says of the main memory

T = TypeVar("T")


class BatchSize:
    """The size of batches, learned from how long they take. given: a fixed size, else found."""

    def __init__(self, given: int | None = None, most: int = MOST) -> None:
        self.size = given or min(FIRST, most)
        self.most = most
        self.settled = given is not None
        self._best = (self.size, 0.0)  # size and the work per second that it did
        self._seen: list[float] = []

    def worked(self, count: int, amount: float, seconds: float) -> None:
        """A batch of `count` samples and `amount` of work took so long; the next may be larger."""
        if self.settled or count < self.size:
            return
        self._seen.append(amount / max(seconds, 1e-9))
        if len(self._seen) < TRIALS:
            return
        speed, self._seen = max(self._seen), []
        best, known = self._best
        if speed < WORTH * known:
            self.size, self.settled = best, True
            return
        self._best = (self.size, speed)
        if 2 * self.size > self.most:
            self.settled = True
        else:
            self.size *= 2

    def too_large(self) -> None:
        """A batch did not fit the memory. Raises RunError where one sample does not."""
        if self.size == 1:
            raise RunError("one sample alone does not fit the memory of the device")
        self.size, self.settled, self._seen = self.size // 2, True, []

    def batches(
        self,
        items: Sequence[Any],
        work: Callable[[list[Any]], T],
        *,
        length: Callable[[Any], int] = lambda item: 1,
        alike: Callable[[Any], Hashable] = lambda item: None,
    ) -> Iterator[tuple[list[int], T]]:
        """Runs `work` over all items; yields (their places in `items`, what it returned).

        length  of an item, to which its batch mates are padded: items of like length share a batch
        alike   only items for which this is the same may share one
        """
        order = sorted(range(len(items)), key=lambda i: (str(alike(items[i])), -length(items[i])))
        at = 0
        while at < len(order):
            kind = alike(items[order[at]])
            places = [i for i in order[at : at + self.size] if alike(items[i]) == kind]
            began = time.perf_counter()
            try:
                done = work([items[i] for i in places])
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not isinstance(error, torch.OutOfMemoryError) and CPU_FULL not in str(error):
                    raise
                torch.cuda.empty_cache()
                self.too_large()
                continue
            seconds = time.perf_counter() - began
            at += len(places)
            yield places, done
            self.worked(len(places), len(places) * length(items[places[0]]), seconds)
