"""A real cluster of hosts with addresses and processes of their own, and jobs submitted to it.

A head that only reads and decodes, three workers that only train, and a laptop without a Ray. The
tests share the cluster and follow one another; each leaves it whole. Two of them stand for the rest
in `make test-slow`; the others belong to `make test-cluster`.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from absent import absent
from hosts import BIN, DASHBOARD, PORT, ROOT, Host, Hosts, cluster, why_not
from runs import consumed, planned, step_of, wait_until, written
from tiny_encoders import vit

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

WORKERS = ("one", "two", "three")
PLACED = ["train.worker_resources={trainer: 1}", "train.data_nodes={uml-role: data}"]


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Iterator[tuple[Hosts, Host]]:
    if (reason := why_not()) is not None:
        absent(reason)
    with cluster(tmp_path_factory.mktemp("hosts"), WORKERS) as made:
        yield made


@pytest.fixture
def endless(fault_recipe, tmp_path) -> str:
    """A traced run, stopped when the test has seen enough: machines are fast or slow."""
    raw = yaml.safe_load(Path(fault_recipe).read_text())
    raw["train"] |= {"steps": 50_000, "batch_size": 24, "checkpoint_every": 20}
    raw["train"] |= {"validate_every": 5_000, "gradients_every": 0, "resize_seconds": 5}
    path = tmp_path / "endless.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


class Endless:
    """A submitted run of `endless`; `stop` ends it and returns what it had said."""

    def __init__(self, net: tuple[Hosts, Host], out: Path, *argv: str) -> None:
        self.hosts, self.head = net
        self.out, self.id = out, out.name
        done = submit(*net, "train", *argv, "--out", str(out), "--detach", "--id", self.id)
        assert done.returncode == 0, done.stdout + done.stderr

    def wait_until(self, true) -> None:
        def check():
            time.sleep(0.3)
            if true():
                return True
            [job] = [
                j for j in self.hosts.get(self.head, "/api/jobs/") if j["submission_id"] == self.id
            ]
            assert job["status"] in ("PENDING", "RUNNING"), self.log()
            return False

        wait_until(check, lambda: (written(self.out), self.hosts.nodes(self.head)))

    def log(self) -> str:
        return self.hosts.get(self.head, f"/api/jobs/{self.id}/logs")["logs"][-5000:]

    def stop(self) -> str:
        said = self.log()
        assert submit(self.hosts, self.head, "stop", self.id).returncode == 0
        assert submit(self.hosts, self.head, "logs", self.id).returncode == 130
        return said

    def trained_as_planned(self, recipe: str, ranks: int) -> None:
        """No sample was lost or taken twice in the steps that all ranks have finished."""
        steps = min(step_of(self.out, rank) for rank in range(ranks))
        taken = {
            name: {step: keys for step, keys in found.items() if step < steps}
            for name, found in consumed(self.out).items()
        }
        assert steps > 0 and taken == planned(recipe, [f"train.steps={steps}"])


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


def is_closed_to_strangers(hosts: Hosts, head: Host) -> None:
    """Without the token, or with another, nothing is taken."""
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
    is_closed_to_strangers(hosts, head)
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


@pytest.mark.cluster
def test_an_encoder_runs_on_the_nodes_that_are_named(net, tiny_data):
    hosts, head = net
    encoder, out = vit(hosts.folder / "vit"), hosts.folder / "features"
    argv = ["embed", str(tiny_data), "--modality", "image", "--encoder", str(encoder)]
    argv += ["--actors", "2", "--nodes", "uml-role=train", "--per-part", "10", "--out", str(out)]
    done = submit(hosts, head, *argv)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    places = {node["node_id"]: node["node_ip"] for node in hosts.ask(head, "/api/v0/nodes")}
    found = hosts.ask(head, "/api/v0/actors?detail=true&limit=10000")
    made = {places[a["node_id"]] for a in found if "_Actor" in a["class_name"] and a["node_id"]}
    assert made and made <= {hosts.hosts[n].address for n in WORKERS}
    assert list(out.glob("image-test-*.tar"))


@pytest.mark.cluster
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
    wait_until(lambda: step_of(out) > 0, lambda: written(out))
    assert submit(hosts, head, "stop", "endless").returncode == 0
    assert submit(hosts, head, "logs", "endless").returncode == 130


def test_a_node_is_lost_and_comes_back(net, endless):
    hosts, head = net
    out = hosts.folder / "elastic"
    job = Endless(net, out, endless, "train.workers=[1,3]", *PLACED)
    job.wait_until(lambda: step_of(out, rank=2) >= 45)
    lost = hosts.hosts["three"]
    lost.kill()
    at = step_of(out)
    job.wait_until(lambda: not hosts.is_alive(head, lost) and _ranks_after(out, at) == {0, 1})
    two = step_of(out)
    job.wait_until(lambda: step_of(out) > two + 20)  # it goes on with the rest
    lost.start()
    hosts.start_worker(lost, head)
    job.wait_until(lambda: _ranks_after(out, two) == {0, 1, 2} and step_of(out, 2) > two + 40)
    said = job.stop()
    assert said.count("started again; it goes on from step") >= 2
    job.trained_as_planned(endless, ranks=3)


@pytest.mark.cluster
def test_a_notice_becomes_a_checkpoint_and_the_run_goes_on_elsewhere(net, endless):
    hosts, head = net
    out = hosts.folder / "preempted"
    job = Endless(
        net, out, endless, "train.workers=[1,2]", "train.checkpoint_every=100000", *PLACED
    )
    job.wait_until(lambda: step_of(out, rank=1) >= 30)
    actors = hosts.ask(head, "/api/v0/actors?limit=1000&detail=true")
    node = next(
        a["node_id"]
        for a in actors
        if a["class_name"] == "RayTrainWorker" and a["state"] == "ALIVE"
    )
    places = {n["node_id"]: n["node_ip"] for n in hosts.ask(head, "/api/v0/nodes")}
    host = next(h for h in hosts.hosts.values() if h.address == places[node])
    with metadata_service(hosts.gateway) as cloud:
        watcher = host.popen(
            "sh", str(ROOT / "cluster" / "spot_notice.sh"), "gcp", f"{head.address}:{PORT}",
            log=hosts.folder / "notice.log", env={"METADATA": cloud.url},
        )  # fmt: skip
        time.sleep(5)
        assert watcher.poll() is None, (hosts.folder / "notice.log").read_text()
        cloud.preempted = True
        wait_until(lambda: watcher.poll() is not None)
        assert watcher.returncode == 0, (hosts.folder / "notice.log").read_text()
    job.wait_until(lambda: "started again; it goes on from step" in job.log())
    said = job.log()
    noticed = int(said.partition("will be taken away: checkpoint at step ")[2].split(".")[0])
    assert f"started again; it goes on from step {noticed}." in said
    job.wait_until(lambda: step_of(out, rank=1) > noticed + 20)  # on the node that was free
    job.stop()
    job.trained_as_planned(endless, ranks=2)


class Cloud(http.server.ThreadingHTTPServer):
    """Google Cloud's metadata service, as far as cluster/spot_notice.sh asks it."""

    preempted = False
    url = ""


class _Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        right = self.headers.get("Metadata-Flavor") == "Google"
        right = right and self.path == "/computeMetadata/v1/instance/preempted"
        self.send_response(200 if right else 403)
        self.end_headers()
        self.wfile.write(b"TRUE" if self.server.preempted else b"FALSE")

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def metadata_service(address: str) -> Iterator[Cloud]:
    with Cloud((address, 0), _Metadata) as cloud:
        cloud.url = f"http://{address}:{cloud.server_port}"
        threading.Thread(target=cloud.serve_forever, daemon=True).start()
        yield cloud
        cloud.shutdown()


def _ranks_after(out: Path, step: int) -> set[int]:
    """Ranks that have begun a step after `step`."""
    return {rank for rank in range(3) if step_of(out, rank) > step}
