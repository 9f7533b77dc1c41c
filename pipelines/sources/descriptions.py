"""Texts about classes: a file of sentences per class, or templates that name each class.

    descriptions.json   {"golden retriever": ["A large dog with ...", ...], ...}   (or .yaml)
    templates.txt       a line per template, such as "a photo of a {}."

Names are compared without regard to case, accents' form, `_` and `-`. Nothing is dropped silently:
a name that is no class is a problem that the caller lists, a class without a text is a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.sources.class_notes import loose
from pipelines.sources.folders import normal
from pipelines.sources.reading import Item, Listing
from pipelines.sources.tables import not_utf8
from uml_core.errors import UserError
from uml_core.typed import read_yaml

MAPPINGS, TEMPLATES = (".json", ".yaml", ".yml"), ".txt"
MAX_BYTES = 256 << 20
NAMED = 10  # classes that a note names


def is_descriptions(source: Path) -> bool:
    """Whether a source is a file that this module reads."""
    return source.is_file() and source.suffix.lower() in (*MAPPINGS, TEMPLATES)


def read_descriptions(source: Path, classes: Sequence[str] | None) -> Listing:
    """The texts of a file as labelled samples.

    classes  the class list, for templates a must; a name that is none of it stays as it is

    Raises UserError with every problem of the file.
    """
    if source.suffix.lower() == TEMPLATES:
        if classes is None:
            raise UserError(
                f"{source}: templates need class names: prepare the target first, into the same "
                "--out, or give --classes FILE"
            )
        texts = from_templates(_templates(source), classes)
    else:
        texts = _matched(_mapping(source), classes)
    listing = Listing("text")
    for name, sentences in texts.items():
        for number, sentence in enumerate(sentences, 1):
            place = f"{source.name}: {name}, text {number}"
            if sentence.strip():
                listing.items.append(Item(place, name, text=sentence.strip()))
            else:
                listing.bad.append((place, "the text is empty"))
    without = [name for name in classes or () if not texts.get(name)]
    if without:
        more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
        listing.notes.append(
            f"{len(without)} of {len(classes or ())} classes have no text: "
            f"{', '.join(without[:NAMED])}{more}"
        )
    if not listing.items:
        raise UserError(f"{source} holds no text")
    return listing


def from_templates(templates: Sequence[str], classes: Sequence[str]) -> dict[str, list[str]]:
    """Every template with every class name in the place of `{}`; `_` is read as a space."""
    spoken = {name: name.replace("_", " ") for name in classes}
    return {name: [t.replace("{}", spoken[name]) for t in templates] for name in classes}


def _templates(source: Path) -> list[str]:
    lines = [line.strip() for line in _text(source).splitlines() if line.strip()]
    wrong = [line for line in lines if line.count("{}") != 1]
    if not lines or wrong:
        shown = f", e.g. '{wrong[0][:80]}'" if wrong else ""
        raise UserError(
            f"{source}: every line must hold {{}} once, where the class name goes{shown}"
        )
    return lines


def _mapping(source: Path) -> dict[str, list[str]]:
    """Name -> sentences."""
    text = _text(source)
    try:
        found = _json(text) if source.suffix.lower() == ".json" else read_yaml(text, words=True)
    except ValueError as error:
        raise UserError(f"{source} cannot be read: {error}") from error
    if not isinstance(found, dict) or not found:
        raise UserError(f"{source}: expected a mapping of class names to lists of sentences")
    problems, texts = [], {}
    for name, sentences in found.items():
        one = [sentences] if isinstance(sentences, str) else sentences
        if not isinstance(one, list) or not all(isinstance(s, str) for s in one):
            problems.append(f"{source}: {name}: expected a list of sentences")
        else:
            texts[normal(name)] = one
    if problems:
        raise UserError(problems)
    return texts


def _json(text: str) -> object:
    """JSON in which a name that is given twice is an error; by itself the last one wins."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} given twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _matched(texts: Mapping[str, list[str]], classes: Sequence[str] | None) -> dict[str, list[str]]:
    """Texts under the names of the class list; two names of one class are joined."""
    if classes is None:
        return dict(texts)
    exact, alike = set(classes), {loose(name): name for name in classes}
    if len(alike) < len(classes):  # two classes differ in such things only
        alike = {}
    out: dict[str, list[str]] = {}
    for name, sentences in texts.items():
        known = name if name in exact else alike.get(loose(name), name)
        out.setdefault(known, []).extend(sentences)
    return out


def _text(source: Path) -> str:
    try:
        with open(source, "rb") as file:
            data = file.read(MAX_BYTES)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(source, data, error) from error
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from error
