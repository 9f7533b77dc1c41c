"""What must hold before a job starts, looked at in a second or two.

A job is refused only where it would hang or lose data; anything else is told and the job runs.
`uml doctor` shows all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.reporting import terminal
from pipelines.running import cluster_checks, machine
from pipelines.running.cluster import address
from pipelines.running.cluster_checks import Cluster
from pipelines.running.data import Data
from pipelines.running.machine import Finding
from pipelines.running.need import Need, estimate
from pipelines.running.runtime import ray_session
from uml_core.errors import UserError
from uml_core.specs import Recipe


def preflight(recipe: Recipe, data: Data, out: Path, **asked: Any) -> list[Finding]:
    """Checks everything before the first file is written.

    asked  what differs from a single run (see `need.estimate`)

    Warnings go to the person who watches. Raises UserError with every reason to refuse the job.
    """
    need = estimate(recipe, data, **asked)
    with cluster_for(need, out) as cluster:
        findings = examine(need, cluster, out)
    stops = [_sentence(finding) for finding in findings if finding.state == "stop"]
    if stops:
        raise UserError(stops)
    for finding in findings:
        if finding.state == "warn":
            terminal.note(f"Before the start: {_sentence(finding)}")
    return findings


def examine(need: Need, cluster: Cluster, out: Path) -> list[Finding]:
    """All findings, in the order in which `uml doctor` shows them."""
    here = need.workers if cluster.private else -(-need.workers // max(1, len(cluster.nodes)))
    return [
        machine.packages(),
        cluster_checks.dashboard(cluster, need),
        machine.other_rays(cluster.session),
        machine.temp_folder(),
        machine.shared_memory(),
        cluster_checks.object_store(cluster, need),
        cluster_checks.cpu_plan(cluster, need),
        cluster_checks.gpus(cluster, need),
        *cluster_checks.placement(cluster, need),
        machine.cores(need),
        machine.memory(need, here),
        machine.evaluation(need),
        machine.limits(),
        machine.shards(need),
        *machine.disk(need, out),
        machine.tracking(out),
        *cluster_checks.nodes(cluster, str(machine.existing(out))),
    ]


@contextlib.contextmanager
def cluster_for(need: Need, out: Path) -> Iterator[Cluster]:
    """The Ray that the job will use; one that is running is connected to, none is started."""
    import ray

    if not ray.is_initialized() and address() is None:
        yield cluster_checks.private_cluster(need)
        return
    with ray_session():
        yield cluster_checks.running_cluster(need, str(machine.existing(out)))


def _sentence(finding: Finding) -> str:
    fix = f" → {finding.fix}" if finding.fix else ""
    return f"{finding.name}: {finding.found}{fix}"
