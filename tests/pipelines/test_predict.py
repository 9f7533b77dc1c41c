"""`uml predict`: every source gives the numbers of plain Python; bad samples are left out."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from pipelines import cli
from pipelines.running.lock import alone
from pipelines.sources.inputs import open_inputs
from pipelines.streams.shards import Sample, load_index, read_rows, write_shards
from uml_core.export import load, target_model
from uml_core.learner import UnpairedLearner
from uml_core.modalities import KINDS
from uml_core.specs import ModelSpec


def saved(folder: Path, kind: str, **options) -> Path:
    """An exported model with the weights before training."""
    modality = KINDS[kind](KINDS[kind].Options(**options))
    spec = ModelSpec(width=8, depth=1, heads=2)
    learner = UnpairedLearner({kind: modality}, spec, num_classes=3)
    classes = ("red", "green", "blue")
    target_model(
        kind, modality, spec, learner.state_dict(), classes, made_with={"run": "tiny"}
    ).save(folder)
    return folder


def predict(model: Path, source: object, out: Path, *more: str) -> tuple[dict, pa.Table]:
    assert cli.main(["predict", str(model), str(source), "--out", str(out), *more]) == 0
    parts = sorted((out / "predictions").glob("part-*.parquet"))
    table = pa.concat_tables([pq.read_table(part) for part in parts])
    return json.loads((out / "predict.json").read_text()), table


def matrix(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table.column(name).to_pylist(), dtype=np.float32)


@pytest.mark.ray
def test_shards_on_actors_and_files_here_give_what_plain_python_gives(
    ray_cluster, tiny_data, tmp_path, capsys
):
    model = saved(tmp_path / "model", "image", size=12)
    index = load_index("image-test-*.tar", str(tiny_data), "image")
    data = read_rows(index, range(len(index)))
    plain = load(model).predict(data)
    shards = str(tiny_data / "image-test-*.tar")
    result, table = predict(model, shards, tmp_path / "a", "--per-part", "8", "--actors", "2")
    assert table.num_rows == result["samples"] == result["labelled"] == 30
    assert table.column("key").to_pylist() == index.keys
    assert len(list((tmp_path / "a" / "predictions").iterdir())) == 4
    assert np.allclose(matrix(table, "probabilities"), plain.probabilities, atol=1e-6)
    assert np.allclose(matrix(table, "embedding"), plain.embeddings, atol=1e-5)
    assert table.column("prediction").to_pylist() == plain.classes
    truth = [("red", "green", "blue")[k] for k in index.labels]
    assert table.column("label").to_pylist() == truth
    right = 100 * np.mean([a == b for a, b in zip(truth, plain.classes, strict=True)])
    assert result["accuracy"] == pytest.approx(right)
    assert f"{right:.2f} % of 30" in capsys.readouterr().out

    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        (photos / f"{i}.png").write_bytes(data[i])
    _, table = predict(model, photos, tmp_path / "b", "--no-embeddings")
    assert table.column_names == ["key", "prediction", "probabilities"]
    assert table.column("key").to_pylist() == [f"{i}.png" for i in range(5)]
    assert np.allclose(matrix(table, "probabilities"), plain.probabilities[:5], atol=1e-6)

    rows = pa.table({"id": [f"r{i}" for i in range(7)], "input": data[:7]})
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=3)
    _, table = predict(model, tmp_path / "rows.parquet", tmp_path / "c", "--per-part", "4")
    assert table.column("key").to_pylist() == [f"r{i}" for i in range(7)]
    assert np.allclose(matrix(table, "probabilities"), plain.probabilities[:7], atol=1e-6)


def test_texts_and_numbers_of_parquet(tmp_path):
    model = saved(tmp_path / "text", "text", vocab=64)
    texts = ["a red thing", "something blue", "green"]
    pq.write_table(pa.table({"caption": texts, "key": ["x", "y", "z"]}), tmp_path / "t.parquet")
    _, table = predict(model, tmp_path / "t.parquet", tmp_path / "a")
    assert np.allclose(
        matrix(table, "probabilities"), load(model).predict(texts).probabilities, atol=1e-6
    )
    model = saved(tmp_path / "vector", "vector", dim=4)
    numbers = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    pq.write_table(pa.table({"features": list(numbers)}), tmp_path / "v.parquet")
    _, table = predict(model, tmp_path / "v.parquet", tmp_path / "b")
    assert np.allclose(
        matrix(table, "probabilities"), load(model).predict(numbers).probabilities, atol=1e-6
    )


def test_bad_samples_are_left_out_and_a_stopped_job_goes_on(tmp_path, capsys):
    samples = []
    for i in range(12):
        stream = io.BytesIO()
        np.save(stream, np.full(4, i, np.float32) if i != 7 else np.full(3, 1, np.float32))
        samples.append(Sample(f"s{i}", "npy", stream.getvalue(), i % 3))
    write_shards(samples, str(tmp_path / "data"), "v-test", "vector")
    model = saved(tmp_path / "model", "vector", dim=4)
    out = tmp_path / "out"
    source = str(tmp_path / "data" / "*.tar")
    strict = ["--per-part", "3", "--quarantine-budget", "0"]
    assert cli.main(["predict", str(model), source, "--out", str(out), *strict]) == 1
    assert "s7" in capsys.readouterr().err
    assert (out / "predictions" / "part-000000.parquet").exists()
    assert not (out / "predict.json").exists()

    (out / "predictions" / "part-000000.parquet").write_bytes(b"mark")  # done: not made again
    assert cli.main(["predict", str(model), source, "--out", str(out), "--per-part", "2"]) == 2
    assert "already holds" in capsys.readouterr().err
    args = ["--out", str(out), "--resume"]
    assert cli.main(["predict", str(model), source, *args, "--per-part", "2"]) == 2
    assert "per_part was 3 and is 2" in capsys.readouterr().err
    assert cli.main(["predict", str(model), source, *args, "--per-part", "3"]) == 0
    result = json.loads((out / "predict.json").read_text())
    assert result["samples"] == 11 and result["quarantined"] == 1
    line = json.loads((out / "quarantine.jsonl").read_text().splitlines()[0])
    assert line["key"] == "s7" and "not 4" in line["error"]
    keys = []
    for path in sorted((out / "predictions").iterdir()):
        if path.read_bytes() != b"mark":
            keys += pq.read_table(path).column("key").to_pylist()
    assert [k for k in keys if int(k[1:]) > 2] == [f"s{i}" for i in range(3, 12) if i != 7]


def test_what_cannot_be_read_is_told_before_ray_starts(tmp_path, tiny_data, capsys):
    model = saved(tmp_path / "model", "image", size=12)
    for source, said in (
        (tmp_path / "none", "there is no"),
        (tiny_data / "text-train-*.tar", "no image sample"),
        (tmp_path / "model", "no image file"),
    ):
        assert cli.main(["predict", str(model), str(source), "--out", str(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["predict", str(tiny_data), str(tiny_data)]) == 2
    assert "no exported model" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_job_goes_on_with_the_same_model_and_data_only(tmp_path, capsys):
    """Rows of two models, or of two sources, would lie side by side in one folder."""

    def numbers(folder: Path, shift: float) -> None:
        samples = []
        for i in range(6):
            stream = io.BytesIO()
            np.save(stream, np.full(4, i + shift, np.float32))
            samples.append(Sample(f"s{i}", "npy", stream.getvalue(), i % 3))
        write_shards(samples, str(folder), "v-test", "vector")

    numbers(tmp_path / "data", 0)
    numbers(tmp_path / "other", 1)
    model = saved(tmp_path / "model", "vector", dim=4)
    args = ["--out", str(tmp_path / "out"), "--per-part", "3"]
    assert cli.main(["predict", str(model), str(tmp_path / "data"), *args]) == 0
    shutil.copytree(model, tmp_path / "moved")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    again = ["predict", str(tmp_path / "moved"), str(tmp_path / "copy"), *args, "--resume"]
    assert cli.main(again) == 0
    capsys.readouterr()
    again[2] = str(tmp_path / "other")
    assert cli.main(again) == 2
    assert "data was" in capsys.readouterr().err
    again[2] = str(tmp_path / "data")
    weights = load_file(tmp_path / "moved" / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, tmp_path / "moved" / "model.safetensors")
    assert cli.main(again) == 2
    said = capsys.readouterr().err
    assert "model was" in said and "data was" not in said
    with alone(tmp_path / "out"):
        assert cli.main(["predict", str(model), *again[2:]]) == 2
    assert "another job is at work" in capsys.readouterr().err


def test_files_and_parquet_that_change_are_other_data(tmp_path):
    photos, rows = tmp_path / "photos", tmp_path / "rows.parquet"
    photos.mkdir()
    for name in "ab":
        (photos / f"{name}.png").write_bytes(b"0123456789")
    pq.write_table(pa.table({"input": [b"x", b"y"]}), rows)
    for source, file in ((photos, photos / "a.png"), (rows, rows)):
        first = open_inputs(str(source), "image").fingerprint
        assert open_inputs(str(source), "image").fingerprint == first
        os.utime(file, (1, 1))
        assert open_inputs(str(source), "image").fingerprint != first
    first = open_inputs(str(photos), "image").fingerprint
    (photos / "b.png").rename(photos / "c.png")
    assert open_inputs(str(photos), "image").fingerprint != first
