"""A run that is stopped at an arbitrary step, by Ctrl-C and by SIGKILL, and taken up again.

The jobs run as a person starts them, each with a Ray of its own. What they consumed in all must
be what their plan says, and what they learnt what the same fit learns undisturbed in one process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from reference import reference
from runs import Job, checkpoints_of, consumed, losses, planned, step_of

from pipelines import cli
from pipelines.running.checkpoints import newest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


ENDLESS = 100_000  # steps: it is always stopped in the middle, however late a signal comes


@pytest.fixture(scope="module")
def long(fault_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe of all runs here; with a constant rate a longer run begins as a shorter one."""
    recipe = yaml.safe_load(Path(fault_recipe).read_text())
    recipe["train"] |= {"steps": ENDLESS, "validate_every": 100, "lr_schedule": "constant"}
    path = tmp_path_factory.mktemp("long") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.fixture(scope="module")
def killed(long: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(--out, log) of a run that was interrupted after step 30, resumed, and killed later."""
    folder = tmp_path_factory.mktemp("killed")
    out, log = folder / "out", folder / "log"
    command = [long, "--out", str(out)]
    job = Job("train", *command, log=log)
    job.wait_until(lambda: step_of(out) >= 30 and checkpoints_of(out))
    code = job.interrupt()
    reached = newest(out)[0]
    said = " ".join(log.read_text().split())
    assert code == 130, said[-2000:]
    assert "Interrupted." in said and "Traceback" not in said
    assert f"since step {reached.at}. The last checkpoint is {reached.path};" in said
    job = Job("train", *command, "--resume", log=log)
    job.wait_until(lambda: f"Going on from step {reached.at}." in log.read_text())
    job.wait_until(lambda: newest(out)[0].at >= reached.at + 60)
    job.kill()
    assert not (out / "metrics.json").exists()
    return out, log


def test_it_ends_as_the_undisturbed_run_though_a_checkpoint_is_damaged_and_a_worker_less(
    ray_cluster, long, killed, tmp_path, capfd
):
    out = tmp_path / "out"
    shutil.copytree(killed[0], out)
    damaged = newest(out)[0]
    with open(damaged.path / "state.pt", "r+b") as file:
        file.truncate(1000)
    before = newest(out)[0]
    assert before.at < damaged.at
    steps = damaged.at + 20  # the end of this run
    shorter = [f"train.steps={steps}"]
    command = ["train", long, *shorter, "train.workers=1", "--out", str(out), "--resume"]
    assert cli.main(command) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"checkpoint {damaged} is passed over: state.pt has 1000 bytes" in said
    assert f"Going on from step {before.at}." in said
    assert consumed(out) == planned(long, shorter)
    lines = (out / "trace" / "rank-0.jsonl").read_text().splitlines()
    taken = [json.loads(line)["step"] for line in lines]
    assert taken == sorted(taken) and set(taken) == set(range(steps))  # in order, each once
    calm, metrics = reference(long, shorter), json.loads((out / "metrics.json").read_text())
    np.testing.assert_allclose(losses(out), calm.losses, rtol=1e-4)
    for name in ("test_accuracy", "val_accuracy", "best_step"):
        assert metrics[name] == getattr(calm, name), name
    assert metrics["quarantined"] == metrics["skipped_updates"] == 0
    # Two of each of the last starts, and one that the killed one had no time to remove.
    assert len(checkpoints_of(out)) <= 5


def test_another_run_is_not_taken_up_by_mistake(long, killed, capfd):
    command = ["train", long, "train.batch_size=16", "--out", str(killed[0]), "--resume"]
    assert cli.main(command) == 2
    assert "train.batch_size was 8 and is 16" in capfd.readouterr().err
