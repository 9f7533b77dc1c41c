from __future__ import annotations

import os
from typing import Any

import pytest

from pipelines.sources.parallel import SMALL, each
from uml_core.errors import RunError


def where(job: dict[str, Any]) -> list[int]:
    return [job["n"] ** 2, os.getpid()]


def broken(job: dict[str, Any]) -> None:
    raise ValueError("that went wrong")


def run(work: Any, cost: int) -> list[Any]:
    jobs = [{"n": n} for n in range(5)]
    return each(work, jobs, sizes=[1] * 5, cost=cost, title="Squaring", unit="numbers")


def test_little_work_is_done_here() -> None:
    assert run(where, SMALL) == [[n * n, os.getpid()] for n in range(5)]
    assert each(where, [], sizes=[], cost=0, title="", unit="") == []


@pytest.mark.ray
def test_much_work_is_done_by_tasks_and_comes_back_in_order(ray_cluster: None) -> None:
    results = run(where, SMALL + 1)
    assert [square for square, _ in results] == [0, 1, 4, 9, 16]
    assert os.getpid() not in {process for _, process in results}


@pytest.mark.ray
def test_a_task_that_fails_fails_the_run(ray_cluster: None) -> None:
    with pytest.raises(RunError, match="that went wrong"):
        run(broken, SMALL + 1)
