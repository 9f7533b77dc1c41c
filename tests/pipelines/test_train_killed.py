"""A run that is stopped at an arbitrary step, by Ctrl-C and by SIGKILL, and taken up again.

The jobs run as a person starts them, each with a Ray of its own. What they consumed in all must
be what their plan says and an undisturbed run took.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import Job, checkpoints_of, consumed, losses, planned, step_of

from pipelines import cli
from pipelines.running.checkpoints import newest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def killed(fault_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(--out, log) of a run that was interrupted after step 30, resumed, and killed after 90."""
    folder = tmp_path_factory.mktemp("killed")
    out, log = folder / "out", folder / "log"
    command = [fault_recipe, "--out", str(out)]
    job = Job("train", *command, log=log)
    job.wait_until(lambda: step_of(out) >= 30 and checkpoints_of(out))
    code = job.interrupt()
    reached = newest(out)[0]
    said = " ".join(log.read_text().split())
    assert code == 130, said[-2000:]
    assert "Interrupted." in said and "Traceback" not in said
    assert f"since step {reached.at}. The last checkpoint is {reached.path};" in said
    job = Job("train", *command, "--resume", log=log)
    job.wait_until(lambda: step_of(out) >= 90)
    job.kill()
    assert f"Going on from step {reached.at}." in log.read_text()
    assert step_of(out) < 159 and not (out / "metrics.json").exists()
    return out, log


def test_it_ends_as_the_undisturbed_run(ray_cluster, fault_recipe, undisturbed, killed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(killed[0], out)
    assert cli.main(["train", fault_recipe, "--out", str(out), "--resume"]) == 0
    assert consumed(out) == planned(fault_recipe) == consumed(undisturbed)
    for rank in (0, 1):  # the same order too
        name = f"trace/rank-{rank}.jsonl"
        assert (out / name).read_text() == (undisturbed / name).read_text()
    np.testing.assert_allclose(losses(out), losses(undisturbed), rtol=1e-5)
    ours, theirs = (
        {
            k: v
            for k, v in json.loads((o / "metrics.json").read_text()).items()
            if k in ("test_accuracy", "val_accuracy", "best_step", "quarantined", "skipped_updates")
        }
        for o in (out, undisturbed)
    )
    assert ours == theirs
    assert len(checkpoints_of(out)) <= 4  # two of each of the last starts


def test_one_worker_goes_on_where_two_were_and_a_damaged_checkpoint_is_passed_over(
    ray_cluster, fault_recipe, undisturbed, killed, tmp_path, capfd
):
    out = tmp_path / "out"
    shutil.copytree(killed[0], out)
    damaged = newest(out)[0]
    with open(damaged.path / "state.pt", "r+b") as file:
        file.truncate(1000)
    before = newest(out)[0]
    assert before.at < damaged.at
    command = ["train", fault_recipe, "train.workers=1", "--out", str(out), "--resume"]
    assert cli.main(command) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"checkpoint {damaged} is passed over: state.pt has 1000 bytes" in said
    assert f"Going on from step {before.at}." in said
    assert consumed(out) == planned(fault_recipe)
    np.testing.assert_allclose(losses(out), losses(undisturbed), rtol=1e-4)


def test_another_run_is_not_taken_up_by_mistake(fault_recipe, killed, capfd):
    command = ["train", fault_recipe, "train.batch_size=16", "--out", str(killed[0]), "--resume"]
    assert cli.main(command) == 2
    assert "train.batch_size was 8 and is 16" in capfd.readouterr().err
