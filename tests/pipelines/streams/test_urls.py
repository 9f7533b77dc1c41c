"""Urls of shards: signed ones, schemes that nobody reads, proxies."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.streams import network, storage
from pipelines.streams.quarantine import Quarantine
from uml_core.errors import UserError

SIGNED = "sv=2024&sig=abc%2Fd%3D"


class _Handler(BaseHTTPRequestHandler):
    """Serves b"shard" for one signed GET, and for any host where it is asked as a proxy."""

    asked: list[str]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        good = self.path == f"/a.tar?{SIGNED}" or self.path.startswith("http://data.invalid/")
        body = b"shard" if good else b""
        self.send_response(200 if good else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:  # a url that is signed for GET
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.setenv(name, "")
        monkeypatch.setenv(name.upper(), "")


def test_a_signed_url_is_sent_to_the_letter(server: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{server.server_port}/a.tar?{SIGNED}"
    assert storage.expand(url) == [url]
    assert storage.expand("a.tar", url.replace("/a.tar", "")) == [url]
    assert storage.read_all(url, 10) == b"shard"
    # What may lie beside it is not signed: it is not there.
    assert storage.read_beside(url.replace("a.tar", "classes.json"), 10) is None
    with pytest.raises(UserError) as caught:
        storage.expand(url.replace("sig=", "sig=wrong"))
    assert "wrong" not in str(caught.value) and "a.tar?***" in str(caught.value)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_proxies_of_the_environment(
    name: str, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name.lower())
    monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    assert storage.read_all("http://data.invalid/x.tar", 10) == b"shard"
    assert server.asked[-1] == "http://data.invalid/x.tar"  # type: ignore[attr-defined]
    monkeypatch.setenv("no_proxy", ".invalid")
    assert network.proxy_of("http://data.invalid/x.tar") is None
    assert network.way("http://elsewhere/x.tar").startswith(", the proxy http://127.0.0.1:")


def test_loopback_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:word@proxy:3128")
    assert "word" not in network.way("http://data.invalid/x")
    network.spare_loopback()
    assert network.proxy_of("http://127.0.0.1:8265/api") is None
    assert network.proxy_of("http://data.invalid/x") is not None


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        ("hf://datasets/a/b-{000..003}.tar", "hf://"),
        ("gcs://bucket/0.tar", "write gs://"),
        ("pipe:cat a.tar", "pipe:"),
        ("a.tar::b.tar", "'::'"),
        ("file://other/a.tar", "no other machine"),
        ("https://***@h/a.tar", "without its secrets"),
    ],
)
def test_one_sentence_names_the_scheme(pattern: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        storage.expand(pattern, str(tmp_path))
    [problem] = caught.value.problems
    assert word in problem


def test_a_root_of_another_scheme(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="abfs://"):
        storage.expand("a.tar", "abfs://c@account/x")
    (tmp_path / "a:b::c.tar").write_bytes(b"")
    assert storage.expand("a:b::c.tar", str(tmp_path)) == [str(tmp_path / "a:b::c.tar")]


def test_the_quarantine_keeps_no_secret_and_still_knows_its_shards(tmp_path: Path) -> None:
    path, url = tmp_path / "q.jsonl", "https://u:word@h/a.tar?sig=abc"
    Quarantine(path, 5, rows=9, urls=[url]).bad(url, "k", f"{url} ends early")
    text = path.read_text()
    assert json.loads(text)["url"] == "https://***@h/a.tar?***"
    assert "word" not in text and "abc" not in text
    assert (url, "k") in Quarantine(path, 5, rows=9, urls=[url])
    # Which of two that look alike was bad cannot be told: neither is left out.
    assert not len(Quarantine(path, 5, rows=9, urls=[url, url.replace("abc", "abd")]))
