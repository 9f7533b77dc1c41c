from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipelines import cli
from pipelines.sources import parallel
from pipelines.streams import gaps
from pipelines.streams.shards import Sample, write_classes, write_shards


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def wav(seed: int) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 0.1, 800)
    soundfile.write(out, noise, 8000, format="WAV")
    return out.getvalue()


def npy(seed: int, width: int = 3) -> bytes:
    out = io.BytesIO()
    np.save(out, np.random.default_rng(seed).normal(size=(5, width)).astype(np.float32))
    return out.getvalue()


def images(folder: Path, split: str, seeds: range, **fields: Any) -> Path:
    samples = [
        Sample(f"k{seed}", "png", png(seed), seed % 2, fields.get("source", "pic{}").format(seed))
        for seed in seeds
    ]
    return Path(write_shards(samples, str(folder), f"image-{split}", "image")[0])


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A clean data set: images in two splits and a few sounds."""
    folder = tmp_path / "data"
    images(folder, "train", range(10))
    images(folder, "test", range(100, 104))
    sounds = [Sample(f"s{i}", "wav", wav(i), i % 2, f"take{i}") for i in range(4)]
    write_shards(sounds, str(folder), "audio-train", "audio")
    write_classes(str(folder), ["cat", "dog"])
    return folder


def verify(tmp_path: Path, *words: object) -> tuple[int, dict[str, Any]]:
    """(exit code, verify.json)."""
    number = sum(1 for _ in tmp_path.glob("report*"))
    out = tmp_path / f"report{number}"
    code = cli.main(["verify", *map(str, words), "--out", str(out)])
    path = out / "verify.json"
    return code, json.loads(path.read_text()) if path.exists() else {}


def widest(shown: str) -> int:
    """Characters of the widest line; paths are never broken and do not count."""
    return max(len(line) for line in shown.splitlines() if not line.startswith("Details:"))


def causes(report: dict[str, Any]) -> list[tuple[str, str | None, str]]:
    return [(Path(p["shard"]).name, p["key"], p["cause"]) for p in report["problems"]]


def test_clean_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in data.iterdir()}
    code, report = verify(tmp_path, data)
    assert (code, report["clean"], report["problems"]) == (0, True, [])
    train = report["modalities"]["image"]["train"]
    assert (train["samples"], train["shards"], train["kind"]) == (10, 1, "image")
    assert train["class_histogram"] == {"cat": 5, "dog": 5}
    assert report["classes"] == ["cat", "dog"]
    assert report["overlap"]["image"]["test"] == 4 and report["shared_sources"] == []
    assert before == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in data.iterdir()}
    shown = capsys.readouterr().out
    assert "No problem found" in shown and widest(shown) <= 80


def test_a_folder_whose_name_looks_like_a_pattern(data: Path, tmp_path: Path) -> None:
    code, report = verify(tmp_path, data.rename(tmp_path / "a[1]{x}*"))
    assert (code, report["classes"]) == (0, ["cat", "dog"])


@pytest.mark.ray
def test_on_ray_data_the_report_is_the_same(
    ray_cluster: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "image-train-000000.tar").write_bytes(b"torn")
    code, plain = verify(tmp_path, data)
    assert code == 2 and causes(plain)[0][0] == "image-train-000000.tar"
    monkeypatch.setattr(parallel, "SMALL", -1)
    monkeypatch.chdir(tmp_path)  # tasks have another working directory
    assert verify(tmp_path, "data") == (code, plain)


def test_problems_of_members_are_told_with_shard_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [
        ("good.png", png(1)),
        ("good.cls", b"0"),
        ("torn.png", png(2)[:70]),
        ("torn.cls", b"0"),
        ("void.png", b""),
        ("words.cls", b"1"),
        ("split.png", png(3)),
        ("other.png", png(4)),
        ("split.cls", b"1"),
        ("twice.png", png(5)),
        ("twice.png", png(6)),
        ("label.png", png(7)),
        ("label.cls", b"cat"),
        ("extra.png", png(8)),
        ("extra.boxes", b"1 2 3 4"),
    ]
    tar(tmp_path / "d" / "image-train-000000.tar", members)
    code, report = verify(tmp_path, tmp_path / "d")
    found = {key: cause for _, key, cause in causes(report)}
    assert code == 2 and not report["clean"]
    assert set(found) == {"torn", "void", "words", "split", "twice", "label"}
    assert "cannot be decoded" in found["torn"]
    assert ".png is empty" in found["void"]
    assert "has no member with suffix png" in found["words"]
    assert "not next to each other" in found["split"]
    assert "two .png members" in found["twice"]
    assert ".cls cannot be used" in found["label"]
    assert report["warnings"][0] == "members that nothing reads: 1 .boxes"
    assert "3 of 6 samples have no label" in report["warnings"][1]
    shown = capsys.readouterr().out
    assert "6 problems" in shown and widest(shown) <= 80


def test_a_cut_tar_and_one_that_is_none(data: Path, tmp_path: Path) -> None:
    whole = (data / "image-train-000000.tar").read_bytes()
    (data / "image-train-000000.tar").write_bytes(whole[: len(whole) // 2])
    (data / "image-test-000000.tar").write_bytes(b"<html>not found</html>")
    code, report = verify(tmp_path, data)
    found = [(shard, cause) for shard, _, cause in causes(report)]
    assert code == 2
    assert any(s == "image-train-000000.tar" and "cut off" in c for s, c in found)
    assert any(s == "image-test-000000.tar" for s, c in found)
    assert any("the file has changed since it was indexed" in c for _, c in found)
    assert report["modalities"]["audio"]["train"]["samples"] == 4


def test_index_json_is_held_against_the_tars(data: Path, tmp_path: Path) -> None:
    path = data / "index.json"
    index = json.loads(path.read_text())
    shards = index["shards"]
    shards["image-train-000000.tar"]["offsets"][3] += 512
    shards["image-train-000000.tar"]["samples"] = 11
    shards["image-test-000000.tar"]["keys"] = "nonsense"
    shards["gone.tar"] = dict(shards["audio-train-000000.tar"])
    del shards["audio-train-000000.tar"]
    path.write_text(json.dumps(index))
    code, report = verify(tmp_path, data)
    assert code == 2
    assert {(shard, cause) for shard, _, cause in causes(report)} == {
        ("image-train-000000.tar", "index.json: samples differ from the tar"),
        ("image-train-000000.tar", "index.json: offsets differ from the tar"),
        (
            "image-test-000000.tar",
            "index.json: its entry is malformed: remove index.json, it is built again",
        ),
        ("gone.tar", gaps.LISTED),
    }
    assert len(report["warnings"]) == 1 and "is not in index.json" in report["warnings"][0]


def test_holes_and_copies_are_notes(tmp_path: Path) -> None:
    pictures(tmp_path / "d" / "image-train-0.tar", range(4))
    (tmp_path / "d" / "image-train-2.tar").write_bytes(
        (tmp_path / "d" / "image-train-0.tar").read_bytes()
    )
    code, report = verify(tmp_path, tmp_path / "d")
    assert code == 0 and "such as image-train-1.tar" in report["warnings"][0]
    assert "image-train-2.tar holds the same as image-train-0.tar" in report["warnings"][1]


def test_labels_beyond_the_class_list_and_empty_classes(data: Path, tmp_path: Path) -> None:
    (data / "classes.json").write_text('["cat"]')
    code, report = verify(tmp_path, data)
    assert code == 2 and len(report["problems"]) == 9  # every second sample of 18
    assert ("image-test-000000.tar", "k101", "label 1 is out of range: classes 0 to 0") in causes(
        report
    )
    (data / "classes.json").write_text('["cat", "dog", "cow"]')
    code, report = verify(tmp_path, data)
    assert code == 0
    assert report["warnings"] == [
        f"{name}: no training sample of 1 classes, e.g. 'cow'" for name in ("audio", "image")
    ]
    (data / "classes.json").write_text('{"cat": 0}')
    code, report = verify(tmp_path, data)
    ((name, _, cause),) = causes(report)
    assert name == "classes.json" and cause.endswith('as a list: ["cat"]')


def test_class_lists_that_disagree(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_shards([Sample("t", "txt", b"purr", 0)], str(other), "text-train", "text")
    write_classes(str(other), ["dog", "cat"])
    code, report = verify(tmp_path, data, other)
    assert code == 2 and "class 0 is 'cat' in audio (train)" in report["problems"][0]["cause"]


def test_content_of_the_test_split_in_train(data: Path, tmp_path: Path) -> None:
    images(data, "test", range(9, 14))
    code, report = verify(tmp_path, data)
    assert code == 2
    (problem,) = report["problems"]
    assert problem["shard"] == "image" and "1 of 5 test samples (20.0%)" in problem["cause"]
    assert report["overlap"]["image"]["examples"] == [["k9", "k9"]]


def pictures(path: Path, seeds: range, labels: int = 2, first: int = 0) -> Path:
    """Foreign shard of pictures with labels first, first + 1, ..."""
    members = [
        (f"{i:04d}.{suffix}", data)
        for i, seed in enumerate(seeds)
        for suffix, data in (("png", png(seed)), ("cls", str(first + i % labels).encode()))
    ]
    return tar(path, members)


@pytest.mark.parametrize(
    ("train", "held", "split"),
    [
        ("train-000.tar", "test-000.tar", "test"),
        ("train/0.tar", "test/0.tar", "test"),
        ("photo-train-0.tar", "photo-validation-0.tar", "val"),
        ("photo-train-0.tar", "pics-test-0.tar", "test"),  # names that do not agree
    ],
)
def test_leaks_are_seen_however_the_splits_are_named(
    tmp_path: Path, train: str, held: str, split: str
) -> None:
    pictures(tmp_path / "d" / train, range(10))
    pictures(tmp_path / "d" / held, range(6, 14))
    code, report = verify(tmp_path, tmp_path / "d")
    (problem,) = report["problems"]
    assert code == 2 and f"4 of 8 {split} samples (50.0%) also occur" in problem["cause"]


def test_numbered_shards_are_one_set_whose_split_is_asked_for(tmp_path: Path) -> None:
    for i in range(3):
        pictures(tmp_path / "d" / f"{i:05d}.tar", range(10 * i, 10 * i + 4))
        (tmp_path / "d" / f"{i:05d}_stats.json").write_text("{}")
    code, report = verify(tmp_path, tmp_path / "d")
    assert code == 0 and "tell no split" in report["warnings"][0]
    assert report["modalities"]["image"]["all"]["samples"] == 12
    _, report = verify(tmp_path, tmp_path / "d", "--split", "test")
    assert list(report["modalities"]["image"]) == ["test"] and report["warnings"] == []
    pictures(tmp_path / "d" / "train-0.tar", range(50, 54))
    code, report = verify(tmp_path, tmp_path / "d")
    assert code == 2 and "3 of the shards of image tell no split" in causes(report)[0][2]


def test_a_cause_is_told_once_with_its_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [
        (f"{i}.{suffix}", data)
        for i in range(30)
        for suffix, data in (("png", png(i)), ("jpg", png(i)), ("cls", b"0"))
    ]
    tar(tmp_path / "d" / "image-train-0.tar", members)
    code, report = verify(tmp_path, tmp_path / "d")
    assert code == 2 and len(report["problems"]) == 30
    (cause,) = report["causes"]
    assert (cause["count"], cause["key"]) == (30, "0") and "member: jpg" in cause["cause"]
    shown = capsys.readouterr().out
    assert shown.count("say which") == 1 and widest(shown) <= 80
    code, report = verify(tmp_path, tmp_path / "d", "--member", "jpg")
    assert code == 0 and report["modalities"]["image"]["train"]["samples"] == 30


def test_what_is_called_a_shard_and_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    pictures(folder / "image-train-0.tar", range(4))
    (folder / "image-train-1.tar").symlink_to(tmp_path / "gone.tar")
    (folder / "image-train-2.tar.gz").write_bytes(b"")
    (folder / "image-train-3.tar.part").write_bytes(b"")
    (folder / "._image-train-0.tar").write_bytes(b"AppleDouble")
    code, report = verify(tmp_path, folder)
    found = {shard: cause for shard, _, cause in causes(report)}
    assert code == 2 and len(found) == 3
    assert "which is not there" in found["image-train-1.tar"]
    assert "gunzip" in found["image-train-2.tar.gz"]
    assert "unfinished" in found["image-train-3.tar.part"]


def test_labels_that_are_ids_or_count_from_one(tmp_path: Path) -> None:
    pictures(tmp_path / "one" / "image-train-0.tar", range(6), first=1)
    code, report = verify(tmp_path, tmp_path / "one")
    assert code == 2 and "start at 1: class 0 has no sample" in causes(report)[0][2]
    write_classes(str(tmp_path / "one"), ["cat", "dog"])
    _, report = verify(tmp_path, tmp_path / "one")
    assert any("count from 1" in cause for _, _, cause in causes(report))
    pictures(tmp_path / "ids" / "image-train-0.tar", range(6), first=200_000_000)
    code, report = verify(tmp_path, tmp_path / "ids")
    assert code == 2 and "the labels are ids" in causes(report)[0][2]


def test_equal_texts_are_told_but_no_problem(tmp_path: Path) -> None:
    for split in ("train", "test"):
        words = [Sample(f"w{i}", "txt", w, 0) for i, w in enumerate((b"a cat", split.encode()))]
        write_shards(words, str(tmp_path / "d"), f"text-{split}", "text")
    code, report = verify(tmp_path, tmp_path / "d")
    assert code == 0 and "text: 1 of 2 test samples" in report["warnings"][0]


def test_pairs_in_disguise(data: Path, tmp_path: Path) -> None:
    sounds = [Sample(f"s{i}", "wav", wav(i + 50), 0, f"pic{i}") for i in range(4)]
    write_shards(sounds, str(data), "audio-train", "audio")
    code, report = verify(tmp_path, data)
    (problem,) = report["problems"]
    assert code == 2 and "audio and image share 4 sources (100%" in problem["cause"]


def test_kinds_are_told_by_index_name_and_content(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write_shards([Sample("a", "npy", npy(0), 0)], str(folder), "pen-train", "sequence")
    write_shards([Sample("a", "npy", npy(1)[:-12], 0)], str(folder), "image-train", "sequence")
    (folder / "index.json").rename(tmp_path / "index.json")
    tar(folder / "text-train-0.tar", [("a.txt", b"word"), ("a.npy", npy(2))])
    tar(folder / "scans.tar", [("a.json", b"{}"), ("a.jpg", png(0))])
    code, report = verify(tmp_path, folder, "--dry-run")
    (folder / "image-train-000000.tar").unlink()
    tar(folder / "vague-train-0.tar", [("a.json", b"{}")])
    code, report = verify(tmp_path, folder)
    kinds = {n: {p: f["kind"] for p, f in s.items()} for n, s in report["modalities"].items()}
    assert kinds == {
        "pen": {"train": "sequence"},
        "text": {"train": "text"},
        "scans": {"all": "image"},
    }
    assert causes(report) == [
        ("vague-train-0.tar", None, "no member tells its kind, only .json: give --kind")
    ]
    (tmp_path / "index.json").rename(folder / "index.json")
    code, report = verify(tmp_path, folder / "pen-train-000000.tar")
    assert code == 2  # the index also lists the shard that was removed
    code, report = verify(tmp_path, folder / "pen-train-000000.tar", "--kind", "vector")
    assert "is not one vector" in report["problems"][0]["cause"]


def test_samples_of_unequal_width(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write_shards([Sample("a", "npy", npy(0), 0)], str(folder), "pen-train", "sequence")
    write_shards([Sample("b", "npy", npy(1, 4), 0)], str(folder), "pen-test", "sequence")
    code, report = verify(tmp_path, folder)
    assert code == 2
    assert causes(report) == [("pen-test-000000.tar", "b", "a step holds 4 numbers, not 3")]


def test_the_caps_of_a_recipe_decide(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: mine\ntarget: image\ndata_root: data\nmodalities:\n"
        "  image: {kind: image, train: image-train-*.tar, test: image-test-*.tar}\n"
        "  audio: {kind: audio, train: audio-train-*.tar}\n"
    )
    assert verify(tmp_path, recipe)[0] == 0
    code, report = verify(tmp_path, recipe, "modalities.image.max_pixels=63")
    assert code == 2 and len(report["problems"]) == 14
    assert verify(tmp_path, recipe, "modalities.audio.train=sound-*.tar") == (2, {})


def test_overlap_within_what_the_recipe_allows(data: Path, tmp_path: Path) -> None:
    images(data, "test", range(9, 14))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: mine\ntarget: image\ndata_root: data\nmodalities:\n"
        "  image: {kind: image, train: image-train-*.tar, test: image-test-*.tar}\n"
    )
    assert verify(tmp_path, recipe)[0] == 2
    assert verify(tmp_path, recipe, "allow_overlap=0.2")[0] == 0


def test_bad_requests(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, tmp_path / "dota") == (2, {})
    assert "no file" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    assert verify(tmp_path, tmp_path / "full") == (2, {})
    assert "holds no tar" in capsys.readouterr().err
    (tmp_path / "full" / "x").write_text("mine")
    assert cli.main(["verify", str(data), "--out", str(tmp_path / "full")]) == 2
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["x"]


def test_json_on_the_screen_is_the_report(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report = verify(tmp_path, data, "--json")
    assert json.loads(capsys.readouterr().out) == report


def damaged(folder: Path) -> None:
    """Foreign shards of images and texts, good samples among every kind of damage."""
    members: list[tuple[str, bytes]] = []
    for seed in range(24):
        members += [(f"good{seed}.png", png(seed)), (f"good{seed}.cls", str(seed % 2).encode())]
    large = io.BytesIO()
    Image.new("RGB", (40, 40)).save(large, "PNG")
    bad = {
        "torn": png(90)[:70],
        "noise": b"\x89PNG but no picture",
        "void": b"",
        "large": large.getvalue(),
        "label": png(91),
        "torn2": png(92)[:70],
    }
    for key, data in bad.items():
        members += [(f"{key}.png", data), (f"{key}.cls", b"cat" if key == "label" else b"1")]
    members += [("alone.cls", b"0"), ("good0.png", png(0))]
    tar(folder / "image-train-0.tar", members[:40])
    cut = tar(folder / "image-train-1.tar", members[40:])
    cut.write_bytes(cut.read_bytes()[: -tarfile.RECORDSIZE])
    tests = [(f"t{i}.{s}", d) for i in range(6) for s, d in (("png", png(200 + i)), ("cls", b"0"))]
    tests += [("bad.png", b"no picture"), ("bad.cls", b"1"), ("more.png", png(300))]
    tar(folder / "image-test-0.tar", tests)
    texts = [(f"w{i}.{s}", d) for i in range(20) for s, d in (("txt", b"a word"), ("cls", b"1"))]
    texts += [
        ("bytes.txt", b"\xff\xfe"),
        ("bytes.cls", b"0"),
        ("dots.txt", b"..."),
        ("dots.cls", b"1"),
    ]
    tar(folder / "text-train-0.tar", texts)


@pytest.mark.ray
def test_verify_finds_beforehand_what_a_run_quarantines(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged(tmp_path / "data")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: mine\ntarget: image\ndata_root: data\nquarantine_budget: 0.6\nseeds: [0]\n"
        "modalities:\n"
        "  image: {kind: image, size: 8, max_pixels: 1000,\n"
        "    train: image-train-*.tar, test: image-test-*.tar}\n"
        "  text: {kind: text, train: text-train-0.tar}\n"
        "train: {steps: 12, batch_size: 8, workers: 1, device: cpu}\n"
    )
    monkeypatch.setattr(parallel, "SMALL", -1)  # on Ray Data
    code, report = verify(tmp_path, recipe)
    lost = {(p["shard"], p["key"], p["cause"]) for p in report["problems"] if p["lost"]}
    assert code == 2 and len(lost) == 11
    assert {key for _, key, _ in lost} == {
        *("torn", "noise", "void", "large", "label", "torn2", "alone", None),
        *("bad", "bytes", "dots"),
    }
    out = tmp_path / "run"
    assert cli.main(["train", str(recipe), "shots=null", "--out", str(out)]) == 0
    lines = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    found = {(line["url"], line["key"], line["error"]) for line in lines}
    assert found == lost
    environment = json.loads((out / "environment.json").read_text())
    assert environment["quarantined"] == len({(url, key) for url, key, _ in found})


@pytest.mark.slow
def test_real_recordings_are_clean(real_data: Path, tmp_path: Path) -> None:
    code, report = verify(tmp_path, real_data / "digits")
    assert (code, report["problems"], report["shared_sources"]) == (0, [], [])
    samples = {n: s["train"]["samples"] for n, s in report["modalities"].items()}
    assert samples == {"audio": 2700, "image": 10000, "pen": 2000, "text": 1546}
