"""Shards that a glob cannot miss, because it takes what is there: those that should be there too.

`index.json` lists what was written, and numbers tell what lies between them. What is listed but
gone is refused: the run would be another one. A hole in the numbers is only told.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from pipelines.streams import layout, storage
from pipelines.streams.braces import names_in_braces
from uml_core.addresses import beside, folder_of, name_of, split_query, within

LISTED = "listed in index.json, but not there: bring it back, or take it out of index.json"
LOOKS = 32  # files looked for at a time
MOST = 1000  # files looked for, at most
LARGEST = 1_000_000  # a number above this is an id or a date
NAMED = 3

Wanted = Callable[[str], bool]  # whether a shard at this url would have been taken

_NUMBERED = re.compile(r"(.*?)(\d{1,9})((?:[-_.\s]?of[-_.\s]?(\d{1,9}))?\.tar)", re.I | re.DOTALL)
_YEAR = re.compile(r"(19|20)\d\d")


def matching(pattern: str | Sequence[str], root: str) -> Wanted:
    """Whether one of these patterns (see `expand`) would take a shard by its wildcards."""
    parts: list[tuple[str, list[str]]] = []
    for one in [pattern] if isinstance(pattern, str) else pattern:
        literal, rest, query = storage.split_pattern(one, root)
        names = names_in_braces(rest, one) if "{" in rest else [rest]
        if not query:
            parts += [(literal, name.split("/")) for name in names if glob.has_magic(name)]

    def wanted(url: str) -> bool:
        path = split_query(url)[0]
        for literal, name in parts:
            tail = path.removeprefix(literal).split("/")
            fits = path.startswith(literal) and len(tail) == len(name)
            if fits and all(map(fnmatchcase, tail, name)):
                return True
        return False

    return wanted


def alike(urls: Sequence[str]) -> Wanted:
    """Whether a shard's name tells the modality and split of one of these."""
    told = {layout.place(url)[:2] for url in urls}
    return lambda url: layout.place(url)[:2] in told


def gone(
    entries: Mapping[str, Mapping[str, Any]], here: Mapping[str, str], wanted: Wanted
) -> list[str]:
    """The shards that are wanted, listed and not there.

    entries  folder -> the entries of its index.json by file name
    here     url -> sha256 of the shards that were found: one that was renamed is not gone
    """
    listed = {
        within(folder, name): entry.get("sha256") if isinstance(entry, dict) else None
        for folder, names in entries.items()
        for name, entry in names.items()
    }
    hashes = set(here.values())
    asked = [u for u, h in sorted(listed.items()) if u not in here and h not in hashes]
    return _absent([url for url in asked if wanted(url)])


def gone_sentence(urls: Sequence[str]) -> str:
    """What `gone` found, as one problem."""
    named = ", ".join(name_of(url) for url in urls[:NAMED])
    more = f" and {len(urls) - NAMED} more" if len(urls) > NAMED else ""
    are = "is" if len(urls) == 1 else "are"
    return f"{folder_of(urls[0])}: {named}{more} {are} {LISTED}"


class _Run(NamedTuple):
    """Shards numbered in one way; total: as `-of-` says."""

    like: str  # one of their urls
    head: str
    tail: str
    total: int | None
    numbers: dict[int, str]  # as they are written


def holes(urls: Sequence[str]) -> list[str]:
    """A sentence for every numbering of shards in which numbers are missing."""
    said = []
    for run in _runs(urls):
        first, last = min(run.numbers), max(run.numbers)
        if run.total is not None and last <= run.total <= LARGEST:
            first = 1 if run.total in run.numbers else 0
            last = first + run.total - 1
        missing = [n for n in range(first, last + 1) if n not in run.numbers]
        if not missing or (run.total is None and len(missing) > len(run.numbers)):
            continue  # numbers far apart count nothing
        width = min(map(len, run.numbers.values()))
        asked = [f"{run.head}{str(n).zfill(width)}{run.tail}" for n in missing[:MOST]]
        if lost := _absent([beside(run.like, name) for name in asked]):
            count = len(lost) + len(missing[MOST:])
            are = "is" if count == 1 else "are"
            said.append(
                f"{count} of {last - first + 1} shards {are} not there by the numbers, such as "
                f"{name_of(lost[0])}: are they complete?"
            )
    return said


def _runs(urls: Sequence[str]) -> list[_Run]:
    found: dict[tuple[str, str, str], _Run] = {}
    for url in urls:
        match = _NUMBERED.fullmatch(name_of(url))
        if match is None or int(match[2]) > LARGEST:
            continue
        head, number, tail, total = match.groups()
        if head[-1:].isalpha() and _YEAR.fullmatch(number):  # train2014, train2017
            continue
        run = _Run(url, head, tail, int(total) if total else None, {})
        found.setdefault((folder_of(url), head, tail), run).numbers[int(number)] = number
    return list(found.values())


def _absent(urls: Sequence[str]) -> list[str]:
    if not urls:
        return []
    with ThreadPoolExecutor(LOOKS) as pool:
        return [url for url, there in zip(urls, pool.map(_there, urls), strict=True) if not there]


def _there(url: str) -> bool:
    """Whether a file is there; also true where that cannot be told."""
    try:
        storage.stat(url)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except Exception:  # not allowed, no connection: said by whoever reads it
        return True
    return True
