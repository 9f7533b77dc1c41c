"""Brace ranges in the names of shards: ``x-{000000..000012}.tar``, ``{a,b}.tar``."""

from __future__ import annotations

import math
import re

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from uml_core.errors import UserError

MAX_SHARDS = 100_000  # that one pattern may name


def names_in_braces(rest: str, pattern: str) -> list[str]:
    """All names that `rest` stands for. Raises UserError, which names the whole `pattern`."""
    try:
        count = _alternatives(rest)
        if count <= MAX_SHARDS:
            return list(braceexpand(rest))
        problem = f"the braces name more than {MAX_SHARDS} files"
    except UnbalancedBracesError:
        problem = "the braces do not match"
    except (ValueError, RecursionError):  # numbers of thousands of digits, deep nesting
        problem = "the braces cannot be expanded"
    raise UserError(f"{pattern}: {problem}")


def _alternatives(pattern: str) -> int:
    """How many names `braceexpand` would make; it would make them all before the first is seen."""
    counts: list[int] = []

    def product(text: str) -> int:
        return math.prod(counts[int(number)] for number in re.findall(r"\0(\d+)\0", text))

    def group(match: re.Match[str]) -> str:
        inner = match[1]
        numbers = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?", inner)
        if numbers:
            counts.append(abs(int(numbers[1]) - int(numbers[2])) + 1)
        elif re.fullmatch(r"[A-Za-z]\.\.[A-Za-z](\.\.-?\d+)?", inner):
            counts.append(52)
        else:
            counts.append(sum(map(product, inner.split(","))))
        return f"\0{len(counts) - 1}\0"

    text = re.sub(r"\\.", "", pattern.replace("\0", ""))  # a backslash takes a brace its meaning
    while (done := re.sub(r"\{([^{}]*)\}", group, text)) != text:
        text = done
    return product(text)
