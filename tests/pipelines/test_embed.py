"""`uml embed`: feature shards of the same samples, whole also after a stop, usable by every job."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import ray
from tiny_encoders import bert, vit

from pipelines import cli
from pipelines.running.lock import alone
from pipelines.streams.shards import Sample, load_index, read_rows, write_classes, write_shards
from uml_core.encoders import locate, open_encoder
from uml_core.encoders.base import Wanted
from uml_core.export import load
from uml_core.modalities.common import load_array


def arrays(index) -> list[np.ndarray]:
    return [load_array(data, "npy")[0] for data in read_rows(index, range(len(index)))]


def encoded(folder, kind, index, **wanted) -> list[np.ndarray]:
    """Straight from the encoder, one by one."""
    encoder = open_encoder(locate(str(folder)), kind, Wanted(**wanted))
    data = read_rows(index, range(len(index)))
    return [encoder.encode([encoder.decode(one)])[0].numpy() for one in data]


def embed(data, out, encoder, modality, *more: str) -> int:
    arguments = ["--encoder", str(encoder), "--modality", modality, "--out", str(out), *more]
    return cli.main(["embed", str(data), *arguments])


@pytest.mark.ray
def test_features_on_actors_are_the_encoders_own(ray_cluster, tiny_data, tmp_path, capsys):
    folder, out = vit(tmp_path / "vit"), tmp_path / "out"
    more = ["--per-part", "13", "--actors", "2", "--json"]
    assert embed(tiny_data, out, folder, "image", *more) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == {"test": 30, "train": 48}
    for split in ("train", "test"):
        raw = load_index(f"image-{split}-*.tar", str(tiny_data), "image")
        made = load_index(f"image-{split}-*.tar", str(out), "vector")
        assert made.keys == raw.keys and made.labels.tolist() == raw.labels.tolist()
        assert made.sources == raw.sources and made.classes == raw.classes
        assert np.allclose(arrays(made), encoded(folder, "image", raw), atol=1e-5)
        about = made.encoder
        assert about["pooling"] == "cls" and about["width"] == 32
        assert about["preprocessing"]["image_std"] == [0.4, 0.5, 0.6]
        assert about["weights_sha256"] == locate(str(folder)).weights_sha256()
    assert len(list(out.glob("image-train-*.tar"))) == 4
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert cli.main(["verify", str(out), "--out", str(tmp_path / "verified")]) == 0


@pytest.mark.ray
def test_nodes_are_named_by_their_labels(ray_cluster, tiny_data, tmp_path, capsys):
    folder, out = vit(tmp_path / "vit"), tmp_path / "out"
    assert embed(tiny_data, out, folder, "image", "--nodes", "uml-role=nowhere") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no node of this Ray has these labels" in said and "--labels=uml-role=nowhere" in said
    assert embed(tiny_data, out, folder, "image", "--resume", "--nodes", "data") == 2
    assert "write LABEL=VALUE" in " ".join(capsys.readouterr().err.split())
    [node] = ray.nodes()
    there = f"ray.io/node-id={node['Labels']['ray.io/node-id']}"
    assert embed(tiny_data, out, folder, "image", "--resume", "--nodes", there) == 0
    assert len(load_index("image-train-*.tar", str(out), "vector").keys) == 48


def test_series_of_texts_in_half_precision(tiny_data, tmp_path):
    folder, out = bert(tmp_path / "bert"), tmp_path / "out"
    assert embed(tiny_data, out, folder, "text", "--tokens", "--dtype", "float16") == 0
    raw = load_index("text-test-*.tar", str(tiny_data), "text")
    made = load_index("text-test-*.tar", str(out), "sequence")
    for ours, theirs in zip(
        arrays(made), encoded(folder, "text", raw, output="tokens"), strict=True
    ):
        assert ours.shape == theirs.shape and np.allclose(ours, theirs, atol=2e-3)
    assert np.load(__import__("io").BytesIO(read_rows(made, [0])[0])).dtype == np.float16


def test_a_stopped_job_goes_on_and_bad_samples_are_told(tmp_path, tiny_data, capsys):
    data, folder, out = tmp_path / "data", vit(tmp_path / "vit"), tmp_path / "out"
    raw = load_index("image-train-*.tar", str(tiny_data), "image")
    good = read_rows(raw, range(20))
    samples = [Sample(f"s{i:02d}", "png", d if i != 9 else b"x", i % 3) for i, d in enumerate(good)]
    write_shards(samples, str(data), "image-train", "image")
    write_classes(str(data), ["red", "green", "blue"])
    strict = ["--per-part", "4", "--quarantine-budget", "0"]
    assert embed(data, out, folder, "image", *strict) == 1
    assert "s09" in capsys.readouterr().err
    assert not list(out.glob("*.tar")) and not (out / "index.json").exists()

    stage = out / ".uml-embed-image"
    first = stage / "image-train-000000.tar"
    before = first.stat().st_mtime_ns
    assert embed(data, out, folder, "image", "--per-part", "4") == 2
    assert "--resume" in capsys.readouterr().err
    assert embed(data, out, folder, "image", "--resume", "--per-part", "5") == 2
    assert "per_part was 4 and is 5" in capsys.readouterr().err
    assert embed(data, out, folder, "image", "--resume", "--per-part", "4") == 0
    assert (out / first.name).stat().st_mtime_ns == before  # what was done was not done again
    made = load_index("image-train-*.tar", str(out), "vector")
    assert made.keys == [f"s{i:02d}" for i in range(20) if i != 9]
    assert json.loads((out / "quarantine.jsonl").read_text())["key"] == "s09"
    assert not stage.exists()
    whole = tmp_path / "whole"
    with alone(whole):
        assert embed(data, whole, folder, "image", "--per-part", "4") == 2
    assert "another job is at work" in capsys.readouterr().err
    assert embed(data, whole, folder, "image", "--per-part", "4") == 0
    for path in whole.glob("*.tar"):
        assert path.read_bytes() == (out / path.name).read_bytes()

    assert embed(data, out, folder, "image") == 2
    assert "already holds features" in capsys.readouterr().err


def test_what_is_wrong_is_told_and_nothing_is_written(tiny_data, tmp_path, capsys):
    folder, out = vit(tmp_path / "vit"), tmp_path / "out"
    for arguments, said in (
        ((tiny_data, out, folder, "text"), "cannot be opened as an encoder of text"),
        ((tiny_data, out, folder, "wave"), "no picture, text or sound"),
        ((tiny_data, out, folder, "imag"), "did you mean 'image'"),
        ((tiny_data, out, tmp_path, "image"), "config.json"),
        ((tmp_path / "vit", out, folder, "image"), "holds no tar"),
        ((tiny_data, out, folder, "image", "--pooling", "pooler", "--actors", "0"), "--actors"),
    ):
        assert embed(*arguments) == 2, said
        assert said in capsys.readouterr().err
    assert cli.main(["embed", str(tiny_data), "--encoder", str(folder)]) == 2
    assert "choose one with --modality" in capsys.readouterr().err
    assert embed(tiny_data, out, folder, "image", "--dry-run") == 0
    assert "48 samples of kind image" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_from_pictures_to_predictions(ray_cluster, tiny_data, tmp_path, write_recipe, capsys):
    """embed, compare, export; predict gives the same over features and over the raw pictures."""
    features, run, model = tmp_path / "features", tmp_path / "run", tmp_path / "model"
    image, text = vit(tmp_path / "vit"), bert(tmp_path / "bert")
    assert embed(tiny_data, features, image, "image", "--dtype", "float16") == 0
    assert embed(tiny_data, features, text, "text") == 0
    recipe = {
        "name": "frozen",
        "target": "image",
        "shots": 4,
        "data_root": str(features),
        "modalities": {
            "image": {"kind": "vector", "train": "image-train-*.tar", "test": "image-test-*.tar"},
            "text": {"kind": "vector", "train": "text-train-*.tar"},
        },
        "model": {"width": 16, "trunk": "none", "heads": 1},
        "train": {"steps": 12, "batch_size": 8, "validate_every": 4, "device": "cpu"},
        "seeds": [0, 1],
    }
    assert cli.main(["compare", write_recipe(recipe), "--out", str(run)]) == 0
    assert cli.main(["export", str(run), "--out", str(model)]) == 0
    assert load(model).encoder["name"] == "transformers:vit"
    results = []
    for source, more in ((features, []), (tiny_data, ["--encoder", str(image)])):
        out = tmp_path / f"predicted-{len(results)}"
        test = str(source / "image-test-*.tar")
        arguments = ["predict", str(model), test, "--out", str(out), *more, "--json"]
        capsys.readouterr()
        assert cli.main(arguments) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0]["accuracy"] == pytest.approx(load(model).made_with["test_accuracy"])

    other = tmp_path / "other"
    shutil.copytree(features, other)
    for path in other.glob("image-test-*"):
        path.unlink()
    assert embed(tiny_data, tmp_path / "mean", image, "image", "--pooling", "mean") == 0
    recipe["modalities"]["image"]["test"] = str(tmp_path / "mean" / "image-test-*.tar")
    assert cli.main(["compare", write_recipe(recipe), "--dry-run"]) == 2
    assert "different encoders or settings" in capsys.readouterr().err
