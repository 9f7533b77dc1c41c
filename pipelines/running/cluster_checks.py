"""Checks of the Ray that a job will use: a running cluster, or the private one that it starts."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from typing import Any

from pipelines.running.machine import Finding, object_store_bytes, size
from pipelines.running.need import Need
from pipelines.running.runtime import TRAINER_CPUS, local_cpus
from pipelines.streams.source import READ_CPUS

STATE_SECONDS, NODE_SECONDS = 5, 40.0
DATA_SHARE = 0.5  # of the object store: what Ray Data takes of it
PACKAGES = ("torch", "numpy", "pyarrow")  # beside Python and Ray, which Ray itself compares


@dataclass(frozen=True)
class Cluster:
    """A Ray as the checks see it.

    private    this job starts it and ends it
    cpus, gpus logical, of all nodes; free_cpus: not in use now
    most       what an autoscaler may add up to; None: nothing is known of one
    store      bytes of the object stores of all nodes
    nodes      ids of the living nodes; session: its session folder, where it is on this machine
    dashboard  None, or why it does not answer
    resources  all that nodes offer; labels: of each node
    """

    private: bool
    cpus: float
    gpus: float
    store: float
    free_cpus: float | None = None
    most: Mapping[str, float] | None = None
    nodes: tuple[str, ...] = ()
    session: str | None = None
    dashboard: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Sequence[Mapping[str, str]] = ()
    facts: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def private_cluster(need: Need) -> Cluster:
    """The Ray that a job without a cluster starts."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Cluster(True, local_cpus(need.workers, need.streams), gpus, object_store_bytes())


def running_cluster(need: Need, out: str) -> Cluster:
    """The Ray that this process is connected to, with what each of its nodes says."""
    import ray
    from ray._private import state, worker

    total = ray.cluster_resources()
    nodes = tuple(node["NodeID"] for node in ray.nodes() if node["Alive"])
    node = getattr(worker, "_global_node", None)
    return Cluster(
        private=False,
        cpus=total.get("CPU", 0),
        gpus=total.get("GPU", 0),
        store=total.get("object_store_memory", 0),
        free_cpus=ray.available_resources().get("CPU", 0),
        most=state.state.get_max_resources_from_cluster_config(),
        nodes=nodes,
        session=node.get_session_dir_path() if node is not None else None,
        dashboard=_dashboard_trouble(),
        resources=total,
        labels=[node.get("Labels", {}) for node in ray.nodes() if node["Alive"]],
        facts=_node_facts(nodes, [*need.paths, out]) if len(nodes) > 1 else (),
    )


def _dashboard_trouble() -> str | None:
    """Why the state API does not answer; Ray Train cleans up after a stopped trial through it."""
    import ray
    from ray.util.state import list_nodes

    try:
        # Without the address it looks for a Ray by itself; with it, still at Ray's usual port where
        # this one has no dashboard. Either may be the Ray of somebody else.
        context = ray.get_runtime_context()
        ours: Any = [("node_id", "=", context.get_node_id())]
        found = list_nodes(context.gcs_address, filters=ours, timeout=STATE_SECONDS)
    except Exception as error:  # connection errors of several libraries
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None if found else "another Ray's answers in its place"


def _node_facts(nodes: Sequence[str], paths: Sequence[str]) -> list[dict[str, Any]]:
    """What each node says of itself; {"node", "error"} where it does not answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {
        ray.remote(num_cpus=0)(node_facts)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(paths): node
        for node in nodes
    }
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    found = []
    for reference, node in asked.items():
        try:
            facts = ray.get(reference) if reference in done else {"error": "it does not answer"}
        except ray.exceptions.RayError as error:
            facts = {"error": str(error).strip().splitlines()[-1]}
        found.append({"node": node[:12], **facts})
    return found


def node_facts(paths: Sequence[str]) -> dict[str, Any]:
    """In a task: versions, whether this package is there, and which paths are not."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "versions": versions,
        "ours": util.find_spec("pipelines") is not None,
        "lost": [path for path in paths if not os.path.exists(path)],
        "looped": _own_address().startswith("127.") and "GLOO_SOCKET_IFNAME" not in os.environ,
    }


