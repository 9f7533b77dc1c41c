"""`uml train` under faults that it must bear, or end with advice: really injected, on a real group.

Faults share their runs, since most of what a run costs is its start. What a run took is held
against its plan, batch by batch; what it learnt, against the same fit in one process.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from mounts import fill, small_disk
from reference import reference
from runs import (
    Meanwhile,
    checkpoints_of,
    consumed,
    losses,
    planned,
    step_of,
    training_workers,
)
from servers import MlflowServer, free_port, http_shards

from pipelines import cli
from pipelines.running.checkpoints import newest
from pipelines.streams.shards import load_index, read_rows

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


def metrics_of(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def taken(trace: dict[str, dict[int, Counter]]) -> dict[str, Counter]:
    """Modality -> multiset of keys over all steps."""
    return {name: sum(steps.values(), Counter()) for name, steps in trace.items()}


# ------------------------------------------------------------------- what a run goes on after

STEPS = ["train.steps=300", "train.validate_every=100"]


def kill_a_worker() -> None:
    os.kill(max(training_workers()), signal.SIGKILL)


@pytest.fixture
def over_http(fault_recipe, tmp_path) -> str:
    """`fault_recipe` with patterns that need no listing, for a `data_root` behind http."""
    recipe = yaml.safe_load(Path(fault_recipe).read_text())
    for spec in recipe["modalities"].values():
        spec["train"] = spec["train"].replace("-*.tar", "-{000000..000002}.tar")
    recipe["modalities"]["image"]["test"] = "image-test-{000000..000001}.tar"
    path = tmp_path / "http.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.mark.slow
def test_a_run_survives_all_that_it_can_survive(
    ray_cluster, tiny_data, fault_recipe, over_http, tmp_path, capfd, monkeypatch
):
    """A killed worker, a shard that trickles to the group that takes its place, a dead MLflow.

    It takes what its plan says and learns what it would have learnt.
    """
    server, out, shard = MlflowServer(tmp_path), tmp_path / "out", "text-train-000001.tar"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    try:
        with http_shards(tiny_data) as served:
            server.start()

            def kill_and_trickle() -> None:
                served.trickle(shard)  # the next group has decoded nothing yet: it reads again
                kill_a_worker()

            killed = Meanwhile(lambda: step_of(out) >= 50 and checkpoints_of(out), kill_and_trickle)
            quick = Meanwhile(lambda: served.trickled >= 2, lambda: served.trickle(None))
            dead = Meanwhile(lambda: quick.done and step_of(out) >= 150, server.kill)
            command = ["train", over_http, f"data_root={served.url}", *STEPS, "--out", str(out)]
            with killed, quick, dead:
                assert cli.main(command) == 0
        said, metrics = " ".join(capfd.readouterr().err.split()), metrics_of(out)
        assert consumed(out) == planned(fault_recipe, STEPS)
        np.testing.assert_allclose(losses(out), reference(fault_recipe, STEPS).losses, rtol=1e-5)
        # The worker
        assert metrics["restarts"] == 1
        assert "started again; it goes on from step" in said
        assert "had to be started again once" in said
        # The shard
        assert "s for text. A read takes long: " in said and f"{shard} (" in said, said
        assert "text is there again." in said
        assert said.count("s for text.") <= 3  # not every second
        assert metrics["wait_seconds"]["text"] > 10
        # MLflow
        assert "does not take events" in said
        assert "tracking events wait in" in said and "uml report" in said
        server.start()
        assert cli.main(["report", str(out)]) == 0
        is_tracked(server.url, metrics["history"])
    finally:
        server.kill()


def is_tracked(url: str, history: dict) -> None:
    """The store has the whole run, also what happened while it was dead."""
    from mlflow import MlflowClient

    client = MlflowClient(url)
    [experiment] = [e for e in client.search_experiments() if e.name == "faults"]
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    # A validation after the last checkpoint is done, and told, again by the next group.
    kept = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val_accuracy")}
    assert sorted(kept) == history["steps"]
    assert [kept[step] for step in history["steps"]] == pytest.approx(history["val_accuracy"])
    files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert {"recipe.yaml", "metrics.json", "report.html", "checkpoint"} <= files


# ------------------------------------------------------------------------- what ends a run


@pytest.mark.slow
def test_a_run_goes_on_after_all_that_ends_it(
    ray_cluster, tiny_data, fault_recipe, tmp_path, capfd
):
    """Workers that keep dying, a shard that vanishes, a full disk: each ends the run with advice,
    none costs a checkpoint, and in the end it has learnt what it would have learnt."""
    folder, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(tiny_data, folder)
    shard = folder / "text-train-000001.tar"
    own = [f"data_root={folder}", "train.steps=600", "train.validate_every=200"]
    with small_disk(tmp_path / "small", "32m") as disk:
        out, ballast = disk / "out", []
        command = ["train", fault_recipe, *own, "train.max_failures=0", "--out", str(out)]

        def go_on(*more: str) -> tuple[int, str]:
            """(exit code, what it said) of the next start."""
            return cli.main([*command, *more]), capfd.readouterr().err

        def is_lost_since(said: str) -> int:
            last, troubles = newest(out)
            assert not troubles and not (out / "metrics.json").exists()
            assert f"Lost is the work since step {last.at}." in said, said
            assert f"The last checkpoint is {last.path};" in said
            return last.at

        with Meanwhile(lambda: step_of(out) >= 50 and checkpoints_of(out), kill_a_worker):
            code, said = go_on()
        assert code == 1
        reached = is_lost_since(said)

        trace = out / "trace" / "rank-0.jsonl"
        held = trace.stat().st_ino  # a new file once the next group has dropped what was lost

        def is_under_way() -> bool:
            return trace.stat().st_ino != held and step_of(out) >= reached

        with Meanwhile(is_under_way, lambda: shard.rename(away)):
            code, said = go_on("--resume")
        assert code == 1 and f"Going on from step {reached}." in said
        # The worker that misses it first ends the others too, which wait for its gradients.
        assert f"{shard} has gone: put it back" in said
        again = is_lost_since(said)
        away.rename(shard)

        # Room for the trace, none for another checkpoint.
        def is_saving() -> bool:
            return newest(out)[0].at > again

        with Meanwhile(is_saving, lambda: ballast.append(fill(disk, leave=100_000))):
            code, said = go_on("--resume")
        assert code == 1 and f"Going on from step {again}." in said
        assert f"the disk of {out} is full" in said and "Make space" in said
        reached = is_lost_since(said)
        for path in out.rglob("*.json"):
            if path.parent.parent.name != "train":  # Ray's own snapshot may be torn; nobody asks it
                json.loads(path.read_text())
        ballast[0].unlink()

        code, said = go_on("--resume")
        assert code == 0 and f"Going on from step {reached}." in said
        assert consumed(out) == planned(fault_recipe, own)
        np.testing.assert_allclose(losses(out), reference(fault_recipe, own).losses, rtol=1e-5)


# ------------------------------------------------------------------------------- shards


def gigantic_png(side: int) -> bytes:
    """A valid picture of side x side pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(side * (1 + side // 8)), 9)  # one bit per pixel
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )


@pytest.fixture
def spoilt_pictures(tiny_data, tmp_path) -> tuple[Path, set[str], set[str]]:
    """(folder, keys that the scan leaves out, keys that no decoder takes) of foreign shards.

    Shard 0 holds an empty, an oversized (300 MB, sparse on disk), an undecodable member and a
    picture of too many pixels; shard 1 is cut off in the middle.
    """
    folder = tmp_path / "pictures"
    folder.mkdir()
    index = load_index("image-train-*.tar", str(tiny_data), "image")
    payloads = read_rows(index, range(len(index)))
    changed = {
        3: b"",
        5: b"no picture at all",
        7: gigantic_png(32_768),
    }
    path = folder / "image-train-000000.tar"
    with tarfile.open(path, "w") as tar:
        for row in range(20):
            for suffix, data in (
                ("cls", str(index.labels[row]).encode()),
                ("png", changed.get(row, payloads[row])),
            ):
                info = tarfile.TarInfo(f"{index.keys[row]}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("huge.png")
        info.size = 300 << 20
        tar.fileobj.write(info.tobuf())
        tar.fileobj.seek(info.size, os.SEEK_CUR)
        tar.offset = tar.fileobj.tell()
    whole = Path(index.shards[1].url).read_bytes()
    (folder / "image-train-000001.tar").write_bytes(whole[: len(whole) // 2])
    scanned = {index.keys[3], "huge"}
    return folder, scanned, {index.keys[5], index.keys[7]}


def test_bad_shards_are_told_counted_and_refilled(
    ray_cluster, tiny_data, fault_recipe, spoilt_pictures, tmp_path, capfd
):
    folder, scanned, undecodable = spoilt_pictures
    recipe = yaml.safe_load(Path(fault_recipe).read_text())
    recipe["target"] = "text"
    recipe["modalities"]["text"]["test"] = "text-test-*.tar"
    recipe["modalities"]["image"] = {
        "kind": "image",
        "train": f"{folder}/image-train-*.tar",
        "size": 12,
    }
    del recipe["modalities"]["wave"]
    recipe["train"] |= {"steps": 24, "validate_every": 12, "workers": 2}
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(recipe))
    assert cli.main(["train", str(path), "--out", str(out)]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "image (train): " in said and "samples cannot be used, such as" in said
    lines = [json.loads(x) for x in (out / "quarantine.jsonl").read_text().splitlines()]
    found = {line["key"]: line for line in lines}
    assert len(lines) == len(found)
    assert {key for key, line in found.items() if line["found_in"] == "stream"} == undecodable
    assert scanned <= set(found) and "is empty" in found[min(scanned - {"huge"})]["error"]
    cut = [line for line in lines if line["url"].endswith("000001.tar")]
    assert cut and "cut off" in " ".join(line["error"] for line in cut)
    assert metrics_of(out)["quarantined"] == len(lines)
    assert f"{len(lines)} samples could not be used" in said
    assert f"{len(lines)} samples could not be used" in (out / "report.html").read_text()
    pictures = consumed(out)["image"]
    assert all(keys.total() == 8 for keys in pictures.values()) and len(pictures) == 24
    seen = set(taken(consumed(out))["image"])
    assert not seen & (scanned | undecodable) and len(seen) > 20


# --------------------------------------------------------------------------- non-finite


@pytest.fixture
def wild_waves(tiny_data, fault_recipe, tmp_path) -> str:
    """`fault_recipe` with a series whose values overflow in the model: its loss is not finite."""
    from pipelines.streams.shards import Sample, write_classes, write_shards

    index = load_index("wave-train-*.tar", str(tiny_data), "sequence")
    series = read_rows(index, range(len(index)))
    wild = io.BytesIO()
    np.save(wild, np.full((5, 2), 3e38, dtype=np.float32))
    series[9] = wild.getvalue()
    samples = [
        Sample(key, "npy", data, int(label))
        for key, data, label in zip(index.keys, series, index.labels, strict=True)
    ]
    write_shards(samples, str(tmp_path / "waves"), "wave-train", "sequence")
    write_classes(str(tmp_path / "waves"), ("red", "green", "blue"))
    recipe = yaml.safe_load(Path(fault_recipe).read_text())
    recipe["modalities"]["wave"] |= {"train": f"{tmp_path}/waves/wave-train-*.tar", "ratio": 1.0}
    recipe["train"] |= {"steps": 24, "validate_every": 12, "checkpoint_every": 2}
    path = tmp_path / "wild.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def test_updates_that_are_not_finite_are_skipped_and_told(ray_cluster, wild_waves, tmp_path, capfd):
    """48 series in batches of 8: the wild one comes once in six steps."""
    out = tmp_path / "out"
    assert cli.main(["train", wild_waves, "train.on_nan=skip", "--out", str(out)]) == 0
    metrics, said = metrics_of(out), " ".join(capfd.readouterr().err.split())
    assert metrics["skipped_updates"] == 4
    assert "left out, their loss or gradient was not finite (train.on_nan=skip)" in said
    assert "4 updates were left out" in said
    assert "4 updates were left out" in (out / "report.html").read_text()
    assert np.isfinite(losses(out)).all()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_with_advice(
    ray_cluster, wild_waves, tmp_path, capfd
):
    out = tmp_path / "out"
    assert cli.main(["train", wild_waves, "--out", str(out)]) == 1
    said, last = capfd.readouterr().err, newest(out)[0]
    assert "the loss became non-finite at step" in said and "train.on_nan=skip" in said
    assert last is None or f"The last checkpoint is {last.path};" in said
    assert not (out / "metrics.json").exists()


# ------------------------------------------------------------------------------- MLflow


def test_no_tracking_server_at_all_is_told_and_kept(
    ray_cluster, fault_recipe, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    out = tmp_path / "out"
    command = ["train", fault_recipe, "train.steps=8", "train.workers=1", "--out", str(out)]
    assert cli.main(command) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "does not take events" in said and "tracking events wait in" in said
    kept = [json.loads(line) for line in (out / "tracking-spool.jsonl").read_text().splitlines()]
    assert kept[0]["kind"] == "start" and kept[-1]["kind"] == "end"
    assert metrics_of(out)["steps"] == 8
