"""A folder serves one process at a time, and goes on only with the job that it holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from pipelines.running.data import open_data, resolved
from pipelines.running.folder import FREE, FREE_IN_A_RUN, opened
from uml_core import recipe as recipes
from uml_core.errors import UserError


@pytest.fixture
def begun(tiny_recipe, write_recipe, tmp_path):
    """(recipe file, folder) of a job that was started."""
    path, out = write_recipe(tiny_recipe), tmp_path / "out"
    start(path, out)
    return path, out


def start(path, out, *overrides, free=FREE_IN_A_RUN):
    recipe = recipes.load(path, overrides)
    data = open_data(recipe)
    with opened(out, resolved(recipe, data), data, free) as environment:
        return environment


def test_a_start_leaves_what_it_was_made_with(begun):
    _, out = begun
    environment = json.loads((out / "environment.json").read_text())
    assert set(environment["data"]) >= {"image (train)", "image (test)", "text (train)"}
    assert recipes.load(out / "recipe.yaml").train.steps == 12


@pytest.mark.parametrize(
    "change",
    ["train.workers=1", "train.lr=1e-4", "train.steps=20", "train.on_nan=skip", "trace=true"],
)
def test_a_run_may_go_on_with(begun, change):
    path, out = begun
    start(path, out, change)
    assert change.partition("=")[2].removesuffix("e-4") in (out / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.batch_size=16", "train.batch_size was 8 and is 16"),
        ("seeds=[1]", "seeds was [0, 1] and is [1]"),
        ("modalities.text.ratio=2.0", "modalities.text.ratio was 1.0 and is 2.0"),
        ("model.width=32", "model.width was 16 and is 32"),
        ("shots=2", "shots was 4 and is 2"),
    ],
)
def test_another_job_is_refused_and_the_old_one_kept(begun, change, said):
    path, out = begun
    before = (out / "recipe.yaml").read_text()
    with pytest.raises(UserError, match="choose another --out") as refused:
        start(path, out, change)
    assert said in str(refused.value) and (out / "recipe.yaml").read_text() == before


def test_rounds_of_a_comparison_must_be_alike(begun):
    path, out = begun
    start(path, out, "train.workers=1", free=FREE)
    with pytest.raises(UserError, match=r"train\.lr was 0\.001 and is 0\.01"):
        start(path, out, "train.lr=1e-2", free=FREE)


def test_a_modality_less_is_another_job(begun, tiny_recipe, write_recipe):
    _, out = begun
    del tiny_recipe["modalities"]["wave"]
    with pytest.raises(UserError, match="modalities were image, text, wave and are image, text"):
        start(write_recipe(tiny_recipe, "two.yaml"), out)


def test_the_same_data_may_lie_elsewhere_and_other_data_may_not(begun, tiny_data, tmp_path):
    path, out = begun
    moved = tmp_path / "moved"
    shutil.copytree(tiny_data, moved)
    start(path, out, f"data_root={moved}")
    shutil.copy(moved / "text-train-000000.tar", moved / "text-train-000002.tar")
    with pytest.raises(UserError, match=r"the data of text \(train\) is not what the job began"):
        start(path, out, f"data_root={moved}")


def test_two_processes_do_not_work_in_one_folder(begun):
    path, out = begun
    code = "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); "
    code += "fcntl.flock(fd, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another job is at work"):
            start(path, out)
        other.kill()
    start(path, out)
