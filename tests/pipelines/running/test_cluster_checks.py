"""Each check of a cluster on what it is given; the dashboard and the nodes on real Rays."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.running import cluster_checks as checks
from pipelines.running.cluster_checks import Cluster
from pipelines.running.need import Need
from pipelines.running.runtime import local_cpus

GIB = 1 << 30
CLUSTER = Cluster(private=False, cpus=8, gpus=2, store=4 * GIB, free_cpus=8)
NEED = Need(workers=2, streams=3, store=GIB)


def cluster(**changes):
    return dataclasses.replace(CLUSTER, **changes)


def need(**changes):
    return dataclasses.replace(NEED, **changes)


def test_the_plan_of_cpus():
    fine = checks.cpu_plan(cluster(), need())
    assert fine.state == "ok" and "1 to each of 6 streams" in fine.found
    slow = checks.cpu_plan(cluster(cpus=6), need())  # 5.5 left for 6
    assert slow.state == "warn" and "0 to each of 6" in slow.found and "6.5 CPUs" in slow.fix
    busy = checks.cpu_plan(cluster(free_cpus=0.5), need())
    assert busy.state == "warn" and "0.5 are free now" in busy.found
    stuck = checks.cpu_plan(cluster(cpus=0.5), need())
    assert stuck.state == "stop" and "for ever" in stuck.found
    grows = checks.cpu_plan(cluster(cpus=0.5, most={"CPU": 64}), need())
    assert grows.state == "warn" and "autoscaler" in grows.found
    for workers, streams in ((1, 1), (2, 3), (8, 2)):  # a private Ray has one for every stream
        cpus = local_cpus(workers, streams)
        plan = checks.cpu_plan(cluster(cpus=cpus), need(workers=workers, streams=streams))
        assert plan.state == "ok"


def test_an_elastic_job_asks_for_its_fewest_workers():
    some = need(workers=4, least=1, device="cuda")
    assert checks.gpus(cluster(gpus=1), some).state == "ok"
    assert "on GPUs" in checks.gpus(cluster(gpus=1), need(workers=4, least=1)).found
    assert checks.gpus(cluster(gpus=0), some).state == "stop"


def test_placement_on_named_nodes():
    asks = need(resources=(("trainer", 1.0),), data_nodes=(("uml-role", "data"),))
    labels = [{"uml-role": "train"}, {"uml-role": "data", "zone": "a"}]
    there = cluster(resources={"trainer": 2.0}, labels=labels)
    assert checks.placement(there, asks) == []
    assert checks.placement(cluster(private=True), asks) == []  # one node, which does everything
    few = checks.placement(cluster(resources={"trainer": 1.0}, labels=labels), asks)
    assert [f.state for f in few] == ["stop"] and "for ever" in few[0].found
    grows = cluster(resources={}, labels=labels, most={"trainer": 4})
    assert [f.state for f in checks.placement(grows, asks)] == ["warn"]
    nowhere = checks.placement(cluster(resources={"trainer": 2.0}, labels=labels[:1]), asks)
    assert [f.state for f in nowhere] == ["stop"]
    assert nowhere[0].fix.startswith("ray start --labels=uml-role=data")
    elastic = dataclasses.replace(asks, least=1)
    assert checks.placement(cluster(resources={"trainer": 1.0}, labels=labels), elastic) == []


def test_gpus_against_the_request():
    assert "on GPUs" in checks.gpus(cluster(), need()).found
    some = checks.gpus(cluster(gpus=1), need())
    assert some.state == "warn" and some.fix == "train.workers=1" and "on CPUs" in some.found
    assert checks.gpus(cluster(gpus=0), need()).state == "ok"
    assert "on CPUs" in checks.gpus(cluster(), need(device="cpu")).found
    assert checks.gpus(cluster(), need(device="cuda")).state == "ok"
    few = checks.gpus(cluster(gpus=1), need(device="cuda"))
    assert few.state == "stop" and few.fix == "train.device=auto, or train.workers=1"
    none = checks.gpus(cluster(gpus=0), need(device="cuda"))
    assert none.state == "stop" and "a machine with GPUs" in none.fix
    assert checks.gpus(cluster(gpus=0, most={"GPU": 2}), need(device="cuda")).state == "warn"
    assert checks.gpus(cluster(gpus=0, most={"CPU": 2}), need(device="cuda")).state == "stop"


def test_the_object_store():
    assert checks.object_store(cluster(), need()).state == "ok"
    small = checks.object_store(cluster(store=GIB), need())
    assert small.state == "warn" and "512 MiB" in small.found and "--object-store" in small.fix


def test_a_missing_dashboard_stops_what_stops_trials():
    gone = cluster(dashboard="connection refused")
    assert checks.dashboard(gone, need()).state == "warn"
    stop = checks.dashboard(gone, need(tunes=True))
    assert stop.state == "stop" and "ray[default]" in stop.fix
    assert checks.dashboard(cluster(), need(tunes=True)).state == "ok"
    assert checks.dashboard(cluster(private=True), need(tunes=True)).state == "ok"


def node(name, **changes):
    versions = checks.node_facts([])["versions"]
    return {"node": name, "versions": versions, "ours": True, "lost": [], "looped": False} | changes


def test_nodes_that_differ():
    def found(*facts):
        return {f.name + ":" + f.state for f in checks.nodes(cluster(facts=facts), "/out")}

    assert found() == set()  # a single node
    assert found(node("a"), node("b")) == {"nodes:ok"}
    old = node("b") | {"versions": node("b")["versions"] | {"torch": "1.0"}}
    assert found(node("a"), old) == {"nodes:warn"}
    assert found(node("a"), {"node": "b", "error": "it does not answer"}) == {"nodes:warn"}
    assert found(node("a"), node("b", looped=True)) == {"nodes:warn"}
    assert found(node("a"), node("b", ours=False)) == {"nodes:stop"}
    assert found(node("a"), node("b", lost=["/out"])) == {"shared disk:stop"}
    assert found(node("a"), node("b", lost=["/data/x.tar"])) == {"shared disk:stop"}


@pytest.mark.ray
def test_a_running_ray_is_seen_as_it_is(ray_cluster, tmp_path):
    seen = checks.running_cluster(NEED, str(tmp_path))
    assert seen.dashboard is None and not seen.private and len(seen.nodes) == 1
    assert seen.cpus >= 2 and seen.store > 0 and seen.most is None
    assert Path(seen.session).name.startswith("session_")
    (facts,) = checks._node_facts(seen.nodes, [str(tmp_path), str(tmp_path / "none")])
    assert facts["ours"] and facts["lost"] == [str(tmp_path / "none")]
    (silent,) = checks._node_facts(["ab" * 28], [])  # no such node
    assert silent["error"]


TWO_NODES_AND_NO_DASHBOARD = """
import json, ray, tempfile, time
from ray.cluster_utils import Cluster
from pipelines.running import cluster_checks as checks
from pipelines.running.need import Need
head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": tempfile.mkdtemp(prefix="uml-ray-")}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(wait=False, num_cpus=1)  # it would wait no longer than 30 seconds
ray.init(address=cluster.address, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.1)
seen = checks.running_cluster(Need(paths=("/proc/self/status", "/nothing.tar")), "/tmp")
findings = [checks.dashboard(seen, Need(tunes=True)), *checks.nodes(seen, "/tmp")]
print(json.dumps([[f.name, f.state, f.found] for f in findings]))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_with_something_missing():
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES_AND_NO_DASHBOARD], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found[0][:2] == ["dashboard", "stop"]
    assert ["shared disk", "stop", "not on every node: /nothing.tar"] in found
