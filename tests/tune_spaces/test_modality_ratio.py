"""The simplex of mixes: corners, sizes with a temperature, even."""

from __future__ import annotations

import pytest

from tune_spaces.base import Context
from tune_spaces.modality_ratio import SPACE, shares
from uml_core import recipe


@pytest.fixture
def context(tiny_recipe) -> Context:
    return Context(recipe.from_dict(tiny_recipe), {"image": 48, "text": 800, "wave": 100})


def test_mixes_are_points_of_the_simplex_with_its_corners(context):
    knob = SPACE.knobs(context)[1]
    mixes = {mix: shares(mix, context) for mix in knob.values}
    assert all(sum(mix.values()) == pytest.approx(1) for mix in mixes.values())
    assert mixes["text only"] == {"text": 1, "wave": 0}
    assert mixes["wave only"] == {"text": 0, "wave": 1}
    assert mixes["even"] == {"text": 0.5, "wave": 0.5}


def test_temperature_flattens_the_shares_of_the_sizes(context):
    by_size, flat = shares("by size, T = 1", context), shares("by size, T = 3", context)
    assert by_size["text"] == pytest.approx(8 / 9)
    assert flat["text"] == pytest.approx(2 / 3)  # (800 / 100)^(1/3) = 2


def test_the_ratio_is_shared_out(context):
    point = SPACE.point({SPACE.knobs(context)[0].name: 2.0, "mix": "even"}, context)
    assert point.settings == {"modalities.text.ratio": 1.0, "modalities.wave.ratio": 1.0}


def test_one_auxiliary_modality_needs_no_mix(tiny_recipe):
    del tiny_recipe["modalities"]["wave"]
    one = Context(recipe.from_dict(tiny_recipe), {"image": 48, "text": 48})
    [knob] = SPACE.knobs(one)
    assert knob.name == "text batches per image batch"
    assert [p.settings["modalities.text.ratio"] for p in SPACE.grid(one)] == [0.25, 0.5, 1, 2, 4]
