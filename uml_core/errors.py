"""The errors a user can meet; `pipelines.cli` maps them to exit codes."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


class UserError(ValueError):
    """The user's input is wrong. Holds every problem found, not only the first; exit code 2."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunError(RuntimeError):
    """A run that started could not finish; the message says what was lost. Exit code 1."""


MOST_COMPARED, LONGEST_COMPARED = 2000, 200  # names, characters: comparing takes time


def near(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    if len(name) > LONGEST_COMPARED:
        return ""
    names = [str(k)[:LONGEST_COMPARED] for k in itertools.islice(known, MOST_COMPARED)]
    match = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""
