"""Notices that a node will be taken away: spot and preemptible machines, `ray drain-node`.

Ray Train tells every worker of a notice that concerns any of them, each at a moment of its own; a
checkpoint needs all of them at the same step. So they look together, now and then: often enough
to use the half minute or two that such a notice gives, seldom enough to cost nothing.
"""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor

LOOK_SECONDS = 2.0
MOST_STEPS = 100  # between looks, however short the steps are


class Group(Protocol):
    """What the workers agree through (uml_core.loop.World)."""

    rank: int

    def total(self, value: Tensor) -> Tensor:
        """Sum over ranks."""
        ...


class Notice:
    """One worker's ear for notices; `told` is a question that all workers ask at every step."""

    def __init__(self, world: Group, device: torch.device) -> None:
        self._world, self._device = world, device
        self._known: frozenset[str] = frozenset()
        self._next: int | None = None
        self._last = (0, 0.0)  # step, time of the last look of rank 0

    def told(self, step: int) -> bool:
        """Whether a node is announced to go that was not before; alike on all workers.

        Call it after every step. Most calls return at once; some are a small all-reduce.
        """
        if self._next is None:  # the first steps are slow: they say nothing of the others
            self._next = step + 1
        if step < self._next:
            return False
        now = time.monotonic()
        before, when = self._last
        self._last = (step, now)
        news = _announced() - self._known
        pace = 0.0  # steps until the next look; the clock of rank 0 decides for all
        if self._world.rank == 0:
            a_step = (now - when) / max(1, step - before) if when else LOOK_SECONDS
            pace = max(1.0, min(MOST_STEPS, LOOK_SECONDS // max(a_step, 1e-3)))
        said = torch.tensor([float(bool(news)), pace], device=self._device)
        heard, steps = self._world.total(said).tolist()
        self._next = step + int(steps)
        if not heard:
            return False
        self._known |= _announced()
        return True


def _announced() -> frozenset[str]:
    """Nodes of this worker group that Ray says will go. Not the public `get_preemption_info`: it
    waits for all workers at every call."""
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return frozenset(info.preempted_node_to_ranks) if info is not None else frozenset()
