"""The errors a user can meet; `pipelines.cli` maps them to exit codes."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable

from uml_core.addresses import redacted


class UserError(ValueError):
    """The user's input is wrong. Holds every problem found, not only the first; exit code 2.

    Urls in it lose their secrets (`addresses.redacted`).
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        listed = [problems] if isinstance(problems, str) else list(problems)
        self.problems = [redacted(problem) for problem in listed]
        super().__init__("\n".join(self.problems))


class RunError(RuntimeError):
    """A run that started could not finish; the message says what was lost. Exit code 1.

    Urls in it lose their secrets.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class BadSample(ValueError):  # noqa: N818 - it names the sample, as in "quarantine a bad sample"
    """A sample that cannot be decoded or breaks a cap; streams quarantine it."""


def cause(error: Exception) -> str:
    """What a library says of bad data, without addresses: equal damage gives equal words."""
    return re.sub(r"\s*<[\w.]+ object at 0x[0-9a-fA-F]+>", "", str(error))


MOST_COMPARED, LONGEST_COMPARED = 2000, 200  # names, characters: comparing takes time


def near(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    if len(name) > LONGEST_COMPARED:
        return ""
    names = [str(k)[:LONGEST_COMPARED] for k in itertools.islice(known, MOST_COMPARED)]
    match = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if not match:  # compared without case
        lower = {n.casefold(): n for n in names}
        close = difflib.get_close_matches(str(name).casefold(), lower, n=1, cutoff=0.6)
        match = [lower[c] for c in close]
    return f" (did you mean '{match[0]}'?)" if match else ""
