from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipelines import cli, prepare
from pipelines.prepare import ensure_world
from pipelines.running.lock import alone
from pipelines.sources import parallel
from pipelines.sources.packing import draw_test
from pipelines.streams.index import scan_shard
from pipelines.streams.shards import (
    Index,
    Sample,
    load_index,
    read_rows,
    write_index,
    write_shard,
)
from uml_core.errors import RunError, UserError
from uml_core.specs import WorldSpec


def png(seed: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def make_photos(root: Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 10) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            (root / name / f"p{i}.png").write_bytes(png(100 * c + i))
    return root


def make_texts(path: Path, rows: list[tuple[str, ...]], head: tuple[str, ...]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def uml(*words: object) -> int:
    return cli.main([str(word) for word in words])


def problems(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def index(folder: Path, modality: str, split: str, kind: str) -> Index:
    return load_index(f"{modality}-{split}-*.tar", str(folder), kind)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


# ---------------------------------------------------------------------------------- own data


def test_class_folders_become_stratified_splits(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert uml("prepare", photos, "--out", out, "--test-share", 0.3) == 0
    train, test = (index(out, "image", split, "image") for split in ("train", "test"))
    assert train.classes == ("cat", "dog")
    assert np.bincount(train.labels).tolist() == [7, 7]
    assert np.bincount(test.labels).tolist() == [3, 3]
    for part in (train, test):
        for row, data in enumerate(read_rows(part, range(len(part)))):
            source = part.sources[row]
            assert data == (photos / f"{source}.png").read_bytes()
            assert source.split("/")[0] == part.classes[part.labels[row]]
    assert not set(train.sources) & set(test.sources)
    assert sorted(json.loads((out / "index.json").read_text())["shards"]) == [
        "image-test-000000.tar",
        "image-train-000000.tar",
    ]


def test_classes_are_mixed_within_a_shard(photos: Path, tmp_path: Path) -> None:
    uml("prepare", photos, "--out", tmp_path / "out", "--split", "train", "--per-shard", 10)
    train = index(tmp_path / "out", "image", "train", "image")
    assert train.shard_sizes == (10, 10) and len(set(train.keys)) == 20
    assert all(len(set(shard.labels.tolist())) == 2 for shard in train.shards)


def test_a_folder_is_written_by_one_process_at_a_time(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, out in ((photos, tmp_path / "out"), ("shapes", tmp_path / "world")):
        with alone(out):
            assert uml("prepare", source, "--out", out) == 2
        assert "another job is at work" in problems(capsys) and not out.exists()


def test_first_runs_that_want_a_world_at_once_draw_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []

    def draw(world, folder, seed, counts):
        drawn.append(folder)
        time.sleep(0.3)
        return write_world(world, folder, seed, counts)

    write_world = prepare.write_world
    monkeypatch.setattr(prepare, "write_world", draw)
    spec, out = WorldSpec("shapes", train=2, test=1), tmp_path / "world"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: prepare.ensure_world(spec, out), range(4)))
    assert drawn == [out] and (out / "world.json").is_file()


def test_what_prepare_tells_of_older_shards_is_what_they_are_now(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert uml("prepare", photos, "--out", out, "--split", "train") == 0
    raw = index(out, "image", "train", "image")
    data = read_rows(raw, range(len(raw)))
    keys = zip(raw.keys, data, raw.labels.tolist(), raw.sources, strict=True)
    samples = [Sample(key, "png", one, label, source) for key, one, label, source in keys]
    test = [replace(sample, key=f"t{i}") for i, sample in enumerate(samples)]
    write_shard(str(out / "image-test-000000.tar"), test[::-1], "image")
    write_index(str(out), [scan_shard(str(out / "image-test-000000.tar"), "image")])
    other = [replace(s, data=s.data[:-1] + b"x", source=f"x{s.source}") for s in test]
    write_shard(str(out / "image-test-000000.tar"), other, "image")
    capsys.readouterr()
    words = make_texts(tmp_path / "w.csv", [("a cat", "cat"), ("a dog", "dog")], ("text", "label"))
    assert uml("prepare", words, "--out", out, "--split", "train") == 0
    assert "also occur in train" not in capsys.readouterr().out


def test_equal_bytes_whatever_the_place_of_the_source(photos: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert uml("prepare", photos, "--out", tmp_path / name) == 0
        photos = photos.rename(tmp_path / "moved")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert uml("prepare", photos, "--out", tmp_path / "three", "--seed", 1) == 0
    assert digests(tmp_path / "one") != digests(tmp_path / "three")


@pytest.mark.ray
def test_equal_bytes_on_ray_data(
    ray_cluster: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_out, plain_out = tmp_path / "ray", tmp_path / "plain"
    assert uml("prepare", photos, "--out", plain_out, "--per-shard", 4) == 0
    monkeypatch.setattr(parallel, "SMALL", -1)
    monkeypatch.chdir(tmp_path)  # tasks have another working directory
    assert uml("prepare", "photos", "--out", "ray", "--per-shard", 4) == 0
    assert len(digests(ray_out)) == 7 and digests(ray_out) == digests(plain_out)


def test_a_second_modality_joins_the_first(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = [("a dog barks", "dog", "t1"), ("a cat purrs", "cat", "t2")]
    texts = make_texts(tmp_path / "texts.csv", rows, ("text", "label", "id"))
    assert uml("prepare", photos, "--out", out) == 0
    before = digests(out)
    assert uml("prepare", texts, "--out", out, "--split", "train") == 0
    after = digests(out)
    assert {n: d for n, d in after.items() if n in before and n != "index.json"} == {
        n: d for n, d in before.items() if n != "index.json"
    }
    text = index(out, "text", "train", "text")
    facts = {(text.classes[k], s) for k, s in zip(text.labels, text.sources, strict=True)}
    assert facts == {("dog", "t1"), ("cat", "t2")}
    assert len(json.loads((out / "index.json").read_text())["shards"]) == 3


def test_audio_files_with_a_table(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for i, suffix in enumerate(("wav", "flac", "ogg")):
        soundfile.write(clips / f"rec{i}.{suffix}", np.sin(np.arange(4000) / (i + 1)), 8000)
    rows = [(f"rec{i}.{s}", "hum") for i, s in enumerate(("wav", "flac", "ogg"))]
    make_texts(clips / "labels.csv", rows, ("file", "label"))
    args = ("prepare", clips, "--out", tmp_path / "out", "--split", "train")
    assert uml(*args, "--modality", "hums") == 0
    hums = index(tmp_path / "out", "hums", "train", "audio")
    assert sorted(hums.suffixes) == ["flac", "ogg", "wav"]
    assert sorted(hums.sources) == ["rec0", "rec1", "rec2"]


def test_splits_of_the_source_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, seed in (("train", 1), ("val", 2), ("test", 3)):
        (tmp_path / "p" / split / "cat").mkdir(parents=True)
        (tmp_path / "p" / split / "cat" / "a.png").write_bytes(png(seed))
    assert uml("prepare", tmp_path / "p", "--out", tmp_path / "out") == 0
    for split in ("train", "val", "test"):
        assert index(tmp_path / "out", "image", split, "image").sources == [f"{split}/cat/a"]
    assert uml("prepare", tmp_path / "p", "--out", tmp_path / "o", "--split", "train") == 2
    assert "the source names its splits itself" in problems(capsys)


def test_equal_content_stays_on_one_side(photos: Path, tmp_path: Path) -> None:
    for i in range(10):
        (photos / "cat" / f"copy{i}.png").write_bytes(png(i))
    assert uml("prepare", photos, "--out", tmp_path / "out") == 0
    train, test = (index(tmp_path / "out", "image", s, "image") for s in ("train", "test"))
    assert len(train) + len(test) == 30
    assert not set(train.hashes) & set(test.hashes)


def test_the_draw_of_the_test_split() -> None:
    samples = [(f"h{i}", i % 3) for i in range(300)] + [("only", 9)]
    drawn = draw_test(samples, 0.2, seed=0)
    assert [sum(h in drawn for h, k in samples if k == c) for c in (0, 1, 2, 9)] == [20, 20, 20, 0]
    assert drawn == draw_test(samples[::-1], 0.2, seed=0) != draw_test(samples, 0.2, seed=1)
    assert draw_test(samples, 0.0, seed=0) == frozenset()
    copies = [("a", 0)] * 50 + [(f"b{i}", 0) for i in range(9)] + [("a", 1), ("c", 1)]
    assert len(draw_test(copies, 0.2, seed=0)) == 2  # of ten contents; class 1 has one of its own
    pairs = [("a", 0), ("b", 0)]
    assert len(draw_test(pairs, 0.01, 0)) == 1 == len(draw_test(pairs, 0.99, 0))


def test_unlabelled_samples_have_neither_labels_nor_classes(photos: Path, tmp_path: Path) -> None:
    args = ("prepare", photos, "--out", tmp_path / "out", "--unlabelled", "--split", "train")
    assert uml(*args) == 0
    train = index(tmp_path / "out", "image", "train", "image")
    assert (train.labels == -1).all() and train.classes is None


# ------------------------------------------------------------------------------------ classes


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = [(f"text {n}", str(n)) for n in (10, 9, 2)]
    texts = make_texts(tmp_path / "t.csv", rows, ("text", "label"))
    uml("prepare", texts, "--out", tmp_path / "out", "--split", "train")
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["2", "9", "10"]


def test_numbers_are_indices_where_the_known_classes_have_names(
    photos: Path, tmp_path: Path
) -> None:
    uml("prepare", photos, "--out", tmp_path / "out")
    texts = make_texts(tmp_path / "t.csv", [("bark", "1"), ("purr", "0")], ("text", "label"))
    assert uml("prepare", texts, "--out", tmp_path / "out", "--split", "train") == 0
    text = index(tmp_path / "out", "text", "train", "text")
    words = dict(zip([d.decode() for d in read_rows(text, [0, 1])], text.labels, strict=True))
    assert words == {"bark": 1, "purr": 0}


def test_an_unknown_class_is_refused_with_the_near_name(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uml("prepare", photos, "--out", tmp_path / "out")
    before = digests(tmp_path / "out")
    rows = [("x", "dogs"), ("y", "dogs"), ("z", "zebra"), ("w", "cat")]
    texts = make_texts(tmp_path / "t.csv", rows, ("text", "label"))
    capsys.readouterr()
    assert uml("prepare", texts, "--out", tmp_path / "out", "--split", "train") == 2
    said = problems(capsys)
    assert "class 'dogs' of 2 samples is not in" in said and "(did you mean 'dog'?)" in said
    assert "class 'zebra' of 1 sample is not in" in said
    assert digests(tmp_path / "out") == before


def test_a_class_list_can_be_given(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text('["dog", "cow", "cat"]')
    args = ("prepare", photos, "--classes", tmp_path / "c.json", "--out")
    assert uml(*args, tmp_path / "out", "--split", "train") == 0
    train = index(tmp_path / "out", "image", "train", "image")
    assert train.classes == ("dog", "cow", "cat") and set(train.labels) == {0, 2}
    (tmp_path / "c.json").write_text('["cat", "dog"]')
    assert uml(*args, tmp_path / "out", "--split", "test") == 2
    assert "class lists differ" in problems(capsys)
    (tmp_path / "c.json").write_text("{")
    assert uml(*args, tmp_path / "new") == 2
    assert "cannot be read as a list of names" in problems(capsys)


# ----------------------------------------------------------------------------------- bad input


def test_bad_files_are_listed_and_nothing_is_written(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat" / "torn.png").write_bytes(png(0)[:60])
    (photos / "dog" / "void.png").write_bytes(b"")
    assert uml("prepare", photos, "--out", tmp_path / "out") == 2
    said = problems(capsys)
    assert "cat/torn.png: the image cannot be decoded" in said
    assert "dog/void.png: it is empty" in said and "--skip-bad" in said
    assert not (tmp_path / "out").exists()
    assert uml("prepare", photos, "--out", tmp_path / "out", "--skip-bad", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [note.split(":")[0] for note in told["notes"]] == [
        "skipped cat/torn.png",
        "skipped dog/void.png",
    ]
    counts = [part["samples"] for part in told["written"]["image"].values()]
    assert sum(counts) == 20


def test_the_caps_of_the_kind_can_be_set(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("prepare", photos, "--out", tmp_path / "out", "--set")
    assert uml(*args, "max_pixels=63") == 2
    assert "8 x 8 pixels are more than max_pixels 63" in problems(capsys)
    assert uml(*args, "max_pixel=64", "--set", "size=big") == 2
    said = problems(capsys)
    assert "did you mean 'max_pixels'?" in said and "--set.size: input should be" in said
    assert uml(*args, "max_pixels=64") == 0


def test_series_of_unequal_width_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s" / "a").mkdir(parents=True)
    for i, width in enumerate((3, 3, 4)):
        np.save(tmp_path / "s" / "a" / f"{i}.npy", np.zeros((5, width), np.float32))
    assert uml("prepare", tmp_path / "s", "--kind", "sequence", "--out", tmp_path / "out") == 2
    assert "a/2.npy: a step holds 4 numbers, not 3" in problems(capsys)


def test_nothing_is_overwritten(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uml("prepare", photos, "--out", tmp_path / "out") == 0
    before = digests(tmp_path / "out")
    assert uml("prepare", photos, "--out", tmp_path / "out", "--seed", 3) == 2
    assert "already holds image-train shards" in problems(capsys)
    assert digests(tmp_path / "out") == before
    assert uml("prepare", photos, "--out", photos) == 2
    assert "holds other files" in problems(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--test-share", "1"], "--test-share 1.0"),
        (["--test-share", "0.1", "--split", "train"], "not both"),
        (["--per-shard", "0"], "--per-shard: at least 1"),
        (["--modality", "../up"], "use letters, digits"),
        (["--modality", "my-train-set"], "a split's name inside it"),
        (["--train", "5"], "for embedded worlds"),
    ],
)
def test_impossible_requests(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert uml("prepare", photos, "--out", tmp_path / "out", *words) == 2
    assert message in problems(capsys)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uml("prepare", photos, "--out", tmp_path / "out", "--dry-run") == 0
    assert "20 image samples" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_meanwhile_fails_the_run_and_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.sources import packing

    write_shard = packing.write_shard

    def late(path, samples, kind):
        (photos / "cat" / "p0.png").write_bytes(png(77))
        return write_shard(path, samples, kind)

    monkeypatch.setattr(packing, "write_shard", late)
    assert uml("prepare", photos, "--out", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_leaks_are_told_as_soon_as_they_are_in_the_folder(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert uml("prepare", photos, "--out", out, "--split", "train") == 0
    assert uml("prepare", photos, "--out", out, "--split", "test") == 0
    assert "image: 20 of 20 test samples (100.0%) also occur in train" in capsys.readouterr().out
    rows = [("a cat", "cat", "cat/p0.png")]
    texts = make_texts(tmp_path / "t.csv", rows, ("text", "label", "id"))
    assert uml("prepare", texts, "--out", out, "--split", "train") == 0
    assert "image and text share 1 source" in capsys.readouterr().out


# -------------------------------------------------------------------------------------- worlds


def test_a_world_is_drawn_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("prepare", "digits", "--train", 3, "--test", 2, "--out")
    assert uml(*args, tmp_path / "a") == 0
    assert uml(*args, tmp_path / "b", "--per-shard", 7) == 0
    small = index(tmp_path / "b", "sequence", "train", "sequence")
    assert small.shard_sizes == (7, 7, 7, 7, 2)
    whole = index(tmp_path / "a", "sequence", "train", "sequence")
    assert np.bincount(whole.labels).tolist() == [3] * 10
    assert (small.hashes, small.keys) == (whole.hashes, whole.keys)
    before = digests(tmp_path / "a")
    assert uml(*args, tmp_path / "a") == 0  # the same draw again: nothing to do
    assert uml(*args, tmp_path / "a", "--seed", 1) == 2
    assert digests(tmp_path / "a") == before
    capsys.readouterr()
    assert uml(*args, tmp_path / "c", "--kind", "image", "--split", "train") == 2
    assert "--kind, --split: not for an embedded world" in problems(capsys)
    assert uml("prepare", "digits", "--train", 1000, "--out", tmp_path / "c") == 2
    assert "were asked for" in problems(capsys)
    assert uml("prepare", "digit", "--out", tmp_path / "c") == 2
    assert "did you mean 'digits'?" in problems(capsys)


def test_a_world_appears_on_first_use_only(tmp_path: Path) -> None:
    spec = WorldSpec("digits", train=2, test=1)
    ensure_world(spec, tmp_path / "w")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "w").iterdir()}
    ensure_world(spec, tmp_path / "w")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "w").iterdir()} == before
    with pytest.raises(UserError, match="another draw of world digits"):
        ensure_world(WorldSpec("digits", seed=1, train=2, test=1), tmp_path / "w")


def test_own_shards_in_the_place_of_a_world_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "image-train-000000.tar").write_bytes(b"mine")
    ensure_world(WorldSpec("digits"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["image-train-000000.tar"]


def test_a_full_disk_fails_the_run_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.sources import packing

    def full(path, samples, kind):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(packing, "write_shard", full)
    with pytest.raises(RunError, match="No space left on device"):
        ensure_world(WorldSpec("digits", train=1, test=1), tmp_path / "w")
    assert not (tmp_path / "w").exists()
