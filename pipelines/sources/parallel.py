"""The same work on many jobs: in parallel on Ray Data, or right here where there is little."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.reporting.terminal import Progress
from pipelines.running.runtime import ray_session
from pipelines.streams import access
from uml_core.errors import RunError

SMALL = 16 << 20  # bytes of work that are done sooner than a local Ray has started (about 10 s)

Job = dict[str, Any]


def each(
    work: Callable[[Job], Any],
    jobs: Sequence[Job],
    *,
    sizes: Sequence[int],
    cost: int,
    title: str,
    unit: str,
) -> list[Any]:
    """`[work(job) for job in jobs]`; one job is one Ray Data task, the result never depends on it.

    work   a function of a module; jobs and results are plain JSON types
    sizes  units of progress per job; cost: bytes that all jobs read or write

    Raises RunError when a task or its node is lost for good.
    """
    out: list[Any] = [None] * len(jobs)
    with Progress(title, sum(sizes), unit) as progress:
        for i, result in _results(work, jobs, cost):
            out[i] = result
            progress.advance(sizes[i])
    return out


def _results(work: Callable[[Job], Any], jobs: Sequence[Job], cost: int) -> Any:
    if not jobs or cost <= SMALL:
        yield from ((i, work(job)) for i, job in enumerate(jobs))
        return
    with ray_session():
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "bars disabled"
        rows = [{"number": i, "job": json.dumps(job)} for i, job in enumerate(jobs)]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))

        found = access.settings()

        def task(row: dict[str, Any]) -> dict[str, Any]:
            import torch

            torch.set_num_threads(1)  # tasks are the parallelism
            access.adopt(found)
            return {"number": row["number"], "result": json.dumps(work(json.loads(row["job"])))}

        try:
            for row in dataset.map(task, num_cpus=1).iter_rows():
                yield row["number"], json.loads(row["result"])
        except ray.exceptions.RayError as error:
            raise RunError(f"a task of Ray Data failed: {error}") from error
