"""Real servers of a test: shards over http that trickle, MLflow that can be killed, S3."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

TRICKLE_SECONDS = 25.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class MlflowServer:
    """A real `mlflow server` on localhost that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        log = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            # Five processes more, for jobs that no test has.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """The url of a real S3 server on localhost without buckets; its log lies in `folder`."""
    log = folder / "s3.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stderr=subprocess.STDOUT,
            stdout=file,
        )
    try:
        for _ in range(900):
            if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
                break
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.1)
        else:
            raise AssertionError(log.read_text()[-2000:])
        yield found[0]
    finally:
        process.terminate()
        process.wait()


class Shards:
    """Files over http with ranges, one of which may come in a trickle.

    `trickled` counts the requests that were answered so.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.slow: str | None = None
        self.trickled = 0

    def trickle(self, name: str | None) -> None:
        """From now on `name` takes TRICKLE_SECONDS per request; None: nothing does."""
        self.slow = name


@contextlib.contextmanager
def http_shards(folder: Path) -> Iterator[Shards]:
    """Serves `folder` on localhost."""
    port = free_port()
    shards = Shards(f"http://127.0.0.1:{port}")
    handler = functools.partial(_Handler, shards, folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield shards
        finally:
            server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, shards: Shards, folder: Path, *args: object) -> None:
        self.shards, self.folder = shards, folder
        super().__init__(*args)

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        name = self.path.rpartition("/")[2]
        path = self.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        wanted = self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(len(data), int(last or len(data) - 1) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if with_body:
            self._send(data, name == self.shards.slow)

    def _send(self, data: bytes, slowly: bool) -> None:
        if not slowly:
            self.wfile.write(data)
            return
        self.shards.trickled += 1
        pieces = 10
        for i in range(pieces):
            self.wfile.write(data[i * len(data) // pieces : (i + 1) * len(data) // pieces])
            self.wfile.flush()
            time.sleep(TRICKLE_SECONDS / pieces)
