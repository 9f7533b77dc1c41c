"""What types cannot say of exchange rates and class tokens; the rest is in test_recipe."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from uml_core.errors import UserError
from uml_core.recipe import from_dict

TEXT = {"kind": "text", "train": "t-*.tar", "shots": [5, 1]}
RAW: dict[str, Any] = {
    "name": "grid",
    "target": "image",
    "data_root": "/data",
    "shots": [2, 4],
    "modalities": {"image": {"kind": "image", "train": "i-*.tar"}, "text": TEXT},
}


def test_several_auxiliary_shots_ask_for_an_exchange_rate():
    assert from_dict(RAW).exchange == ("text", [1, 5])
    raw = copy.deepcopy(RAW)
    raw["modalities"]["text"]["shots"] = 5
    assert from_dict(raw).exchange is None


@pytest.mark.parametrize(
    ("change", "text", "told"),
    [
        ({"shots": 4}, {}, "shots: an exchange rate needs at least two numbers"),
        ({"shots": None}, {}, "shots: an exchange rate needs at least two numbers"),
        ({"seeds": [0]}, {}, "seeds: an exchange rate has an interval only"),
        ({}, {"shots": []}, "modalities.text.shots: give at least one number"),
        ({}, {"shots": [3, 3]}, "modalities.text.shots: give at least one number"),
        ({}, {"shots": [3, 0]}, "modalities.text.shots: must be at least 1"),
        ({}, {"ratio": 0}, "modalities.text.shots: a list measures its exchange"),
    ],
)
def test_what_an_exchange_rate_needs(change, text, told):
    raw = copy.deepcopy(RAW) | change
    raw["modalities"]["text"] |= text
    with pytest.raises(UserError) as caught:
        from_dict(raw)
    [problem] = caught.value.problems
    assert problem.startswith(told)


def test_an_exchange_rate_is_that_of_one_modality():
    raw = copy.deepcopy(RAW)
    raw["modalities"]["more"] = {"kind": "text", "train": "m-*.tar"}
    with pytest.raises(UserError, match="set the ratio of more to 0"):
        from_dict(raw)
    raw["modalities"]["more"]["ratio"] = 0
    assert from_dict(raw).exchange == ("text", [1, 5])


def test_a_class_token_needs_blocks_to_show_it_the_picture():
    def told(**model):
        raw = copy.deepcopy(RAW) | {"model": model}
        raw["modalities"]["text"]["shots"] = 5
        raw["modalities"]["image"] |= {"stem": "patches", "class_token": True}
        with pytest.raises(UserError) as caught:
            from_dict(raw)
        [problem] = caught.value.problems
        return problem

    assert told(trunk="none").startswith("modalities.image.class_token: without a trunk this token")
    assert told(depth=0).startswith("model.depth: 0 leaves a trunk without blocks")
    raw = copy.deepcopy(RAW) | {"model": {"trunk": "none", "depth": 0}}
    assert from_dict(raw).model.trunk == "none"  # says the same thing twice
