"""A folder serves one process at a time, and goes on only with the job that it holds."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from pipelines import cli
from pipelines.running.data import open_data, resolved
from pipelines.running.folder import FREE, FREE_IN_A_RUN, FREE_IN_A_SWEEP, differences, opened
from pipelines.running.lock import alone
from pipelines.tuning.design import design
from tune_spaces.base import find
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
    with alone(out), pytest.raises(UserError, match="another job is at work"):
        start(path, out)
    start(path, out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "train.warmup={modality: text, steps: 3}",
            "train.warmup.modality was not set and is text",
        ),
        ("modalities.text.shots=2", "modalities.text.shots was not set and is 2"),
        ("compare.grid={lr: [0.1]}", "compare.grid.lr was not set and is [0.1]"),
    ],
)
def test_a_field_that_appears_or_vanishes_is_a_difference(begun, tmp_path, change, said):
    path, out = begun
    with pytest.raises(UserError) as refused:
        start(path, out, change, free=FREE)
    assert said in str(refused.value)
    start(path, tmp_path / "with", change, free=FREE)
    with pytest.raises(UserError) as refused:
        start(path, tmp_path / "with", free=FREE)
    name, _, value = said.partition(" was not set and is ")
    assert f"{name} was {value} and is not set" in str(refused.value)


def test_data_that_appears_or_vanishes_is_a_difference(begun, tmp_path):
    path, out = begun
    data = recipes.load(path).data_root
    shutil.copy(f"{data}/image-test-000000.tar", tmp_path / "image-val-0.tar")
    split = f"modalities.image.val={tmp_path}/image-val-*.tar"
    with pytest.raises(UserError, match=r"the data of image \(val\) was not there when"):
        start(path, out, split, "allow_overlap=1.0")
    environment = json.loads((out / "environment.json").read_text())
    environment["data"]["sound (train)"] = environment["data"]["image (train)"]
    (out / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(UserError, match=r"the data of sound \(train\), which the job began with"):
        start(path, out)
    (out / "environment.json").unlink()
    with pytest.raises(UserError, match="does not say which data"):
        start(path, out)


def test_fields_of_another_version_count_by_their_value(begun):
    """One that this version added has its default; one that it does not know is a difference."""
    path, out = begun
    held = yaml.safe_load((out / "recipe.yaml").read_text())
    del held["train"]["clip"], held["probe"], held["modalities"]["text"]["weight"]
    (out / "recipe.yaml").write_text(yaml.safe_dump(held))
    with pytest.raises(UserError, match=r"train\.clip was not set and is 1\.0"):
        start(path, out, "train.clip=1.0", free=FREE)
    (out / "recipe.yaml").write_text(yaml.safe_dump(held))
    start(path, out, free=FREE)
    held["train"]["momentum"] = 0.9
    (out / "recipe.yaml").write_text(yaml.safe_dump(held))
    with pytest.raises(UserError) as refused:
        start(path, out, free=FREE)
    assert "train.momentum was 0.9 and is not set" in str(refused.value)
    assert "train.clip" not in str(refused.value)


def test_long_lists_are_compared_to_their_end():
    names = [f"part-{i:06d}" for i in range(2000)]
    assert differences({"files": names}, {"files": names}) == []
    assert len(differences({"files": names}, {"files": [*names[:-1], "other"]})) == 1


@pytest.mark.parametrize(
    ("changes", "space", "said"),
    [
        (["train.lr=0.5"], "modality_ratio", "train.lr was 0.001 and is 0.5"),
        (["sweep.confirm=2"], "modality_ratio", "sweep.confirm was 5 and is 2"),
        ([], "optimiser", "space was modality_ratio and is optimiser"),
        (["data_root={other}"], "modality_ratio", r"the data of text (train) is not what"),
    ],
)
def test_a_sweep_goes_on_as_the_same_sweep(
    begun, tiny_data, tmp_path, capsys, changes, space, said
):
    path, out = begun[0], tmp_path / "sweep"
    made = design(recipes.load(path), find("modality_ratio"))
    for _ in range(2):
        with opened(out, made.recipe, made.data, FREE_IN_A_SWEEP, made.plan()):
            pass
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    shutil.copy(other / "text-train-000000.tar", other / "text-train-000002.tar")
    fields = [change.format(other=other) for change in changes]
    argv = ["sweep", str(path), *fields, "--space", space, "--out", str(out), "--resume"]
    assert cli.main(argv) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert said in told and "choose another --out" in told
