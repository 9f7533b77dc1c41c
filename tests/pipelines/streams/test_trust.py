"""An index is believed where it fits its tar: not a stale one, and a copied one without a scan."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from pipelines.streams import index as indexing
from pipelines.streams import trust
from pipelines.streams.shards import Sample, load_index, write_shard, write_shards


def samples(shift: int = 0, n: int = 6):
    return (Sample(f"k{i}", "txt", b"word %d" % i, (i + shift) % 3) for i in range(n))


def labels(folder: str | Path) -> list[int]:
    return load_index("t-000000.tar", str(folder), "text").labels.tolist()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A shard with its index, known to fit."""
    write_shards(samples(), str(tmp_path / "data"), "t", "text")
    return tmp_path / "data"


@pytest.fixture
def no_scan(monkeypatch):
    """From now on a scan is an error; `[n]` counts the shards that were read for their hash."""
    reads = [0]

    def counted(url: str) -> str:
        reads[0] += 1
        return whole(url)

    def never(url: str, kind: str):
        raise AssertionError(f"{url} was scanned")

    whole = trust._sha256
    monkeypatch.setattr(trust, "_sha256", counted)
    monkeypatch.setattr(indexing, "scan_shard", never)
    return reads


def rewrite(folder: Path) -> None:
    """The shard with other labels, as long as before; its index stays as it was."""
    path, kept = folder / "t-000000.tar", (folder / "index.json").read_bytes()
    size = path.stat().st_size
    write_shard(str(path), samples(1), "text")
    assert path.stat().st_size == size and (folder / "index.json").read_bytes() == kept


def test_a_shard_of_equal_size_with_other_labels_gives_the_new_ones(folder):
    assert labels(folder) == [0, 1, 2, 0, 1, 2]
    rewrite(folder)
    assert labels(folder) == [1, 2, 0, 1, 2, 0]
    assert labels(folder) == [1, 2, 0, 1, 2, 0]  # from the cache


def test_a_time_that_was_set_back_hides_nothing(folder):
    before = (folder / "t-000000.tar").stat()
    rewrite(folder)
    os.utime(folder / "t-000000.tar", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert labels(folder) == [1, 2, 0, 1, 2, 0]


def test_rewritten_at_once_again_and_again(folder):
    """Within one tick of the file system's clock two contents would have one stamp."""
    for shift in range(12):
        write_shard(str(folder / "t-000000.tar"), samples(shift), "text")
        assert labels(folder) == [(i + shift) % 3 for i in range(6)]


def test_what_the_writer_knows_is_not_read_again(folder, no_scan):
    assert labels(folder) == [0, 1, 2, 0, 1, 2] and no_scan == [0]


def test_a_copied_folder_is_read_once_and_not_scanned(folder, tmp_path, no_scan):
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # all times are new
    for _ in range(3):
        assert labels(tmp_path / "copy") == [0, 1, 2, 0, 1, 2]
    assert no_scan == [1]


def test_a_stale_folder_that_was_copied_is_stale_still(folder, tmp_path):
    rewrite(folder)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / "index.json", (time.time() + 60, time.time() + 60))
    assert labels(tmp_path / "copy") == [1, 2, 0, 1, 2, 0]


def test_an_index_of_another_machine_and_a_home_without_room(folder, no_scan, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    for reads in (1, 2):  # it cannot be noted, so it is read again
        assert labels(folder) == [0, 1, 2, 0, 1, 2] and no_scan == [reads]


@contextlib.contextmanager
def served(folder: Path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_in_a_store_a_shard_older_than_its_index_is_not_read(folder, no_scan):
    os.utime(folder / "index.json", (time.time() + 10, time.time() + 10))
    with served(folder) as url:
        assert labels(url) == [0, 1, 2, 0, 1, 2] and no_scan == [0]


def test_in_a_store_a_shard_that_is_newer_is_looked_at(folder):
    with served(folder) as url:
        assert labels(url) == [0, 1, 2, 0, 1, 2]
        rewrite(folder)
        os.utime(folder / "t-000000.tar", (time.time() + 10, time.time() + 10))
        assert labels(url) == [1, 2, 0, 1, 2, 0]
