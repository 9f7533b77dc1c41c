import http.server
import pickle
import re
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipelines.streams import storage
from pipelines.streams.shards import Sample, load_index, read_rows, write_classes, write_shards
from uml_core.errors import RunError, UserError


def write_texts(folder: Path) -> Path:
    samples = (Sample(f"{i:04d}", "txt", f"text {i}".encode() * 50, i % 2) for i in range(60))
    write_shards(samples, str(folder), "text-train", "text", per_shard=30)
    write_classes(str(folder), ["a", "b"])
    return folder


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves ranges; `drops` transfers break off in the middle, then all is well."""

    drops = 0
    status = 0
    requests: list[str]

    def do_GET(self):
        self.requests.append(self.path)
        path = Path(self.translate_path(self.path))
        if self.status:
            return self.send_error(self.status)
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match:
            data = data[int(match[1]) : int(match[2]) + 1]
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if Ranges.drops > 0:
            Ranges.drops -= 1
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)

    def log_message(self, *args):
        pass


class Plain(http.server.SimpleHTTPRequestHandler):
    """`python -m http.server`: no ranges."""

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(handler):
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(handler, directory=str(tmp_path))
        )
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Ranges, "drops", 0)
    monkeypatch.setattr(Ranges, "requests", [], raising=False)
    monkeypatch.setattr(Ranges, "status", 0)


def test_ranges_come_in_the_order_asked_for(tmp_path):
    path = tmp_path / "x.bin"
    data = np.random.default_rng(0).bytes(100_000)
    path.write_bytes(data)
    offsets, sizes = [90_000, 5, 40_000, 0, 99_990], [100, 10, 0, 3, 50]
    parts = storage.read_ranges(str(path), offsets, sizes)
    assert parts == [data[o : o + n] for o, n in zip(offsets, sizes, strict=True)]
    assert len(parts[-1]) == 10  # the file ends there


def test_neighbouring_ranges_are_read_as_one():
    spans = storage._spans(np.array([100, 0, 10_000]), np.array([10, 50, 5]), gap=60)
    assert [span.tolist() for span in spans] == [[1, 0], [2]]
    big = storage.SPAN_BYTES
    assert len(storage._spans(np.array([0, big]), np.array([big, big]), gap=10)) == 2


@pytest.mark.parametrize("handler", [Ranges, Plain])
def test_shards_over_http(tmp_path, serve, handler):
    local = load_index("text-train-*.tar", str(write_texts(tmp_path)), "text")
    index = load_index("text-train-{000000..000001}.tar", serve(handler), "text")
    assert index.keys == local.keys and index.classes == ("a", "b")
    rows = np.random.default_rng(1).permutation(60)
    assert read_rows(index, rows) == read_rows(local, rows)


def test_a_foreign_shard_over_http_is_scanned_once(tmp_path, serve):
    local = load_index("text-train-*.tar", str(write_texts(tmp_path)), "text")
    (tmp_path / "index.json").unlink()
    root = serve(Ranges)
    index = load_index("text-train-{000000..000001}.tar", root, "text")
    assert index.fingerprint == local.fingerprint and index.hashes == local.hashes
    Ranges.requests.clear()
    load_index("text-train-{000000..000001}.tar", root, "text")
    assert not [path for path in Ranges.requests if path.endswith(".tar")]


def test_dropped_connections_are_tried_again(tmp_path, serve, monkeypatch):
    local = load_index("text-train-*.tar", str(write_texts(tmp_path)), "text")
    (tmp_path / "index.json").unlink()
    monkeypatch.setattr(storage, "STREAM_BLOCK", 10_000)  # several requests per shard
    Ranges.drops = 4
    index = load_index("text-train-{000000..000001}.tar", serve(Ranges), "text")
    assert Ranges.drops == 0 and index.fingerprint == local.fingerprint
    Ranges.drops = 3
    assert read_rows(index, [59, 0]) == read_rows(local, [59, 0])
    assert Ranges.drops == 0


def test_a_connection_that_stays_broken_ends_with_advice(tmp_path, serve):
    index = load_index("text-train-000000.tar", str(write_texts(tmp_path)), "text")
    url = f"{serve(Ranges)}/text-train-000000.tar"
    Ranges.drops = 10**6
    with pytest.raises(RunError, match=r"after 6 attempts.*--resume"):
        storage.read_ranges(url, index.offsets[:1], index.sizes[:1])


def test_what_is_certain_is_not_tried_again(tmp_path, serve):
    root = serve(Ranges)
    with pytest.raises(RunError, match="has gone"):
        storage.read_ranges(f"{root}/nothing.tar", [0], [10])
    assert len(Ranges.requests) == 1
    Ranges.status = 403
    with pytest.raises(RunError, match="403"):
        storage.read_ranges(f"{root}/secret.tar", [0], [10])
    assert len(Ranges.requests) == 2


@pytest.mark.parametrize("as_list", [False, True])
def test_the_names_of_a_brace_range_or_a_list_are_looked_up_at_once(monkeypatch, as_list):
    """Eight looks wait for each other: one after the other they would wait for ever."""
    together = threading.Barrier(8, timeout=10)

    def far(url):
        together.wait()
        return storage.Stat(1, "x")

    monkeypatch.setattr(storage, "stat", far)
    urls = [f"http://far/t-{i:06d}.tar" for i in range(48)]
    assert storage.expand(urls if as_list else "http://far/t-{000000..000047}.tar") == urls


def test_patterns(tmp_path, serve):
    write_texts(tmp_path)
    folder = tmp_path / "odd{name}"
    folder.mkdir()
    (folder / "a.tar").touch()
    both = [str(tmp_path / f"text-train-00000{i}.tar") for i in range(2)]
    assert storage.expand("text-train-*.tar", str(tmp_path)) == both
    assert storage.expand("text-train-{000000..000001}.tar", str(tmp_path)) == both
    assert storage.expand([both[1], "text-*.tar"], str(tmp_path)) == both[::-1]  # each once
    assert storage.expand("odd{name}/a.tar", str(tmp_path)) == [str(folder / "a.tar")]
    assert storage.expand("file://" + both[0]) == both[:1]
    for odd in ("set[1]", "set{a,b}", "what?*"):  # as a root, and named in a pattern
        write_texts(tmp_path / odd)
        shards = [str(tmp_path / odd / f"text-train-00000{i}.tar") for i in range(2)]
        for pattern in ("text-*.tar", "text-train-00000{0,1}.tar"):
            assert storage.expand(pattern, str(tmp_path / odd)) == shards
            assert storage.expand(f"{odd}/{pattern}", str(tmp_path)) == shards
    root = serve(Ranges)
    odd_url = f"{root}/set[1]/text-train-00000"
    assert storage.expand("text-train-{000000..000001}.tar", f"{root}/set[1]") == [
        f"{odd_url}{i}.tar" for i in range(2)
    ]
    url = f"{root}/text-train-000000.tar"
    assert storage.expand("text-train-000000.tar", root) == [url] == storage.expand(url, "/x")
    for pattern, problem in {
        "text-train-{0..1.tar": "braces do not match",
        "text-train-00000x.tar": r"did you mean 'text-train-00000[01].tar'",
        f"{root}/*.tar": "cannot list",
        f"{root}/nothing.tar": "there is no file",
        "t-{0..99999999999}.tar": "more than 100000 files",
        "{a,b}" * 40: "more than 100000 files",
        "{" * 3000 + "}" * 3000: "cannot be expanded",
        "{0.." + "9" * 5000 + "}": "cannot be expanded",
        "a\0b": "cannot be opened",
        "a" * 5000: "cannot be opened",
        "http://no host/x.tar": "cannot be read",
        "s3:///x.tar": "names no bucket",
    }.items():
        with pytest.raises(UserError, match=problem):
            storage.expand(pattern, str(tmp_path))
    with pytest.raises(UserError, match="no shard is named"):
        storage.expand([])


def test_a_store_travels_with_its_keys(monkeypatch):
    """To Ray Train's controller, say, whose environment is that of its node."""
    named = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "sesame"}
    places = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "eu-west-3"}
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    for name, value in (named | places).items():
        monkeypatch.setenv(name, value)
    system, path = storage.filesystem("s3://bucket/kept")
    sent = pickle.dumps(system)
    for name in named | places:
        monkeypatch.delenv(name)
    _, (arguments,) = pickle.loads(sent).__reduce__()
    assert path == "bucket/kept" and arguments["region"] == "eu-west-3"
    assert (arguments["access_key"], arguments["secret_key"]) == ("id", "sesame")
    assert arguments["endpoint_override"] == "http://127.0.0.1:9"
