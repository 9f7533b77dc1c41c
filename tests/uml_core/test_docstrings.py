"""Every public name of the method says what it is, and of what shape its arrays are."""

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import uml_core

ARRAY = re.compile(r"\b(Tensor|ndarray|Array|Floats)\b")
SHAPE = re.compile(r"\(\w+( \+ \w+)?,|\(\.\.\.|\b[Ss]calar|\b[Ss]hape|\(\d")


def modules() -> list[Any]:
    names = [m.name for m in pkgutil.walk_packages(uml_core.__path__, "uml_core.")]
    return [uml_core, *(importlib.import_module(name) for name in names)]


def public(holder: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(place, object) of the public functions, classes, methods and properties of a holder."""
    for name, value in vars(holder).items():
        if name.startswith("_") and name != "__call__":
            continue
        found = getattr(holder, name) if isinstance(value, classmethod | staticmethod) else value
        code = inspect.isroutine(found) or inspect.isclass(found)
        if inspect.ismodule(holder) and not (code and found.__module__ == holder.__name__):
            continue
        if code or isinstance(found, property | functools.cached_property):
            yield f"{where}.{name}", found
        if inspect.isclass(found):
            yield from public(found, f"{where}.{name}")


def documented(found: Any) -> str:
    """The docstring, which a method may have from the method that it overrides."""
    text = inspect.getdoc(found) or ""
    # A dataclass without a docstring has its signature for one.
    return "" if inspect.isclass(found) and text.startswith(f"{found.__name__}(") else text


EVERY = {where: found for m in modules() for where, found in public(m, m.__name__)}


def test_every_public_name_has_a_docstring():
    assert len(EVERY) > 300
    bare = [m.__name__ for m in modules() if not inspect.getdoc(m)]
    bare += [where for where, found in EVERY.items() if not documented(found)]
    assert not bare, "\n".join(bare)


def test_functions_of_arrays_say_their_shapes():
    silent = []
    for where, found in EVERY.items():
        hints = " ".join(map(str, getattr(found, "__annotations__", {}).values()))
        if inspect.isroutine(found) and ARRAY.search(hints):
            silent += [] if SHAPE.search(documented(found)) else [where]
    assert not silent, "\n".join(silent)
