"""`classes.json` beside the shards: the names of the classes in label order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from unicodedata import normalize

from pipelines.streams import storage
from uml_core.addresses import within
from uml_core.errors import RunError, UserError

CLASSES_NAME = "classes.json"
MAX_BYTES = 16 << 20
SHOWN = 5  # names that a message repeats


def read_classes(folder: str) -> tuple[str, ...] | None:
    """The class names beside the shards; None without the file. Raises UserError."""
    url = within(folder, CLASSES_NAME)
    if (data := storage.read_beside(url, MAX_BYTES)) is None:
        return None
    try:
        return parse(data)
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None


def names_beside(folder: str) -> tuple[str, ...] | None:
    """The class names beside the shards; None without the file and where it is of no use."""
    try:
        return read_classes(folder)
    except (OSError, UserError, RunError):
        return None


def parse(data: bytes) -> tuple[str, ...]:
    """The names in the bytes of a classes.json. Raises ValueError with what to do."""
    try:
        names = json.loads(data)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8: save it as UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if isinstance(names, dict):
        raise ValueError(_of_object(names))
    if not isinstance(names, list):
        raise ValueError("it is not a list of names, in the order of their labels")
    if not names:
        raise ValueError("it names no class: write the names in label order, or remove it")
    known: dict[str, int] = {}
    for label, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the name of class {label} is {json.dumps(name)[:40]}, not a text")
        plain = normalize("NFC", name.strip())
        if plain in known:
            raise ValueError(
                f"'{plain[:40]}' names classes {known[plain]} and {label}: every class needs a "
                "name of its own"
            )
        known[plain] = label
    return tuple(names)


def _of_object(found: Mapping[str, Any]) -> str:
    """What a JSON object in place of the list seems to be: names to labels, or the other way."""
    ordered: dict[Any, Any] = {}
    if all(type(value) is int for value in found.values()):
        ordered = {value: name for name, value in found.items()}
    elif all(key.isdecimal() for key in found):
        ordered = {int(key): value for key, value in found.items()}
    if not found or sorted(ordered) != list(range(len(found))):
        return "it is an object, not a list of names in label order"
    names = [ordered[label] for label in range(min(SHOWN, len(found)))]
    more = ", ..." if len(found) > SHOWN else ""
    shown = json.dumps(names, ensure_ascii=False)[:-1]
    return f"it is an object: write the names alone, in label order, as a list: {shown}{more}]"
