"""The recipe: the only configuration. YAML -> merge overrides -> check everything -> dataclasses.

`load` collects every problem into one UserError; unknown names come with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uml_core import addresses
from uml_core.checks import check
from uml_core.errors import UserError, near
from uml_core.language_trunk import adopt
from uml_core.modalities import KINDS
from uml_core.specs import ModalitySpec, ModelSpec, Recipe, ShiftSpec
from uml_core.typed import MAX_TEXT, build, read_yaml


def load(
    path: str | Path, overrides: Sequence[str] = (), *, base: str | Path | None = None
) -> Recipe:
    """Reads a recipe file and merges `key=value` overrides (dotted keys, YAML values).

    A relative data_root in the file resolves against `base` (default: its folder), one in an
    override, and the paths of a test set in an override, against the working directory; relative
    paths of shards and label maps against data_root. Raises UserError with every problem.
    """
    path = Path(path)
    base = path.parent if base is None else Path(base)
    try:
        with open(path, "rb") as file:
            raw = read_yaml(file.read(MAX_TEXT + 1).decode())
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no recipe: expected a mapping, got {type(raw).__name__}")
    if "data_root" in raw:
        raw["data_root"] = _absolute(raw["data_root"], base)
    if isinstance(raw.get("model"), dict) and "trunk_init" in raw["model"]:
        raw["model"]["trunk_init"] = _absolute(raw["model"]["trunk_init"], path.parent)
    problems: list[str] = []
    for override in overrides:
        _merge(raw, override, problems)
    if "data_root" not in raw:
        world = raw.get("world")
        name = world.get("name") if isinstance(world, dict) else None
        raw["data_root"] = _absolute(f"data/{name}", Path.cwd()) if name else _absolute(".", base)
    return from_dict(raw, problems)


def from_dict(raw: Mapping[str, Any], problems: list[str] | None = None) -> Recipe:
    """A recipe from plain types; raises UserError with every problem found.

    A field of a wrong type is reported and counts as left out, so that one call finds all.
    """
    problems = list(problems or [])
    modalities = raw.get("modalities")
    if not isinstance(modalities, dict) or not modalities:
        problems.append("modalities: name at least one, e.g. image: {kind: image, train: ...}")
        modalities = {}
    specs = {str(name): _modality(str(name), spec, problems) for name, spec in modalities.items()}
    known = {name: spec for name, spec in specs.items() if spec is not None}
    tests = _tests(raw.get("tests"), problems)
    blank = {"name": "", "target": "", "modalities": {}}
    recipe = build(Recipe, {**raw, "modalities": {}, "tests": {}}, "", problems, blank)
    model = _model(recipe, raw, problems)
    recipe = dataclasses.replace(recipe, modalities=known, tests=tests, model=model)
    check(recipe, specs, problems)
    if problems:
        raise UserError(problems)
    return recipe


def _model(recipe: Recipe, raw: Mapping[str, Any], problems: list[str]) -> ModelSpec:
    """The model's spec; the sizes of a trunk from a checkpoint are those of the checkpoint."""
    if recipe.model.trunk_init is None:
        return recipe.model
    try:
        return adopt(recipe.model, given=raw["model"])
    except UserError as error:
        problems += [f"model.trunk_init: {problem}" for problem in error.problems]
        return recipe.model


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted fields set to plain values, checked again as a whole.

    A value of a group is merged into nothing: it replaces the group. Raises UserError with every
    problem found.
    """
    raw = recipe.to_dict()
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = raw
        for parent in parents:
            inner = node.get(parent)
            node[parent] = dict(inner) if isinstance(inner, dict) else {}
            node = node[parent]
        node[last] = value
    return from_dict(raw)


def _modality(name: str, spec: Any, problems: list[str]) -> ModalitySpec | None:
    where = f"modalities.{name}"
    if not isinstance(spec, dict):
        problems.append(f"{where}: expected a mapping such as {{kind: image, train: ...}}")
        return None
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = near(str(kind), KINDS)
        problems.append(f"{where}.kind: '{kind}' is not one of {', '.join(KINDS)}{hint}")
        return None
    own = {f.name for f in dataclasses.fields(KINDS[kind].Options)}
    common = {f.name for f in dataclasses.fields(ModalitySpec)} - {"options"}
    for key in spec:
        if key not in own | common:
            hint = near(str(key), own | common)
            problems.append(f"{where}.{key}: unknown field of kind {kind}{hint}")
    options = {k: v for k, v in spec.items() if k in own}
    body = {k: v for k, v in spec.items() if k in common}
    built: ModalitySpec = build(ModalitySpec, body, where, problems, {"train": ""})
    options = build(KINDS[kind].Options, options, where, problems)
    return dataclasses.replace(built, options=options)


def _tests(raw: Any, problems: list[str]) -> dict[str, ShiftSpec]:
    """The further test sets; a set that could not be built is left out."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        problems.append("tests: expected a mapping such as {sketch: {files: sketch-*.tar}}")
        return {}
    found = {}
    for name, spec in raw.items():
        where = f"tests.{name}"
        if not isinstance(spec, dict):
            problems.append(f"{where}: expected a mapping such as {{files: sketch-*.tar}}")
        elif (built := build(ShiftSpec, spec, where, problems)) is not None:
            found[str(name)] = built
    return found


def _merge(raw: dict[str, Any], override: str, problems: list[str]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        problems.append(f"'{override}': overrides are written key=value, e.g. train.lr=1e-3")
        return
    try:
        value = read_yaml(text)
    except ValueError:
        problems.append(f"'{override}': the value is not valid YAML")
        return
    if key in ("data_root", "model.trunk_init") or _TEST_PATH.fullmatch(key):
        value = _absolute(value, Path.cwd())
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        group = {} if node.get(parent) is None else node[parent]
        if not isinstance(group, dict):
            problems.append(f"'{override}': {parent} is not a group of fields")
            return
        node[parent] = dict(group)  # a YAML alias may share it with another group
        node = node[parent]
    node[last] = value


_TEST_PATH = re.compile(r"tests\.[^.]+\.(files|labels)")


def _absolute(path: Any, base: Path) -> Any:
    if isinstance(path, list):
        return [_absolute(one, base) for one in path]
    # null stays; types are checked later
    return addresses.absolute(path, base) if isinstance(path, str) else path
