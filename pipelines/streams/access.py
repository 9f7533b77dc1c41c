"""What reaching a store takes (endpoint, region, keys), carried from the driver to its workers.

On a cluster it normally stands on the nodes: roles, or files in the home of the user. Where it
stands in the environment of the driver alone, it travels with the work itself, through Ray's object
store: a `runtime_env` would show keys in the dashboard and in logs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from uml_core.errors import RunError

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # of one identity
PLACES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
)


class NotAllowedError(RunError):
    """A store answers that this may not be read."""


_adopted: set[str] = set()  # what this process has from a driver, not from its node


def settings() -> dict[str, str]:
    """What of the environment of this process others need to reach the same stores."""
    return {name: os.environ[name] for name in (*KEYS, *PLACES) if name in os.environ}


def adopt(found: Mapping[str, str]) -> None:
    """Takes over a driver's settings; what the node itself says goes first, keys as a whole."""
    own_keys = any(name in os.environ and name not in _adopted for name in KEYS)
    for name in (*KEYS, *PLACES):
        own = own_keys if name in KEYS else name in os.environ and name not in _adopted
        if own:
            continue
        if name in found:
            os.environ[name] = found[name]
            _adopted.add(name)
        elif name in _adopted:  # of an earlier driver of this process
            del os.environ[name]
            _adopted.discard(name)


def carried(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`work` for another process: there it has the settings of this one."""
    found = settings()

    def run(argument: Any) -> Any:
        adopt(found)
        return work(argument)

    return run
