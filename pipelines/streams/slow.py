"""Reads that take long: of which shard, and for how many seconds so far.

A read that waits for a disk or a server cannot speak meanwhile. So every process notes what it
reads, and where a job wants to know, a thread looks on and tells.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

LIMIT_SECONDS = 3.0  # shorter reads are not worth a word
_INTERVAL = 2.0

_under_way: dict[int, tuple[str, float]] = {}  # id -> url, since when
_tell: Callable[[str, float], object] | None = None


@contextlib.contextmanager
def noted(url: str) -> Iterator[None]:
    """Around a read of `url`."""
    token = object()
    _under_way[id(token)] = (url, time.monotonic())
    try:
        yield
    finally:
        del _under_way[id(token)]


def slow_reads(limit: float = LIMIT_SECONDS) -> dict[str, float]:
    """url -> seconds so far, of this process's reads that have taken longer than `limit`."""
    now = time.monotonic()
    found: dict[str, float] = {}
    for url, since in list(_under_way.values()):
        if now - since > limit:
            found[url] = max(found.get(url, 0.0), now - since)
    return found


def report_to(tell: Callable[[str, float], object]) -> None:
    """From now on `tell(url, seconds so far)` hears of slow reads every two seconds."""
    global _tell
    first, _tell = _tell is None, tell
    if first:
        threading.Thread(target=_look_on, name="uml-slow-reads", daemon=True).start()


def _look_on() -> None:
    while True:
        time.sleep(_INTERVAL)
        for url, seconds in slow_reads().items():
            assert _tell is not None
            _tell(url, seconds)
