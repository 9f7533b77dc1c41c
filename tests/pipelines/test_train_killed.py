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
import yaml
from runs import Job, checkpoints_of, consumed, losses, planned, step_of

from pipelines import cli
from pipelines.running.checkpoints import newest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


STEPS = 800  # time to be stopped twice, also where steps are quick and signals late


@pytest.fixture(scope="module")
def long(fault_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe of all runs here."""
    recipe = yaml.safe_load(Path(fault_recipe).read_text())
    recipe["train"] |= {"steps": STEPS, "validate_every": 200}
    path = tmp_path_factory.mktemp("long") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.fixture(scope="module")
def calm(ray_cluster: None, long: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run when nothing happens to it."""
    out = tmp_path_factory.mktemp("calm") / "out"
    assert cli.main(["train", long, "--out", str(out)]) == 0
    return out


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
    assert step_of(out) < STEPS - 1 and not (out / "metrics.json").exists()
    return out, log


def test_it_ends_as_the_undisturbed_run(ray_cluster, long, calm, killed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(killed[0], out)
    assert cli.main(["train", long, "--out", str(out), "--resume"]) == 0
    assert consumed(out) == planned(long) == consumed(calm)
    for rank in (0, 1):  # the same order too
        name = f"trace/rank-{rank}.jsonl"
        assert (out / name).read_text() == (calm / name).read_text()
    np.testing.assert_allclose(losses(out), losses(calm), rtol=1e-5)
    ours, theirs = (
        {
            k: v
            for k, v in json.loads((o / "metrics.json").read_text()).items()
            if k in ("test_accuracy", "val_accuracy", "best_step", "quarantined", "skipped_updates")
        }
        for o in (out, calm)
    )
    assert ours == theirs
    assert len(checkpoints_of(out)) <= 4  # two of each of the last starts


def test_one_worker_goes_on_where_two_were_and_a_damaged_checkpoint_is_passed_over(
    ray_cluster, long, calm, killed, tmp_path, capfd
):
    out = tmp_path / "out"
    shutil.copytree(killed[0], out)
    damaged = newest(out)[0]
    with open(damaged.path / "state.pt", "r+b") as file:
        file.truncate(1000)
    before = newest(out)[0]
    assert before.at < damaged.at
    command = ["train", long, "train.workers=1", "--out", str(out), "--resume"]
    assert cli.main(command) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"checkpoint {damaged} is passed over: state.pt has 1000 bytes" in said
    assert f"Going on from step {before.at}." in said
    assert consumed(out) == planned(long)
    np.testing.assert_allclose(losses(out), losses(calm), rtol=1e-4)


def test_another_run_is_not_taken_up_by_mistake(long, killed, capfd):
    command = ["train", long, "train.batch_size=16", "--out", str(killed[0]), "--resume"]
    assert cli.main(command) == 2
    assert "train.batch_size was 8 and is 16" in capfd.readouterr().err
