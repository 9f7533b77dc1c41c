"""YAML and plain values -> frozen dataclasses, with every problem found in words."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import types
import typing
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import yaml
from pydantic import TypeAdapter, ValidationError

from uml_core.errors import near

MAX_TEXT = 1 << 20  # characters of a file
MAX_SCALAR = 10_000  # characters of one value: base 60 takes time that grows with the square
MAX_NODES = 20_000  # values in all, those behind aliases counted each time
MAX_DEPTH = 40
MAX_INTEGER = 2**63
MAX_TOLD = 10  # problems told of one field


class _Loader(yaml.SafeLoader):
    """Safe YAML of bounded size in which a repeated key is an error; by itself the last one wins.

    A few aliases of aliases can stand for more values than fit in memory, so what an alias stands
    for counts every time.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[int, int] = {}  # id of a node -> values in it

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias, before = self.check_event(yaml.AliasEvent), self._nodes
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise yaml.MarkedYAMLError(problem="an alias that holds itself", problem_mark=mark)
        self._nodes += self._sizes[id(node)] if alias else 1
        self._sizes[id(node)] = self._nodes - before
        if self._nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_NODES} values, aliases included", problem_mark=mark
            )
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        problem = None
        if len(node.value) > MAX_SCALAR:
            problem = f"a value of {len(node.value)} characters, more than {MAX_SCALAR}"
        elif any(c == "\0" or "\ud800" <= c <= "\udfff" for c in node.value):
            problem = "a value with a character that no file name and no terminal can hold"
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.items():
            if count > 1 and key != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f"'{key}' is given twice", problem_mark=node.start_mark
                )
        return node

    def construct_yaml_int(self, node: Any) -> Any:
        value = super().construct_yaml_int(node)
        if abs(value) >= MAX_INTEGER:
            raise yaml.MarkedYAMLError(
                problem="a whole number of more than 63 bits", problem_mark=node.start_mark
            )
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


# YAML 1.1 reads on, off, yes and no as booleans; here, as in YAML 1.2, they are words
# (`positions: off`), and true and false are the booleans.
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != _BOOL]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF")


class _Words(_Loader):
    """Every scalar is the word that stands there: no, 12 and null may be names."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


def read_yaml(text: str, *, words: bool = False) -> Any:
    """YAML -> plain values; with `words`, every scalar as it is written.

    Raises ValueError for anything that is not YAML, or that is too large.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"it has more than {MAX_TEXT} characters")
    try:
        return yaml.load(text, Loader=_Words if words else _Loader)
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
    out = [
        f"{where}: {' or '.join(dict.fromkeys(messages))} (got {got})"
        for (where, got), messages in itertools.islice(said.items(), MAX_TOLD)
    ]
    if len(said) > MAX_TOLD:
        out.append(f"{place}: {len(said) - MAX_TOLD} more values are wrong")
    return out


_BRANCH = re.compile(r"int|float|str|bool|none|(list|dict|tuple|literal)\[.*")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
