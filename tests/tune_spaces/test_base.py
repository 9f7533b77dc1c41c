"""Spaces: points, baselines, sums, checks, and a person's own space in a file."""

from __future__ import annotations

import numpy as np
import pytest

from tune_spaces.base import Context, Knob, Space, find, packaged
from uml_core import recipe
from uml_core.errors import UserError
from uml_core.recipe import override

OWN = """
from tune_spaces.base import Knob, Space

SPACE = Space(
    "smoothing",
    "How much to smooth labels.",
    lambda context: [Knob("label smoothing", (0.0, 0.1), target=True)],
    lambda values, context: {"train.label_smoothing": values["label smoothing"]},
)
"""


@pytest.fixture
def context(tiny_recipe) -> Context:
    return Context(recipe.from_dict(tiny_recipe), {"image": 48, "text": 48, "wave": 12})


@pytest.mark.parametrize("name", packaged())
def test_every_point_of_every_space_is_a_legal_recipe(name, context):
    space = packaged()[name]
    space.check(context)
    points = space.grid(context)
    assert len(points) > 1 and len({repr(p.settings) for p in points}) == len(points)
    for point in points[:: max(1, len(points) // 12)]:
        changed = override(context.recipe, point.settings)
        alone = override(context.recipe, space.baseline(point, context).settings)
        assert alone.active == ["image"] and changed.active[0] == "image"


def test_the_baseline_keeps_the_knobs_of_the_target_only(context):
    space = find("optimiser+loss_weight")
    alone = space.baseline(space.grid(context)[-1], context)
    assert set(alone.values) == {"learning rate", "weight decay"}
    assert alone.settings["train.lr"] == 1e-2
    assert "modalities.text.weight" not in alone.settings


def test_samples_are_seeded_distinct_and_within_the_span(context):
    space = find("optimiser")
    points = space.sample(context, 30, seed=1)
    again, other = space.sample(context, 30, seed=1), space.sample(context, 30, seed=2)
    assert [p.values for p in points] == [p.values for p in again] != [p.values for p in other]
    rates = np.array([p.values["learning rate"] for p in points])
    assert len(set(rates)) == 30 and rates.min() >= 1e-3 and rates.max() <= 1e-2
    assert 0.3 < (rates < np.sqrt(1e-5)).mean() < 0.7  # log-uniform: half below the middle decade
    grid = find("modality_ratio")
    few = grid.sample(context, 4, seed=0)
    assert len(few) == 4 and all(p in grid.grid(context) for p in few)


def test_a_small_space_is_taken_whole_and_a_large_one_sampled(context):
    space = find("modality_ratio+curriculum")
    assert len(space.points(context, 1000, 0)) == len(space.grid(context))
    assert len(space.points(context, 5, 0)) == 5
    assert len(find("exchange_rate").points(context, 2, 0)) == 9  # its answer needs all of them


def test_spaces_that_set_the_same_field_do_not_combine(context):
    with pytest.raises(UserError, match="both set modalities"):
        find("loss_weight+paper_grid").check(context)


def test_unknown_spaces_are_all_named_with_the_nearest_known_one():
    with pytest.raises(UserError) as caught:
        find("modality_ratios+nowhere.py")
    assert len(caught.value.problems) == 2
    assert "did you mean 'modality_ratio'" in caught.value.problems[0]


def test_an_own_space_is_a_file_and_nothing_else(tmp_path, context):
    path = tmp_path / "my_space.py"
    path.write_text(OWN)
    space = find(f"{path}+modality_ratio")
    space.check(context)
    assert space.name == "smoothing+modality_ratio"
    assert {p.settings["train.label_smoothing"] for p in space.grid(context)} == {0.0, 0.1}


@pytest.mark.parametrize(
    "code, said", [("SPACE = 3", "defines no SPACE"), ("1 / 0", "ZeroDivisionError")]
)
def test_an_own_space_that_is_none_says_why(tmp_path, code, said):
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(UserError, match=said):
        find(str(path))


def test_a_space_without_anything_to_turn_is_refused(tiny_recipe):
    tiny_recipe["modalities"] = {"image": tiny_recipe["modalities"]["image"]}
    alone = Context(recipe.from_dict(tiny_recipe), {"image": 48})
    with pytest.raises(UserError, match="nothing it could turn"):
        find("modality_ratio").check(alone)


def test_knobs_of_one_name_are_refused(context):
    def twice(_):
        return [Knob("a", (1,)), Knob("a", (2,))]

    with pytest.raises(UserError, match="two knobs are called 'a'"):
        Space("twice", "", twice, lambda values, context: {}).check(context)
