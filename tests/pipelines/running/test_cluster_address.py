"""RAY_ADDRESS that names no Ray: one sentence, at once."""

from __future__ import annotations

import socket
import time

import pytest

from pipelines.running import cluster
from uml_core.errors import UserError


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("http://127.0.0.1:8265", "uml submit"),
        ("ray://127.0.0.1:10001", "client"),
        ("nonsense", "no address"),
        ("host:99999", "no address"),
        ("nohost.invalid:6379", "nothing answers"),
        ("http://user:word@h:8265", "***@h"),
    ],
)
def test_what_is_no_ray(given: str, word: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        cluster.check(given)
    [problem] = caught.value.problems
    assert problem.startswith("RAY_ADDRESS=") and word in problem and "unset" in problem
    assert "user:word" not in problem
    assert time.monotonic() - began < 30


def test_ports_that_are_closed_or_mute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS", 0.5)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(UserError, match="nothing answers"):
            cluster.check(place)
        mute.listen()
        with pytest.raises(UserError, match="no Ray"):
            cluster.check(place)


def test_local_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, found in (("local", None), ("", None), ("h:6379", "h:6379")):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert cluster.address() == found
