"""`uml train` under faults that it must bear, or end with advice: really injected, on a real group.

What a run took is held against its plan, batch by batch; what it learnt, against an undisturbed
run of the same recipe.
"""

from __future__ import annotations

import io
import json
import os
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

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def metrics_of(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def taken(trace: dict[str, dict[int, Counter]]) -> dict[str, Counter]:
    """Modality -> multiset of keys over all steps."""
    return {name: sum(steps.values(), Counter()) for name, steps in trace.items()}


# ---------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(
    ray_cluster, fault_recipe, undisturbed, tmp_path, capfd
):
    out = tmp_path / "out"

    def kill() -> None:
        os.kill(max(training_workers()), signal.SIGKILL)

    with Meanwhile(lambda: step_of(out) >= 50 and checkpoints_of(out), kill):
        assert cli.main(["train", fault_recipe, "--out", str(out)]) == 0
    assert consumed(out) == planned(fault_recipe)
    np.testing.assert_allclose(losses(out), losses(undisturbed), rtol=1e-5)
    assert metrics_of(out)["restarts"] == 1
    said = capfd.readouterr().err
    assert "started again; it goes on from step" in said
    assert "had to be started again once" in said


@pytest.mark.slow
def test_workers_that_keep_dying_end_the_run_with_advice(
    ray_cluster, fault_recipe, tmp_path, capfd
):
    out = tmp_path / "out"

    def kill() -> None:
        os.kill(max(training_workers()), signal.SIGKILL)

    command = ["train", fault_recipe, "train.max_failures=0", "--out", str(out)]
    with Meanwhile(lambda: step_of(out) >= 50 and checkpoints_of(out), kill):
        assert cli.main(command) == 1
    said = capfd.readouterr().err
    last = newest(out)[0]
    assert f"Lost is the work since step {last.at}. The last checkpoint is {last.path};" in said
    assert not (out / "metrics.json").exists()
    assert cli.main([*command, "--resume"]) == 0
    assert consumed(out) == planned(fault_recipe)
    assert f"Going on from step {last.at}." in capfd.readouterr().err


# --------------------------------------------------------------------------------- disk


@pytest.mark.slow
def test_a_full_disk_never_costs_a_good_checkpoint(
    ray_cluster, fault_recipe, undisturbed, tmp_path, capfd
):
    with small_disk(tmp_path / "small", "16m") as disk:
        out, ballast = disk / "out", []
        # Room for the trace, none for another checkpoint.
        space = Meanwhile(
            lambda: checkpoints_of(out), lambda: ballast.append(fill(disk, leave=100_000))
        )
        command = ["train", fault_recipe, "--out", str(out)]
        with space:
            assert cli.main(command) == 1
        said = capfd.readouterr().err
        last, troubles = newest(out)
        assert f"the disk of {out} is full" in said and "Make space" in said
        assert f"Lost is the work since step {last.at}. The last checkpoint is {last.path};" in said
        assert not troubles and last.at < 160
        for path in out.rglob("*.json"):
            if path.parent.parent.name != "train":  # Ray's own snapshot may be torn; nobody asks it
                json.loads(path.read_text())
        ballast[0].unlink()
        assert cli.main([*command, "--resume"]) == 0
        assert consumed(out) == planned(fault_recipe)
        np.testing.assert_allclose(losses(out), losses(undisturbed), rtol=1e-5)


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


@pytest.mark.slow
def test_a_shard_that_vanishes_ends_all_workers_with_advice(
    ray_cluster, tiny_data, fault_recipe, tmp_path, capfd
):
    """The worker that misses it first ends the others too, which wait for its gradients."""
    folder, out = tmp_path / "data", tmp_path / "out"
    folder.mkdir()
    for path in tiny_data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    shard, away = folder / "text-train-000001.tar", tmp_path / "away"
    command = ["train", fault_recipe, f"data_root={folder}", "train.steps=600", "--out", str(out)]
    with Meanwhile(lambda: step_of(out) >= 0, lambda: shard.rename(away)):
        assert cli.main(command) == 1
    said = capfd.readouterr().err
    assert f"{shard} has gone: put it back" in said
    assert "checkpoint" in said.partition("put it back")[2]
    away.rename(shard)
    assert cli.main([*command, "--resume"]) == 0
    assert consumed(out) == planned(fault_recipe, [f"data_root={folder}", "train.steps=600"])


