"""Runs `uml train` on a cluster of three nodes and takes two of them away in mid-run.

    python lose_nodes.py RECIPE OUT

First a node that only reads data for the workers, then the node that the workers run on. A process
of its own, because it needs a cluster of its own. Prints what it did; exits with the job's code.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from runs import step_of, training_workers, wait_until, written
from servers import free_port

from pipelines import cli


class Nodes:
    """A head with the driver, and nodes for workers and read tasks."""

    def __init__(self, folder: str) -> None:
        # A head takes no other port when that of its dashboard is taken.
        head = {"num_cpus": 0, "temp_dir": folder, "dashboard_port": free_port()}
        self.cluster = Cluster(
            initialize_head=True, head_node_args={**head, "include_dashboard": True}
        )
        for _ in range(2):
            self.add()

    def wait(self) -> None:
        """Returns when all nodes are there, and only those."""
        wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 3)

    def add(self) -> None:
        self.cluster.add_node(wait=False, num_cpus=4)  # it waits no longer than 30 seconds

    def remove(self, *, of_the_workers: bool) -> None:
        """Takes away a node that the workers run on, or one that they do not run on."""
        taken = set(training_workers().values())
        chosen = [n for n in self.cluster.worker_nodes if (n.node_id in taken) == of_the_workers]
        self.cluster.remove_node(chosen[0], allow_graceful=False)
        print(f"removed a node {'of' if of_the_workers else 'beside'} the workers", flush=True)


def main(recipe: str, out: Path) -> int:
    folder = tempfile.mkdtemp(prefix="uml-nodes-", dir="/tmp")
    nodes = Nodes(folder)
    try:
        ray.init(address=nodes.cluster.address, log_to_driver=False)
        nodes.wait()

        with ThreadPoolExecutor(1) as pool:  # nodes can be added by the main thread alone
            job = pool.submit(cli.main, ["train", recipe, "--out", str(out)])

            def reach(step: int) -> None:
                wait_until(lambda: job.done() or step_of(out) >= step, lambda: written(out))
                assert not job.done(), "the job ended before the fault"

            reach(40)
            nodes.remove(of_the_workers=False)
            nodes.add()
            nodes.wait()
            reach(150)
            nodes.remove(of_the_workers=True)
            return job.result()
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.pop("RAY_ADDRESS", None)
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2])))
