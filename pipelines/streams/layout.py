"""Which modality and split a shard belongs to, as its name tells: by one rule for all verbs.

A name is taken apart at `-`, `_`, `.` and blanks. A part that is one of `WORDS`, with or without
digits behind it (`train2017`), tells the split. What stands before it names the modality; where
nothing does, what stands behind it; numbers, `of` and words like `shard` are no names. What the
file does not tell, the folders above it do, the nearest first (`image/train/0.tar`), up to the
folder that all shards have in common; that one tells a split only where it is called just so.

    image-train-000000.tar      image, train     train-000.tar    no name, train
    imagenet1k-validation-00.tar  imagenet1k, val   test/0.tar       no name, test
    00000.tar                   neither          words.tar        words, no split

Data without a name goes by its kind. What is not told is not guessed: a wrong split would switch
the leak guards off. Everything here is a pure function of names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from uml_core.addresses import split_query

SPLITS = ("train", "val", "test")
UNSPLIT = "all"  # how reports call the samples of shards that no name puts into a split
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ADVICE = "say which it is with --split, rename them (image-train-000000.tar) or verify a recipe"
_GENERIC = frozenset(
    [
        "archive",
        "chunk",
        "data",
        "dataset",
        "file",
        "of",
        "part",
        "sample",
        "samples",
        "shard",
        "shards",
        "split",
        "tar",
        "tars",
        "wds",
        "webdataset",
    ]
)
_PARTS = re.compile(r"[^-_.\s]+")
_WORD = re.compile(rf"({'|'.join(WORDS)})\d*", re.I)
_ARCHIVE = re.compile(r"(\.tar)?(\.(gz|bz2|xz|zst|lz4))?$|\.(tgz|tbz2?|txz|tzst)$", re.I)
_NUMBERS = re.compile(r"([-_.\s]?\d+)?([-_.\s]of[-_.\s]\d+)?$", re.I)
_HASH = re.compile(r"(?=.*\d)[0-9a-f]{8,}", re.I)


class Place(NamedTuple):
    """What the name of one shard tells; None where it tells nothing.

    word     the part that told the split
    problem  why the split cannot be told although there are words for it
    """

    modality: str | None
    split: str | None
    word: str | None = None
    problem: str | None = None


class Layout(NamedTuple):
    """Shards by (modality, split), None as a split where none is told, and what has to be asked."""

    groups: dict[tuple[str, str | None], list[str]]
    problems: list[tuple[str, str]]  # (one of the shards, cause)


def place(url: str) -> Place:
    """What the name of a single shard tells, see `places`."""
    return places([url])[url]


def places(urls: Sequence[str], top: bool = True) -> dict[str, Place]:
    """What the names of shards that are looked at together tell, each.

    top  whether the folder that all have in common may tell a split too
    """
    split_up = {url: split_query(url)[0].replace(os.sep, "/").split("/") for url in urls}
    folders = [parts[:-1] for parts in split_up.values()]
    common = 0
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            break
        common += 1
    return {url: _place(parts, common, top) for url, parts in split_up.items()}


def arrange(
    urls: Sequence[str], unnamed: Callable[[Sequence[str]], str | None], split: str | None = None
) -> Layout:
    """The shards by modality and split.

    unnamed  what to call shards whose names tell no modality: by their kind. None: these shards
             are a problem of the caller's
    split    of shards whose names tell none
    """
    found: dict[tuple[str | None, str | None], list[str]] = {}
    problems: list[tuple[str, str]] = []
    words: dict[tuple[str, str], dict[str, str]] = {}
    where = places(list(dict.fromkeys(urls)))
    for url, at in where.items():
        if at.problem is not None:
            problems.append((url, f"{at.problem}: {ADVICE}"))
        else:
            found.setdefault((at.modality, at.split or split), []).append(url)
    groups: dict[tuple[str, str | None], list[str]] = {}
    spelled: dict[str, str] = {}  # Image-train-0.tar and image-test-0.tar are of one modality
    for (given, part), members in found.items():
        modality = given if given is not None else unnamed(members)
        if modality is None:
            continue
        modality = spelled.setdefault(modality.casefold(), modality)
        groups.setdefault((modality, part), []).extend(members)
        for url in members:
            if part is not None and (word := where[url].word) is not None:
                words.setdefault((modality, part), {}).setdefault(word, url)
    for (modality, part), used in words.items():
        if len(used) > 1:
            named = " and ".join(used)
            cause = f"{named} both mean the {part} split of {modality}: rename one, or use a recipe"
            problems.append((list(used.values())[-1], cause))
    for modality in {name for name, part in groups if part is None}:
        told = [p for name, p in groups if name == modality and p is not None]
        if told:
            untold = groups.pop((modality, None))
            cause = (
                f"{len(untold)} of the shards of {modality} tell no split by their names, others "
                f"are {' and '.join(sorted(told))}: {ADVICE}"
            )
            problems.append((untold[0], cause))
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    return Layout({at: sorted(members) for at, members in ordered}, problems)


def misplaced(
    patterns: Mapping[tuple[str, str], str | Sequence[str]],
    shards: Mapping[tuple[str, str], Sequence[str]],
    target: str,
) -> list[str]:
    """What a recipe's patterns say otherwise than the names of their shards, as problems.

    patterns, shards  by (modality, split); shards: absolute paths and urls

    A wildcard must not take in shards of another split. Where the pattern itself spells that split
    out, it is meant so (a test set cut from the train shards), but the target never trains on what
    is called test. No shard belongs to two splits of a modality.
    """
    where = places([url for urls in shards.values() for url in urls], top=False)
    problems = []
    owners: dict[tuple[str, str], str] = {}  # (modality, file) -> split
    for (modality, split), urls in shards.items():
        given = patterns[modality, split]
        said = _said(given if isinstance(given, str) else " ".join(given))
        if modality == target and split != "test":
            said.discard("test")
        others = [u for u in urls if where[u].split not in (None, split, *said)]
        if others:
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            problems.append(
                f"modalities.{modality}.{split}: {others[0]}{more} is a {where[others[0]].split} "
                f"shard by its name: name the {split} shards only, or rename it"
            )
        for url in urls:
            file = url if "://" in url else os.path.realpath(url)
            if (first := owners.setdefault((modality, file), split)) != split:
                problems.append(
                    f"modalities.{modality}: {url} is named by {first} and by {split}: a shard "
                    "belongs to one split"
                )
                break
    return problems


def _said(pattern: str) -> set[str]:
    """The splits that a pattern spells out."""
    parts = re.findall(r"[^\W_]+", pattern)
    return {WORDS[_word(part)] for part in parts if _WORD.fullmatch(part)}


def _place(parts: Sequence[str], common: int, top: bool = True) -> Place:
    name = parts[-1]
    named = [(_ARCHIVE.sub("", name, count=1), True)]
    named += [(folder, False) for folder in reversed(parts[common:-1])]
    modality: str | None = None
    told: dict[str, str] = {}
    for text, is_file in named:
        own, words = _read(text, is_file)
        modality = modality or own
        for word in words:
            told.setdefault(WORDS[word], word)
    if len(told) > 1:
        both = " and ".join(f"'{word}'" for word in told.values())
        return Place(modality, None, None, f"its name says {both}, so its split cannot be told")
    if top and not told and common and _WORD.fullmatch(parts[common - 1]):
        word = _word(parts[common - 1])
        told = {WORDS[word]: word}
    for split, word in told.items():
        return Place(modality, split, word)
    return Place(modality, None)


def _read(text: str, is_file: bool) -> tuple[str | None, list[str]]:
    """(the name of the modality in one component, its words for a split)."""
    parts = list(_PARTS.finditer(text))
    at = [i for i, part in enumerate(parts) if _WORD.fullmatch(part[0])]
    words = [_word(parts[i][0]) for i in at]
    if not at:
        # "image0001", "words_3" and "shard-1-of-9" are numbered; a folder is called what it says.
        plain = _NUMBERS.sub("", text, count=1) if is_file else text
        named = any(_is_name(part) for part in _PARTS.findall(plain))
        return (plain.strip("-_. ") if named else None), words
    before = parts[: at[0]]
    if any(not part[0].isdigit() for part in before):
        return text[: before[-1].end()].lstrip("-_. "), words
    behind = [p[0] for p in parts[at[0] + 1 :] if not _WORD.fullmatch(p[0]) and _is_name(p[0])]
    return "-".join(behind) or None, words


def _is_name(part: str) -> bool:
    letters = part.rstrip("0123456789").lower()
    return bool(letters) and letters not in _GENERIC and not _HASH.fullmatch(part)


def _word(part: str) -> str:
    return part.rstrip("0123456789").lower()
