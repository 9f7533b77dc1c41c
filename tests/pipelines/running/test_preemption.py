"""Workers look for notices together, often enough and at the same steps."""

from __future__ import annotations

import pytest
import torch

from pipelines.running import preemption
from pipelines.running.preemption import LOOK_SECONDS, MOST_STEPS, Notice


class Alone:
    rank = 0

    def __init__(self) -> None:
        self.looks = 0

    def total(self, value: torch.Tensor) -> torch.Tensor:
        self.looks += 1
        return value.clone()


@pytest.fixture
def clock(monkeypatch):
    """Time as the test sets it, and the nodes that are announced to go."""

    class Clock:
        now = 100.0
        nodes: frozenset[str] = frozenset()

    found = Clock()
    monkeypatch.setattr(preemption.time, "monotonic", lambda: found.now)
    monkeypatch.setattr(preemption, "_announced", lambda: found.nodes)
    return found


def walk(notice: Notice, clock, steps: range, seconds: float) -> list[int]:
    """Steps at which the notice was told."""
    told = []
    for step in steps:
        clock.now += seconds
        if notice.told(step):
            told.append(step)
    return told


@pytest.mark.parametrize("seconds, looks", [(0.5, 4), (5.0, 1), (0.0001, MOST_STEPS)])
def test_the_pace_follows_the_steps(clock, seconds, looks):
    group = Alone()
    walk(Notice(group, torch.device("cpu")), clock, range(1, 1001), seconds)
    assert group.looks == pytest.approx(1000 / looks, rel=0.02, abs=2)
    assert looks * seconds <= max(LOOK_SECONDS, seconds)


def test_each_node_is_told_of_once(clock):
    notice = Notice(Alone(), torch.device("cpu"))
    assert walk(notice, clock, range(1, 50), 0.5) == []
    clock.nodes = frozenset({"a"})
    [first] = walk(notice, clock, range(50, 100), 0.5)
    assert first <= 54
    assert walk(notice, clock, range(100, 150), 0.5) == []
    clock.nodes = frozenset({"a", "b"})
    assert len(walk(notice, clock, range(150, 200), 0.5)) == 1


def test_what_one_worker_hears_all_are_told(clock):
    class Other(Alone):
        """The sum with another worker that has heard of a node."""

        rank = 1

        def total(self, value: torch.Tensor) -> torch.Tensor:
            return value + torch.tensor([1.0, 7.0])

    notice = Notice(Other(), torch.device("cpu"))
    assert not notice.told(1)  # the first step: none looks yet
    assert notice.told(2) and not notice.told(8) and notice.told(9)
