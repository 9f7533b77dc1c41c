"""YAML and plain values -> frozen dataclasses, with every problem found in words."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from uml_core.errors import near


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error; by itself YAML lets the last one win."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in dict.fromkeys(keys):
            if keys.count(key) > 1 and key != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f"'{key}' is given twice", problem_mark=node.start_mark
                )
        return node


def read_yaml(text: str) -> Any:
    """YAML -> plain values. Raises ValueError for anything that is not."""
    try:
        return yaml.load(text, Loader=_Loader)
    # PyYAML leaks what its converters raise, for example on !!timestamp or on deep nesting.
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
    ) as error:
        raise ValueError(str(error)) from error


def build(
    cls: type, body: Mapping[Any, Any], where: str, problems: list[str], blank: Any = None
) -> Any:
    """An instance of dataclass `cls`, or None where a required field is missing.

    Fields that are unknown or of a wrong type are reported and left at their defaults, required
    ones at their value in `blank`.
    """
    hints = _hints(cls)
    good = dict(blank or {})
    for key, value in body.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in hints:
            problems.append(f"{place}: unknown field{near(str(key), hints)}")
            continue
        group = _group(hints[key])
        if group is not None and isinstance(value, dict):
            built = build(group, value, place, problems)
            if built is not None:
                good[key] = built
            continue
        try:
            good[key] = _adapter(hints[key]).validate_python(value)
        except ValidationError as error:
            problems.extend(_type_problems(place, error, hints[key]))
    complete = True
    for f in dataclasses.fields(cls):
        if f.default is f.default_factory is dataclasses.MISSING:
            if f.name not in body:
                problems.append(f"{where}.{f.name}: missing" if where else f"{f.name}: missing")
            complete = complete and f.name in good
    return cls(**good) if complete else None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _group(hint: Any) -> type | None:
    """The dataclass in `hint`, which is one itself or one | None."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    members = typing.get_args(hint) if union else (hint,)
    return next((m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)), None)


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _type_problems(place: str, error: ValidationError, hint: Any) -> list[str]:
    """One sentence per wrong value; what the members of a union say of it is joined by "or"."""
    said: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        # pydantic names the branch of a union in the path ("int", "list[int]"); readers want none.
        path = [str(p) for p in item["loc"] if isinstance(p, int) or not _BRANCH.fullmatch(p)]
        message = item["msg"][0].lower() + item["msg"][1:]
        if typing.get_origin(hint) is typing.Literal:
            message += near(str(item["input"]), typing.get_args(hint))
        key = (".".join([place, *path]), _short(item["input"]))
        said.setdefault(key, []).append(message)
    return [
        f"{where}: {' or '.join(dict.fromkeys(messages))} (got {got})"
        for (where, got), messages in said.items()
    ]


_BRANCH = re.compile(r"int|float|str|bool|none|(list|dict|tuple|literal)\[.*")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
