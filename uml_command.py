"""The console script `uml`: finds this package's own modules before anything else is imported.

`pipelines` is a common name for a folder of one's own project. With that project on PYTHONPATH it
would be imported in our place, so this file has a name that nobody else uses, and puts the folder
that it lies in before all others, for this process and those it starts.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

PACKAGES = ("pipelines", "uml_core", "tune_spaces", "cluster")


def main() -> int:
    """Runs `pipelines.cli.main` of this installation; returns its exit code."""
    first = os.path.dirname(os.path.realpath(__file__))
    if any(_place(name) not in (None, first) for name in PACKAGES):
        sys.path.insert(0, first)
        later = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([first, later] if later else [first])
    from pipelines.cli import main as run

    return run()


def _place(name: str) -> str | None:
    """The folder in which Python's path holds a package first, without importing it."""
    spec = PathFinder.find_spec(name)
    if spec is None:
        return None
    inner = list(spec.submodule_search_locations or ())
    found = os.path.realpath(inner[0] if inner else str(spec.origin))
    return os.path.dirname(found)