def _own_address() -> str:
    """What this node's name resolves to: there Gloo listens for the other workers."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


# ------------------------------------------------------------------------------- the checks


def dashboard(cluster: Cluster, need: Need) -> Finding:
    """The dashboard: without it a trial that is stopped early keeps its CPUs and a sweep hangs."""
    if cluster.private:
        return Finding("dashboard", "ok", "started with the private Ray")
    if cluster.dashboard is None:
        return Finding("dashboard", "ok", "it answers")
    return Finding(
        "dashboard",
        "stop" if need.tunes else "warn",
        f"it does not answer ({cluster.dashboard}): trials that are stopped early keep their CPUs",
        "pip install 'ray[default]' on the head and start it with --include-dashboard=true",
    )


def cpu_plan(cluster: Cluster, need: Need) -> Finding:
    """What is left of the CPUs for the streams: Ray Data gives each a whole number of them."""
    trainers, count = TRAINER_CPUS * need.workers, need.workers * need.streams
    left = cluster.cpus - trainers
    found = f"{cluster.cpus:g} logical CPUs, {trainers:g} to {need.workers} workers"
    if left < READ_CPUS:
        state, end = _request(cluster, "CPU", trainers + READ_CPUS)
        fix = f"fewer train.workers, or at least {trainers + count:g} CPUs"
        return Finding("CPU plan", state, f"{found}: no read task finds room, {end}", fix)
    share = int(left // max(1, count))
    found += f", {share} to each of {count} streams"
    if share < 1:
        fix = f"{trainers + count:g} CPUs or more (ray start --num-cpus), or fewer train.workers"
        return Finding("CPU plan", "warn", f"{found}: they take turns and are slow", fix)
    if cluster.free_cpus is not None and cluster.free_cpus < trainers + READ_CPUS:
        fix = "wait for the jobs that run, or add nodes"
        return Finding("CPU plan", "warn", f"{found}; {cluster.free_cpus:g} are free now", fix)
    return Finding("CPU plan", "ok", found)


def gpus(cluster: Cluster, need: Need) -> Finding:
    """GPUs against `train.device`."""
    found = f"{cluster.gpus:g} GPUs, device {need.device}, {need.workers} workers"
    if need.device != "cuda":
        enough = need.device == "auto" and cluster.gpus >= need.fewest
        note = "on GPUs" if enough else "on CPUs"
        if need.device == "auto" and 0 < cluster.gpus < need.fewest:
            fix = f"train.workers={int(cluster.gpus)}"
            return Finding("GPUs", "warn", f"{found}: too few for all, so it runs {note}", fix)
        return Finding("GPUs", "ok", f"{found}: it runs {note}")
    if cluster.gpus < need.fewest:
        state, end = _request(cluster, "GPU", need.fewest)
        fix = "train.device=auto, or "
        fix += f"train.workers={int(cluster.gpus)}" if cluster.gpus >= 1 else "a machine with GPUs"
        return Finding("GPUs", state, f"{found}: too few, {end}", fix)
    return Finding("GPUs", "ok", found)


def placement(cluster: Cluster, need: Need) -> list[Finding]:
    """Nodes for trainers and for data tasks, where the recipe names them. A private Ray is one
    node for both, and does not ask."""
    if cluster.private:
        return []
    found = []
    for name, amount in need.resources:
        there = cluster.gpus if name == "GPU" else cluster.resources.get(name, 0)
        if name not in ("CPU", "GPU") and there < amount * need.fewest:
            state, end = _request(cluster, name, amount * need.fewest)
            text = (
                f"{there:g} of resource {name}, {need.fewest} workers take {amount:g} each: {end}"
            )
            fix = f"ray start --resources='{{\"{name}\": 1}}' on the nodes that train, or leave "
            fix += "train.worker_resources out"
            found.append(Finding("placement", state, text, fix))
    wanted = dict(need.data_nodes)
    if wanted and not any(wanted.items() <= labels.items() for labels in cluster.labels):
        said = ",".join(f"{key}={value}" for key, value in wanted.items())
        growing = cluster.most is not None
        text = f"no node has the labels {said} of train.data_nodes: no read task finds a place"
        fix = f"ray start --labels={said} on the nodes that read, or leave train.data_nodes out"
        found.append(Finding("placement", "warn" if growing else "stop", text, fix))
    return found


def _request(cluster: Cluster, name: str, wanted: float) -> tuple[Any, str]:
    """(state, how it ends) of a request for more than the cluster has."""
    most = None if cluster.most is None else cluster.most.get(name, 0)
    if most is not None and most >= wanted:
        return "warn", f"the job waits until the autoscaler adds {name}s"
    return "stop", "the job would wait for ever"


def object_store(cluster: Cluster, need: Need) -> Finding:
    """Room for the blocks of all streams."""
    room = DATA_SHARE * cluster.store
    found = f"{size(cluster.store)}, streams take about {size(need.store)} of {size(room)}"
    if need.store > room:
        fix = "ray start --object-store-memory, a larger /dev/shm, or fewer train.workers"
        return Finding("object store", "warn", f"{found}: blocks go over the disk", fix)
    return Finding("object store", "ok", found)


def nodes(cluster: Cluster, out: str) -> list[Finding]:
    """Whether all nodes are alike and see the same files. Nothing for a single node."""
    if not cluster.facts:
        return []
    silent = [f"{f['node']}: {f['error']}" for f in cluster.facts if "error" in f]
    told = [f for f in cluster.facts if "error" not in f]
    here = node_facts([])["versions"]
    other = [
        f"{f['node']} has {name} {version}, here is {here[name]}"
        for f in told
        for name, version in f["versions"].items()
        if version != here[name]
    ]
    bare = [f["node"] for f in told if not f["ours"]]
    lost = {path for f in told for path in f["lost"]}
    count = f"{len(cluster.nodes)} nodes"
    found = []
    if silent:
        fix = "ray status; remove the node or wait for it"
        found.append(Finding("nodes", "warn", "; ".join(silent[:3]), fix))
    if bare:
        fix = "install the package in the image, or submit it with a working_dir"
        found.append(Finding("nodes", "stop", f"no package `pipelines` on {', '.join(bare)}", fix))
    if other:
        fix = "the same image on all nodes"
        found.append(Finding("nodes", "warn", "; ".join(other[:3]), fix))
    if looped := [f["node"] for f in told if f["looped"]]:
        fix = "export GLOO_SOCKET_IFNAME=eth0 (its network card) before `ray start`, or name its "
        fix += "address in its /etc/hosts"
        text = f"the host name of {', '.join(looped[:3])} is 127.x: on CPUs, workers of other "
        found.append(Finding("nodes", "warn", text + "nodes do not reach it", fix))
    if out in lost:
        fix = "--out on a disk that all nodes share"
        text = f"{out} is not on every node: checkpoints written there would be lost"
        found.append(Finding("shared disk", "stop", text, fix))
    if gone := sorted(lost - {out}):
        fix = "shards on a disk that all nodes share, or s3://"
        found.append(Finding("shared disk", "stop", f"not on every node: {gone[0]}", fix))
    return found or [Finding("nodes", "ok", f"{count}, alike, with the same files")]
