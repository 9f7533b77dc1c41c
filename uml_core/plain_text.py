"""Texts as they are compared and tokenised: one form for everything a reader sees as equal."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata

MOST_MARKS = 30  # in a row; Unicode's own limit for text that is safe to process (UAX 15, 13)


def normalised(text: str) -> str:
    """The text after NFKC and case folding.

    Longer runs of combining marks than any language has are cut first: normalising a run takes
    time that grows with its square.
    """
    if text.isascii():
        return text.casefold()
    if not _marks().isdisjoint(text):
        text = _long_runs().sub(r"\1", text)
    return unicodedata.normalize("NFKC", text).casefold()


@functools.cache
def _marks() -> frozenset[str]:
    return frozenset(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(c))


@functools.cache
def _long_runs() -> re.Pattern[str]:
    marks = "".join(sorted(_marks()))
    return re.compile(f"([{marks}]{{{MOST_MARKS}}})[{marks}]+")
