"""Shards on a real S3 server and behind a connection that breaks: scanned, streamed, verified."""

import contextlib
import os
import re
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from servers import s3_server

from pipelines.sources import parallel
from pipelines.sources.inspection import check_shard
from pipelines.streams import access, storage
from pipelines.streams.plan import Plan
from pipelines.streams.reader import iter_plan, ray_stream
from pipelines.streams.shards import Sample, load_index, read_rows, write_classes, write_shards
from pipelines.streams.source import Segment
from pipelines.streams.trust import cache_folder
from uml_core.errors import UserError
from uml_core.modalities import KINDS

SHARDS = "text-train-{000000..000001}.tar"


class Breaking:
    """A TCP relay to `target` that ends the first `cuts` answers after `after` bytes of each."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.cuts, self.after = 0, 20_000
        self._target = target
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._relay, args=pair, daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                passed += len(data)
                if answers and passed > self.after and self._cut():
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _cut(self) -> bool:
        with self._lock:
            self.cuts -= 1
            return self.cuts >= 0


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    """(host, port) of a real S3 server."""
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        place = urlsplit(url)
        yield place.hostname, place.port


@pytest.fixture
def breaking(moto):
    relay = Breaking(moto)
    yield relay
    relay.close()


@pytest.fixture
def s3(breaking, tmp_path, monkeypatch):
    """The url of a bucket of this test; its only way leads over `breaking`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{breaking.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = re.sub(r"[^a-z0-9]", "-", tmp_path.name.lower())
    put(bucket, b"")
    return f"s3://{bucket}"


def put(path: str, data: bytes) -> None:
    url = f"{os.environ['AWS_ENDPOINT_URL']}/{path}"
    header = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(url, data, header, method="PUT")).close()


def write_texts(folder: Path) -> Path:
    samples = (Sample(f"{i:04d}", "txt", f"text {i} ".encode() * 500, i % 2) for i in range(60))
    write_shards(samples, str(folder), "text-train", "text", per_shard=30)
    write_classes(str(folder), ["a", "b"])
    return folder


def upload(folder: Path, bucket: str, *, index: bool) -> None:
    for file in folder.iterdir():
        if index or file.name != "index.json":
            put(f"{bucket.removeprefix('s3://')}/set/{file.name}", file.read_bytes())


def test_shards_on_s3(tmp_path, s3):
    local = load_index("text-train-*.tar", str(write_texts(tmp_path / "data")), "text")
    upload(tmp_path / "data", s3, index=True)
    for pattern in ("text-train-*.tar", SHARDS):
        index = load_index(pattern, f"{s3}/set", "text")
        assert index.fingerprint == local.fingerprint and index.classes == ("a", "b")
    assert read_rows(index, [59, 3, 31]) == read_rows(local, [59, 3, 31])
    with pytest.raises(UserError, match=r"did you mean 'text-train-00000\d.tar'"):
        load_index("text-train-00000x.tar", f"{s3}/set", "text")


def test_a_connection_to_s3_that_breaks_in_mid_tar(tmp_path, s3, breaking, monkeypatch):
    local = load_index("text-train-*.tar", str(write_texts(tmp_path / "data")), "text")
    upload(tmp_path / "data", s3, index=False)
    monkeypatch.setattr(storage, "STREAM_BLOCK", 60_000)  # several requests per shard
    breaking.cuts = 4
    index = load_index(SHARDS, f"{s3}/set", "text")  # scanned: there is no index.json
    assert breaking.cuts <= 0 and index.fingerprint == local.fingerprint
    assert len(list(Path(cache_folder("index")).iterdir())) == 2
    breaking.cuts = 3
    assert read_rows(index, range(60)) == read_rows(local, range(60))
    assert breaking.cuts <= 0
    breaking.cuts = 10**6  # the index is in the cache: not a byte of the shards is read
    assert load_index(SHARDS, f"{s3}/set", "text").hashes == local.hashes
    breaking.cuts = 0


