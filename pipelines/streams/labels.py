"""A sample's label: what may stand in `<key>.cls` or under `label` in `<key>.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from uml_core.errors import near

MAX_LABEL = 2**31 - 1
SHOWN = 40  # characters of a label that a message repeats


def of_cls(data: bytes, classes: Sequence[str] | None) -> int:
    """The label in a .cls member. classes: names in label order. Raises ValueError with advice."""
    text = data.decode("utf-8-sig", "replace").strip()
    if not text:
        raise ValueError("it is empty, not a whole number from 0 on")
    return of_value(text, classes)


def of_value(value: Any, classes: Sequence[str] | None) -> int:
    """The label that a number or a name stands for. Raises ValueError with advice."""
    if isinstance(value, str):
        return _of_text(value.strip(), classes)
    if isinstance(value, bool) or not isinstance(value, int):
        shown = repr(value)[:SHOWN]
        hint = f": write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise ValueError(f"the label {shown} is not a whole number from 0 on{hint}")
    if not 0 <= value <= MAX_LABEL:
        hint = ": a sample without a label has none at all" if value < 0 else ""
        raise ValueError(
            f"the label {str(value)[:SHOWN]} is not a whole number from 0 to {MAX_LABEL}{hint}"
        )
    return value


def _of_text(text: str, classes: Sequence[str] | None) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        return of_value(int(text), classes)
    places = _places(tuple(classes or ()))
    if text in places:
        return places[text]
    shown = "".join(c if c.isprintable() else "?" for c in text[:SHOWN])
    if re.fullmatch(r"[+-]?\d+\.\d*(e[+-]?\d+)?", text, re.I):
        number = float(text)
        hint = f": write {int(number)}" if number.is_integer() and 0 <= number < 2**31 else ""
        raise ValueError(f"the label '{shown}' is not a whole number from 0 on{hint}")
    if classes is None:
        raise ValueError(
            f"the label '{shown}' is not a whole number from 0 on: write the class's number, or "
            "put classes.json (the names in label order) beside the shards"
        )
    raise ValueError(
        f"the label '{shown}' is neither a whole number from 0 on nor in classes.json"
        f"{_near(text, tuple(classes))}"
    )


@lru_cache(maxsize=1000)  # a wrong name is wrong in many samples
def _near(text: str, classes: tuple[str, ...]) -> str:
    return near(text, classes)


@lru_cache(maxsize=4)
def _places(classes: tuple[str, ...]) -> Mapping[str, int]:
    return {name.strip(): k for k, name in enumerate(classes)}
