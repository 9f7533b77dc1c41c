"""Parts of a large job on an actor pool of Ray Data: each actor opens the model once.

What is done is written down part by part, so that a stopped job goes on with the parts that are
missing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipelines.files import append_line, disk_full
from pipelines.reporting.provenance import memory_bytes
from pipelines.reporting.terminal import Progress
from pipelines.running.runtime import ray_session
from pipelines.streams import access
from pipelines.streams.quarantine import Quarantine
from uml_core.addresses import redacted_tree
from uml_core.errors import RunError, UserError

PROCESS_BYTES = 1 << 30  # of an actor beside its model
IN_FLIGHT = 2  # parts that an actor has at hand
FEW = 256  # samples that are done sooner than a local Ray and its actors have started

Report = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Samples first..stop-1 of the inputs; `number` names what is written of them."""

    number: int
    first: int
    stop: int


class Work(Protocol):
    """What an actor does; goes to every actor once, through the object store."""

    @property
    def weights_bytes(self) -> int:
        """Of the model, roughly."""
        ...

    def open(self, device: str) -> Callable[[Part], Report]:
        """Loads the model; the result does one part whole and reports plain JSON.

        A report has `samples` and `bad`: [[url, key, error], ...].
        """
        ...


def parts_of(samples: int, size: int) -> list[Part]:
    """All parts of a job; they depend on nothing but these two numbers."""
    return [Part(n, i, min(i + size, samples)) for n, i in enumerate(range(0, samples, size))]


def run_parts(
    work: Work,
    parts: Sequence[Part],
    journal: Path,
    *,
    title: str,
    quarantine: Quarantine,
    actors: int | None = None,
    device: str = "auto",
    nodes: Mapping[str, str] | None = None,
) -> list[Report]:
    """The reports of all parts, in order; those in `journal` are taken from there.

    actors  default: one per GPU, without GPUs one per CPU, as far as memory allows; a few samples
            are done in this process
    nodes   labels of the nodes that may have actors; none: any node

    Raises RunError when a part fails or too many samples are bad; what is done stays done. A part
    whose bad samples are too many is not done.
    """
    nodes = nodes or {}
    done = _read(journal)
    left = [part for part in parts if part.number not in done]
    total = sum(part.stop - part.first for part in parts)
    with Progress(title, total, "samples") as progress:
        progress.advance(sum(p.stop - p.first for p in parts if p.number in done))
        if left:
            here = actors is None and not nodes and total <= FEW
            with contextlib.nullcontext() if here else ray_session():
                found = (
                    _here(work, left, device) if here else _pool(work, left, actors, device, nodes)
                )
                for number, report in found:
                    if "error" in report:
                        raise RunError(
                            f"{report['error']}. {len(done)} of {len(parts)} parts are done: the "
                            "same command with --resume goes on"
                        )
                    # What the journal calls done is never looked at again: its bad samples first.
                    for url, key, error in report["bad"]:
                        quarantine.bad(url, key, error)
                    shown = report | {"bad": redacted_tree(report["bad"])}
                    append_line(journal, json.dumps({"number": number, **shown}))
                    done[number] = report
                    progress.advance(report["samples"] + len(report["bad"]))
    return [done[part.number] for part in parts]


def _read(journal: Path) -> dict[int, Report]:
    found = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        found[entry.pop("number")] = entry
    return found


def _here(work: Work, parts: Sequence[Part], device: str) -> Iterator[tuple[int, Report]]:
    """The same in this process."""
    import torch

    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if gpu and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU; use cpu or auto")
    do = work.open("cuda" if gpu else "cpu")
    for part in parts:
        yield part.number, _reported(do, part)


def _pool(
    work: Work,
    parts: Sequence[Part],
    actors: int | None,
    device: str,
    nodes: Mapping[str, str],
) -> Iterator[tuple[int, Report]]:
    import ray
    from ray.data import ActorPoolStrategy

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    there = _resources(nodes)
    gpus = int(there["GPU"]) if device != "cpu" else 0
    if device == "cuda" and not gpus:
        where = "no node with these labels has a GPU" if nodes else "this Ray has no GPU"
        raise UserError(f"--device cuda: {where}; use cpu or auto")
    count = min(len(parts), actors or gpus or cpu_actors(work.weights_bytes, there["CPU"]))
    shared = ray.put(work)  # held here, so that actors that restart find it again
    rows = [{"number": p.number, "first": p.first, "stop": p.stop} for p in parts]
    actor: Any = _Actor
    placed: dict[str, Any] = {"label_selector": dict(nodes)} if nodes else {}
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        actor,
        fn_constructor_args=(shared, access.settings(), "cuda" if gpus else "cpu", count),
        compute=ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=IN_FLIGHT),
        num_cpus=1,
        num_gpus=1 if gpus else None,
        **placed,
    )
    dataset.context.enable_progress_bars = False
    # Every report is a block of its own, handed over as soon as it is there.
    dataset.context.target_max_block_size = 1
    try:
        for row in dataset.iter_rows():
            yield row["number"], json.loads(row["report"])
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise RunError(
            f"an actor was lost: {last}. The same command with --resume goes on"
        ) from error


def _resources(labels: Mapping[str, str]) -> dict[str, float]:
    """CPUs and GPUs of the nodes with all these labels; raises UserError where there is none."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    there = [node for node in alive if labels.items() <= node["Labels"].items()]
    if not there:
        said = ",".join(f"{name}={value}" for name, value in labels.items())
        raise UserError(
            f"--nodes {said}: no node of this Ray has these labels; start the nodes that work "
            f"with ray start --labels={said}, or leave --nodes out"
        )
    kinds = ("CPU", "GPU")
    return {kind: sum(node["Resources"].get(kind, 0.0) for node in there) for kind in kinds}


def cpu_actors(weights_bytes: int, cpus: float) -> int:
    """Actors without GPUs: one per CPU that is not a stream's, as far as memory allows."""
    fitting = int(0.6 * memory_bytes() // (weights_bytes + PROCESS_BYTES))
    return max(1, min(int(cpus) - 1, fitting))


class _Actor:
    """One process of the pool."""

    def __init__(self, work: Any, found: Mapping[str, str], device: str, count: int) -> None:
        import ray
        import torch

        access.adopt(found)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count) if device == "cpu" else 4)
        self._error = ""
        try:
            self._do = ray.get(work).open(device)
        except (UserError, RunError) as error:
            self._error = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "report": json.dumps(self._report(Part(**row)))}

    def _report(self, part: Part) -> Report:
        return {"error": self._error} if self._error else _reported(self._do, part)


def _reported(do: Callable[[Part], Report], part: Part) -> Report:
    """One part; what the user can mend becomes the report's `error`."""
    try:
        return do(part)
    except (UserError, RunError) as error:
        return {"error": str(error)}
    except OSError as error:
        if not disk_full(error):
            raise
        return {"error": f"the disk is full ({error}). Make space"}
