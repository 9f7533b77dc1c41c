"""Checkpoints in a store: the newest whole one is found, copied and kept apart from other jobs'."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest
import yaml
from servers import s3_server

from pipelines.running import checkpoint_home, checkpoints
from pipelines.running.checkpoint_home import home_of


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The url of a real S3 server."""
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def bucket(server, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(checkpoint_home.tempfile, "gettempdir", lambda: str(tmp_path / "temp"))
    name = re.sub(r"[^a-z0-9]", "-", tmp_path.name.lower())
    urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", b"", method="PUT")).close()
    return f"s3://{name}/checkpoints"


def job(tmp_path: Path, storage: str | None, name: str = "job") -> Path:
    out = tmp_path / name
    out.mkdir()
    (out / "recipe.yaml").write_text(yaml.safe_dump({"train": {"storage": storage}}))
    return out


def put(out: Path, tmp_path: Path, attempt: int, at: int) -> str:
    """A checkpoint as Ray Train uploads it."""
    from pyarrow import fs

    folder = tmp_path / f"made-{out.name}-{attempt}-{at}"
    folder.mkdir()
    (folder / "state.pt").write_bytes(bytes([at]) * 500)
    checkpoints._seal(folder, at, "step", 0, 1)
    name = f"attempt-{attempt:03d}/checkpoint_{at:08d}_{attempt:08x}"
    where = home_of(out).ray()
    fs.copy_files(
        str(folder),
        f"{where['storage_path']}/{name}",
        destination_filesystem=where["storage_filesystem"],
    )
    return name


def test_the_newest_whole_checkpoint_of_a_store_is_found(tmp_path, bucket):
    out = job(tmp_path, bucket)
    assert checkpoints.newest(out) == (None, []) and checkpoints.new_attempt(out) == "attempt-000"
    put(out, tmp_path, 0, 20)
    good = put(out, tmp_path, 1, 40)
    torn = put(out, tmp_path, 1, 60)
    home = home_of(out)
    home._system.delete_file(f"{home._path}/{torn}/manifest-0.json")
    found, troubles = checkpoints.newest(out)
    assert (found.name, found.at, troubles) == (good, 40, [])
    assert (found.path / "state.pt").read_bytes() == bytes([40]) * 500
    assert found.place.startswith(bucket) and found.place.endswith(good)
    assert found.place in checkpoints.where_it_stands(out)
    assert checkpoints.new_attempt(out) == "attempt-002"


def test_old_ones_are_removed_there_too(tmp_path, bucket):
    out = job(tmp_path, bucket)
    names = [put(out, tmp_path, attempt, 10 + 10 * attempt) for attempt in range(4)]
    checkpoints.tidy(out)
    home = home_of(out)
    left = [name for attempt in home.attempts() for name in home.checkpoints(attempt)]
    assert left == names[-checkpoints.KEEP :]


def test_jobs_that_share_a_store_do_not_meet(tmp_path, bucket):
    first, second = job(tmp_path, bucket), job(tmp_path, bucket, "other")
    put(first, tmp_path, 0, 20)
    assert checkpoints.newest(second)[0] is None
    checkpoints.tidy(second)
    assert checkpoints.newest(first)[0].at == 20


def test_a_folder_may_be_the_store_and_without_one_it_is_the_job(tmp_path):
    plain = home_of(job(tmp_path, None))
    assert plain.ray() == {"storage_path": str(tmp_path / "job" / "train")}
    shared = home_of(job(tmp_path, str(tmp_path / "fast"), "two"))
    assert shared.ray()["storage_path"].startswith(str(tmp_path / "fast" / "two-"))
    assert home_of(tmp_path / "never-started").attempts() == []
