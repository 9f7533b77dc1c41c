"""What a finished run left is found, fits its recipe, or is refused in words."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.running.data import num_classes, open_data
from pipelines.running.finished import load_learner, new_learner, open_finished, stems_of
from uml_core.errors import UserError


def test_a_training_run_and_its_checkpoint_are_the_same_run(make_run):
    out = make_run("train")
    run = open_finished(out)
    assert (run.kind, run.shots, run.seed) == ("train", 4, 0) and not run.arms
    assert run.model == out / "checkpoint" / "model.safetensors"
    assert open_finished(out / "checkpoint") == run


def test_the_model_of_a_comparison_is_uml_of_the_first_seed_at_the_most_shots(make_run):
    out = make_run("compare", shots=[2, 4], seeds=[3, 1])
    run = open_finished(out)
    assert (run.kind, run.shots, run.seed) == ("compare", 4, 3)
    assert run.model == out / "arms" / "uml-seed3.safetensors"
    assert set(run.arms) == {"unimodal", "uml", "uml_permuted"}
    assert set(run.arms["unimodal"]) == {1, 3}
    for path in (out / "arms").iterdir():
        path.unlink()
    older = open_finished(out)  # of a run that kept the model alone
    assert older.model == out / "model" / "model.safetensors" and not older.arms


def test_a_folder_with_weights_alone(make_run):
    out = make_run("model")
    run = open_finished(out / "model")
    assert (run.kind, run.seed, run.shots) == ("weights", 0, 4)


def test_fields_of_the_recipe_can_be_changed(make_run):
    run = open_finished(make_run("train"), ["evaluate.shots=[1]", "tests.a.files=/x/*.tar"])
    assert run.recipe.evaluate.shots == [1] and run.recipe.tests["a"].files == "/x/*.tar"


def test_what_is_missing_is_named(make_run, tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        open_finished(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no finished run"):
        open_finished(empty)
    out = make_run("train")
    (out / "recipe.yaml").unlink()
    assert open_finished(out).seed == 0  # the checkpoint has its own
    (out / "checkpoint" / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        open_finished(out)
    compared = make_run("compare", "compared", seeds=[5])
    (compared / "arms" / "uml-seed5.safetensors").unlink()
    with pytest.raises(UserError, match=r"arms has no uml-seed5\.safetensors"):
        open_finished(compared)


def test_weights_make_the_learner_they_came_from(make_run):
    run = open_finished(make_run("compare", seeds=[0, 1]))
    data = open_data(run.recipe)
    options = {"num_classes": num_classes(run.recipe, data)}
    whole = load_learner(run.model, run.recipe, data.modalities, **options)
    assert stems_of(run.model) == set(run.recipe.active) == set(whole.modalities)
    assert not whole.training
    fresh = new_learner(run.recipe, data.modalities, seed=0, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    alone = load_learner(run.arms["uml"][1], run.recipe, data.modalities, **options)
    assert set(alone.modalities) == {"image"}
    saved = load_file(run.arms["uml"][1])
    assert all(torch.equal(value, saved[name]) for name, value in alone.state_dict().items())


def test_weights_that_do_not_fit_are_refused(make_run, tmp_path):
    out = make_run("train")
    run = open_finished(out, ["model.width=32"])
    data = open_data(run.recipe)
    with pytest.raises(UserError, match="does not fit the recipe"):
        load_learner(run.model, run.recipe, data.modalities, num_classes=3)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot read"):
        load_learner(broken, run.recipe, data.modalities, num_classes=3)
    save_file({"stems.image.x": torch.ones(1)}, broken)
    assert json.dumps(sorted(stems_of(broken))) == '["image"]'
