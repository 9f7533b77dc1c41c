"""Nodes of one host that go away while workers and read tasks run on them.

`make test-slow` loses a host of its own instead (test_hosts.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import consumed, planned

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]


def test_a_run_outlives_its_nodes(fault_recipe, tmp_path):
    recipe = yaml.safe_load(Path(fault_recipe).read_text())
    # Time to lose a node, get another and lose the next: few validations and checkpoints.
    recipe["train"] |= {"steps": 2000, "validate_every": 1000, "gradients_every": 0}
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(recipe))
    support = Path(__file__).parents[1] / "support"
    env = {**os.environ, "PYTHONPATH": f"{support}:{Path(__file__).parents[2]}"}
    done = subprocess.run(
        [sys.executable, str(support / "lose_nodes.py"), str(path), str(out)],
        env=env,
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "removed a node beside the workers" in said and "removed a node of the workers" in said
    assert consumed(out) == planned(str(path))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["restarts"] == 1, said
    environment = json.loads((out / "environment.json").read_text())
    assert len(environment["placement"]["workers"]) == 2
    assert "started again; it goes on from step" in said
