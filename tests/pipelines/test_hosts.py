"""A real cluster of hosts with addresses and processes of their own, and jobs submitted to it.

A head that only reads and decodes, three workers that only train, and a laptop without a Ray. The
tests share the cluster and follow one another; each leaves it whole.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hosts import BIN, DASHBOARD, PORT, ROOT, Host, Hosts, cluster, why_not
from runs import consumed, planned, step_of, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

WORKERS = ("one", "two", "three")
PLACED = ["train.worker_resources={trainer: 1}", "train.data_nodes={uml-role: data}"]


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Iterator[tuple[Hosts, Host]]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("hosts"), WORKERS) as made:
        yield made


@pytest.fixture
def long_recipe(fault_recipe, tmp_path) -> str:
    """A traced run that lasts long enough to lose a node and to get it back."""
    raw = yaml.safe_load(Path(fault_recipe).read_text())
    raw["model"] = {"width": 64, "depth": 3, "heads": 4}
    raw["train"] |= {"steps": 1500, "batch_size": 24, "checkpoint_every": 50}
    raw["train"] |= {"validate_every": 500, "gradients_every": 0, "resize_seconds": 5}
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


class Submitted(threading.Thread):
    """`uml submit` on the laptop, followed to its end."""

    def __init__(self, net: tuple[Hosts, Host], *argv: str) -> None:
        super().__init__()
        self.hosts, self.head = net
        self.argv = argv
        self.done: subprocess.CompletedProcess[str] | None = None
        self.start()

    def run(self) -> None:
        self.done = submit(self.hosts, self.head, *self.argv)

    def end(self) -> str:
        self.join()
        assert self.done is not None
        said = self.done.stdout + self.done.stderr
        assert self.done.returncode == 0, said[-4000:]
        return said

    def wait_until(self, true, seconds: float = 400) -> None:
        def check():
            assert self.is_alive(), self.done.stdout[-3000:] + self.done.stderr[-3000:]
            time.sleep(0.2)
            return true()

        wait_until(check, seconds)


def submit(
    hosts: Hosts, head: Host, *argv: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    address = ["--address", f"http://{head.address}:{DASHBOARD}"]
    return hosts.hosts["laptop"].run(
        str(BIN / "python"), "-m", "pipelines.submit", *argv, *address,
        env={"PYTHONPATH": str(ROOT), **(env or {})}, check=False, timeout=900,
    )  # fmt: skip


def trained_on(out: Path) -> set[str]:
    """Addresses of the nodes that the workers of a finished run were on."""
    facts = json.loads((out / "environment.json").read_text())
    return {place["node"] for place in facts["placement"]["workers"]}


def tasks(hosts: Hosts, head: Host, name: str) -> set[str]:
    """Addresses of the nodes on which tasks whose name holds `name` ran."""
    places = {node["node_id"]: node["node_ip"] for node in hosts.ask(head, "/api/v0/nodes")}
    found = hosts.ask(head, "/api/v0/tasks?detail=true&limit=10000")
    return {places[t["node_id"]] for t in found if name in t["name"] and t.get("node_id")}


def test_without_the_token_nothing_is_taken(net):
    hosts, head = net
    nobody = {"RAY_AUTH_TOKEN_PATH": ""}
    done = submit(hosts, head, "theory", "--out", str(hosts.folder / "no"), env=nobody)
    assert done.returncode == 2 and "wants the cluster's token" in done.stderr
    (hosts.folder / "wrong").write_text("0" * 64)
    nobody = {"RAY_AUTH_TOKEN_PATH": str(hosts.folder / "wrong")}
    done = submit(hosts, head, "theory", "--out", str(hosts.folder / "no"), env=nobody)
    assert done.returncode == 2 and "Invalid authentication token" in done.stderr
    done = submit(hosts, head, "status", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == []


def test_a_job_trains_on_two_nodes_and_reads_on_the_third(net, fault_recipe):
    hosts, head = net
    out = hosts.folder / "two-nodes"
    argv = ["train", fault_recipe, "train.workers=2", *PLACED, "--out", str(out)]
    done = submit(hosts, head, *argv, "--env", "MY_SECRET=sesame-open", "--id", "first")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    trained = trained_on(out)
    assert len(trained) == 2 and trained <= {hosts.hosts[n].address for n in WORKERS}
    assert consumed(out) == planned(fault_recipe)
    assert tasks(hosts, head, "_decode_task") == {head.address}
    [job] = json.loads(submit(hosts, head, "status", "--json").stdout)
    assert (job["id"], job["status"], job["exit_code"]) == ("first", "SUCCEEDED", 0)
    assert (job["verb"], job["out"]) == ("train", str(out))
    assert "test accuracy of image" in submit(hosts, head, "logs", "first").stdout
    shown = json.dumps(hosts.get(head, "/api/jobs/"))
    assert "sesame-open" not in shown + said and "MY_SECRET" not in shown


def test_a_failed_job_hands_its_exit_code_back_and_a_stopped_one_ends(net, fault_recipe):
    hosts, head = net
    out = hosts.folder / "wrong"
    out.write_text("in the way")
    done = submit(hosts, head, "train", fault_recipe, *PLACED, "--out", str(out / "x"))
    assert done.returncode not in (0, 130)
    out = hosts.folder / "stopped"
    argv = ["train", fault_recipe, "train.steps=1000000", *PLACED, "--out", str(out)]
    done = submit(hosts, head, *argv, "--detach", "--id", "endless")
    assert done.returncode == 0 and "endless" in done.stdout
    wait_until(lambda: step_of(out) > 0)
    assert submit(hosts, head, "stop", "endless").returncode == 0
    assert submit(hosts, head, "logs", "endless").returncode == 130


def test_a_node_is_lost_and_comes_back(net, long_recipe):
    hosts, head = net
    out = hosts.folder / "elastic"
    argv = ["train", long_recipe, "train.workers=[1,3]", *PLACED, "--out", str(out)]
    job = Submitted(net, *argv)
    job.wait_until(lambda: step_of(out, rank=2) >= 60)
    lost = hosts.hosts["three"]
    lost.kill()
    at = step_of(out)
    job.wait_until(lambda: not hosts.is_alive(head, lost) and _ranks_after(out, at) == {0, 1})
    lost.start()
    hosts.start_worker(lost, head)
    job.wait_until(lambda: 2 in _ranks_after(out, at))
    said = job.end()
    assert "started again; it goes on from step" in said
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["restarts"] >= 2
    assert len(trained_on(out)) == 3
    assert consumed(out) == planned(long_recipe)


def test_a_notice_becomes_a_checkpoint_and_the_run_goes_on_elsewhere(net, long_recipe):
    hosts, head = net
    out = hosts.folder / "preempted"
    argv = ["train", long_recipe, "train.workers=[1,2]", "train.checkpoint_every=100000"]
    job = Submitted(net, *argv, *PLACED, "--out", str(out))
    job.wait_until(lambda: step_of(out, rank=1) >= 60)
    trained = hosts.ask(head, "/api/v0/actors?limit=1000&detail=true")
    nodes = {a["node_id"] for a in trained if a["class_name"] == "RayTrainWorker"
             and a["state"] == "ALIVE"}  # fmt: skip
    node = sorted(nodes)[0]
    hosts.hosts["laptop"].run(
        str(BIN / "ray"), "drain-node", "--address", f"{head.address}:{PORT}", "--node-id", node,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test",
        "--deadline-remaining-seconds", "20",
    )  # fmt: skip
    said = job.end()
    assert "A node will be taken away: checkpoint at step" in said
    noticed = int(said.partition("taken away: checkpoint at step ")[2].split(".")[0])
    assert f"started again; it goes on from step {noticed}" in said
    assert consumed(out) == planned(long_recipe)


def _ranks_after(out: Path, step: int) -> set[int]:
    """Ranks that have begun a step after `step`."""
    return {rank for rank in range(3) if step_of(out, rank) > step}