def test_an_answer_of_unknown_length_that_breaks_off(tmp_path):
    """The server tells no length, so the transport takes the break for the end."""
    whole, drops = b"x" * 100_000, 2

    def answer(client: socket.socket) -> None:
        nonlocal drops
        with client:
            request = client.recv(65536).decode()
            size = f"Content-Length: {len(whole)}\r\n" if request.startswith("HEAD") else ""
            found = re.search(r"bytes=(\d+)-(\d+)", request)
            data = whole[int(found[1]) : int(found[2]) + 1] if found else whole
            if not size and drops > 0:
                drops, data = drops - 1, data[:1000]
            status = "206 Partial Content" if found else "200 OK"
            head = f"HTTP/1.1 {status}\r\nAccept-Ranges: bytes\r\n{size}Connection: close\r\n\r\n"
            client.sendall(head.encode() + (b"" if size else data))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                answer(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.bin"
        assert storage.read_ranges(url, [10], [50_000]) == [whole[:50_000]]
        assert drops == 0
        assert storage.read_ranges(url, [99_990], [50]) == [whole[:10]]  # the file ends there


@pytest.mark.ray
@pytest.mark.parametrize("decode_in", ["threads", "tasks"])
def test_a_stream_from_s3_through_ray(ray_cluster, tmp_path, s3, breaking, decode_in):
    """The cluster started before the test: endpoint and keys reach its workers with the work."""
    local = load_index("text-train-*.tar", str(write_texts(tmp_path / "data")), "text")
    upload(tmp_path / "data", s3, index=False)
    index = load_index(SHARDS, f"{s3}/set", "text")
    modality = KINDS["text"](KINDS["text"].Options())
    plan = Plan(60, 8, 0, "text")
    expected = list(iter_plan(local, plan, modality, count=20))
    breaking.cuts = 3
    with ray_stream([Segment(index, plan, 0, 20)], modality, decode_in=decode_in) as stream:
        found = list(stream)
    assert breaking.cuts <= 0
    assert [item.batch.keys for item in found] == [item.batch.keys for item in expected]
    assert all(torch.equal(a.batch.x, b.batch.x) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.ray
def test_shards_on_s3_are_verified_by_tasks(ray_cluster, tmp_path, s3, breaking, monkeypatch):
    upload(write_texts(tmp_path / "data"), s3, index=False)
    urls = storage.expand(SHARDS, f"{s3}/set")
    monkeypatch.setattr(parallel, "SMALL", -1)
    breaking.cuts = 3
    jobs = [{"url": url, "kind": "text", "options": {"max_chars": 10_000}} for url in urls]
    results = parallel.each(
        check_shard, jobs, sizes=[1, 1], cost=1, title="Verifying", unit="shards"
    )
    assert [result["shard"]["samples"] for result in results] == [30, 30]
    assert [result["problems"] for result in results] == [[], []] and breaking.cuts <= 0


def test_settings_of_the_node_go_first(monkeypatch):
    monkeypatch.setattr(access, "_adopted", set())
    for name in (*access.KEYS, *access.PLACES):
        monkeypatch.delenv(name, raising=False)
    access.adopt({"AWS_ACCESS_KEY_ID": "driver", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "x"})
    assert access.settings()["AWS_ACCESS_KEY_ID"] == "driver"
    access.adopt({"AWS_ACCESS_KEY_ID": "later"})  # what came from an earlier driver gives way
    assert access.settings() == {"AWS_ACCESS_KEY_ID": "later"}
    access.adopt({})
    assert access.settings() == {}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "node")
    access.adopt({"AWS_ACCESS_KEY_ID": "driver", "AWS_SESSION_TOKEN": "t", "AWS_REGION": "x"})
    assert access.settings() == {"AWS_ACCESS_KEY_ID": "node", "AWS_REGION": "x"}
    access.adopt({})