@pytest.mark.slow
def test_training_waits_for_a_slow_shard_and_says_so(
    ray_cluster, tiny_data, fault_recipe, undisturbed, tmp_path, capfd
):
    with http_shards(tiny_data) as served:
        shard = "text-train-000001.tar"
        overrides = [f"data_root={served.url}"]
        recipe = yaml.safe_load(Path(fault_recipe).read_text())
        for spec in recipe["modalities"].values():
            for split in ("train", "test"):
                if split in spec:
                    spec[split] = spec[split].replace("-*.tar", "-{000000..000002}.tar")
        recipe["modalities"]["image"]["test"] = "image-test-{000000..000001}.tar"
        path, out = tmp_path / "recipe.yaml", tmp_path / "out"
        path.write_text(yaml.safe_dump(recipe))

        # The first reads of the streams trickle, the later ones come at once.
        begin = Meanwhile(lambda: (out / "train").is_dir(), lambda: served.trickle(shard))
        end = Meanwhile(lambda: served.trickled >= 2, lambda: served.trickle(None))
        with begin, end:
            assert cli.main(["train", str(path), *overrides, "--out", str(out)]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "s for text. A read takes long: " in said and f"{shard} (" in said, said
    assert "text is there again." in said
    assert said.count("s for text.") <= 3  # not every second
    assert metrics_of(out)["wait_seconds"]["text"] > 10
    assert consumed(out) == consumed(undisturbed)
    np.testing.assert_allclose(losses(out), losses(undisturbed), rtol=1e-5)


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
    assert "was left out, its loss or gradient was not finite (train.on_nan=skip)" in said
    assert "4 updates were left out" in said
    assert "4 updates were left out" in (out / "report.html").read_text()
    assert np.isfinite(losses(out)).all()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_with_advice(
    ray_cluster, wild_waves, tmp_path, capfd
):
    out = tmp_path / "out"
    command = ["train", wild_waves, "--out", str(out)]
    assert cli.main(command) == 1
    said, last = capfd.readouterr().err, newest(out)[0]
    assert "the loss became non-finite at step" in said and "train.on_nan=skip" in said
    assert last is None or f"The last checkpoint is {last.path};" in said
    assert not (out / "metrics.json").exists()
    assert cli.main([*command, "train.on_nan=skip", "--resume"]) == 0
    assert metrics_of(out)["skipped_updates"] == 4


# ------------------------------------------------------------------------------- MLflow


@pytest.mark.slow
def test_a_tracking_server_that_dies_in_mid_run_disturbs_nothing(
    ray_cluster, fault_recipe, undisturbed, tmp_path, capfd, monkeypatch
):
    from mlflow import MlflowClient

    server, out = MlflowServer(tmp_path), tmp_path / "out"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    try:
        server.start()
        with Meanwhile(lambda: step_of(out) >= 60, server.kill):
            assert cli.main(["train", fault_recipe, "--out", str(out)]) == 0
        said = " ".join(capfd.readouterr().err.split())
        assert "does not take events" in said
        assert "tracking events wait in" in said and "uml report" in said
        assert consumed(out) == planned(fault_recipe)
        np.testing.assert_allclose(losses(out), losses(undisturbed), rtol=1e-5)
        server.start()
        assert cli.main(["report", str(out)]) == 0
        client = MlflowClient(server.url)
        [experiment] = [e for e in client.search_experiments() if e.name == "faults"]
        [run] = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        kept = client.get_metric_history(run.info.run_id, "val_accuracy")
        history = metrics_of(out)["history"]
        assert [m.step for m in kept] == history["steps"]
        assert [m.value for m in kept] == pytest.approx(history["val_accuracy"])
        files = {f.path for f in client.list_artifacts(run.info.run_id)}
        assert {"recipe.yaml", "metrics.json", "report.html", "checkpoint"} <= files
    finally:
        server.kill()


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
