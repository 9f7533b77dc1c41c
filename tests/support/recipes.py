"""Recipes of tests: one base as plain types, with fields changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml_core.recipe import from_dict
from uml_core.specs import Recipe


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Recipe:
    """The recipe of `base` with `changes`; model, train and modalities keep their other fields."""
    made = {**base, **changes}
    for group in ("model", "train"):
        made[group] = {**base[group], **changes.get(group, {})}
    more = changes.get("modalities", {})
    assert more.keys() <= base["modalities"].keys()
    made["modalities"] = {n: {**m, **more.get(n, {})} for n, m in base["modalities"].items()}
    return from_dict(made)
