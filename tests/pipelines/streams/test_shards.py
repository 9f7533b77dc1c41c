import io
import json
import tarfile

import numpy as np
import pytest
import webdataset as wds

from pipelines.streams.scan import content_hash
from pipelines.streams.shards import (
    Sample,
    load_index,
    read_rows,
    subset,
    write_classes,
    write_index,
    write_shard,
    write_shards,
    write_subset,
)
from uml_core.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def samples(n=7, **changes):
    for i in range(n):
        yield Sample(
            **{
                "key": f"k{i:03d}",
                "suffix": "txt",
                "data": b"word %d" % i,
                "label": i % 3,
                **changes,
            }
        )


def write_foreign(path, members):
    """A tar as any other program might write it; members: (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    a = write_shards(samples(source="s"), str(tmp_path / "a"), "text-train", "text", per_shard=3)
    write_shards(samples(source="s"), str(tmp_path / "b"), "text-train", "text", per_shard=3)
    assert [p.rpartition("/")[2] for p in a] == [f"text-train-{i:06d}.tar" for i in range(3)]
    for name in ["index.json", *(p.rpartition("/")[2] for p in a)]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with tarfile.open(a[0]) as tar:
        info = tar.getmembers()[0]
    assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")


def test_round_trip_through_the_index(tmp_path, cache):
    write_shards(samples(source="book"), str(tmp_path), "text-train", "text", per_shard=3)
    write_classes(str(tmp_path), ["a", "b", "c"])
    index = load_index("text-train-*.tar", str(tmp_path), "text")
    assert index.num_samples == len(index) == 7 and index.classes == ("a", "b", "c")
    assert index.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert index.keys[4] == "k004" and index.sources == ["book"] * 7
    assert index.hashes[4] == content_hash(b"word 4", text=True)
    assert index.shard_sizes == (3, 3, 1)
    assert read_rows(index, [6, 0, 4, 0]) == [b"word 6", b"word 0", b"word 4", b"word 0"]
    shard, i = index.locate(4)
    assert shard.url.endswith("000001.tar") and i == 1
    assert not (cache / "uml" / "index").exists()  # our own shards are not indexed twice
    entry = json.loads((tmp_path / "index.json").read_text())["shards"]["text-train-000000.tar"]
    assert entry["samples"] == 3 and entry["class_histogram"] == {"0": 1, "1": 1, "2": 1}
    assert {"bytes", "sha256", "kind", "offsets", "sizes"} <= entry.keys()


def test_webdataset_reads_our_shards(tmp_path):
    data = np.arange(6, dtype=np.float32)
    buffer = io.BytesIO()
    np.save(buffer, data)
    long = "a" * 150  # a name above the 100 characters of a plain header
    ours = [Sample(long, "npy", buffer.getvalue(), 4, "place", text="caption", extra={"n": 1})]
    paths = write_shards(ours, str(tmp_path), "text", "vector")
    found = next(iter(wds.WebDataset(paths, shardshuffle=False).decode()))
    assert found["__key__"] == long and found["cls"] == 4 and found["txt"] == "caption"
    assert found["json"] == {"label": 4, "n": 1, "source": "place"}
    assert (found["npy"] == data).all()
    as_text = load_index("text-*.tar", str(tmp_path), "text")  # the other member of the same tar
    assert read_rows(as_text, [0]) == [b"caption"] and as_text.labels.tolist() == [4]


def test_we_read_what_webdataset_writes(tmp_path, cache):
    with wds.TarWriter(str(tmp_path / "x-000000.tar")) as writer:
        for i in range(5):
            writer.write({"__key__": f"d/{i:04d}", "txt": f"t{i}", "cls": i})
    with wds.TarWriter(str(tmp_path / "x-000001.tar")) as writer:
        for i in range(5):
            writer.write(
                {"__key__": f"d/{i:04d}", "txt": f"u{i}", "json": {"label": i, "src": "q"}}
            )
    index = load_index("x-{000000..000001}.tar", str(tmp_path), "text")
    assert index.labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert read_rows(index, [9, 0]) == [b"u4", b"t0"]
    assert index.keys[5:7] == ["d/0000", "d/0001"] and index.sources[5] == "q"
    assert not (tmp_path / "index.json").exists()  # never beside foreign shards
    assert len(list(cache.rglob("*.json"))) == 2
    again = load_index("x-*.tar", str(tmp_path), "text")
    assert again.fingerprint == index.fingerprint and again.keys == index.keys


def test_a_changed_foreign_shard_is_scanned_again(tmp_path):
    path = write_foreign(tmp_path / "f.tar", [("a.txt", b"one")])
    assert load_index(path, ".", "text").keys == ["a"]
    write_foreign(tmp_path / "f.tar", [("b.txt", b"two"), ("c.txt", b"3")])
    assert load_index(path, ".", "text").keys == ["b", "c"]


def test_an_index_that_does_not_fit_is_not_used(tmp_path):
    [path] = write_shards(samples(), str(tmp_path), "t", "text")
    whole = load_index(path, ".", "text")
    with open(path, "ab") as file:
        file.write(b"\0" * 512)
    (shard,) = load_index(path, ".", "text").shards
    assert shard.bytes == whole.shards[0].bytes + 512 and shard.sha256 != whole.shards[0].sha256


def test_suffixes_in_capitals_and_unlabelled_samples(tmp_path):
    path = write_foreign(
        tmp_path / "f.tar",
        [("./a.TXT", b"x"), ("./a.CLS", b" 7\n"), ("./b.txt", b"y"), ("dir/c.seg.txt", b"z")],
    )
    index = load_index(path, ".", "text")
    assert index.keys == ["./a", "./b"] and index.labels.tolist() == [7, -1]
    assert [p.key for _, p in index.problems] == ["dir/c"]


def test_views_and_small_shards_of_their_own(tmp_path):
    for part in "ab":
        write_foreign(
            tmp_path / f"{part}.tar", [(f"{i}.txt", f"{part}{i}".encode()) for i in "012"]
        )
    index = load_index(["a.tar", "b.tar"], str(tmp_path), "text")
    part = subset(subset(index, [5, 4, 1, 2]), [0, 2, 3])
    assert read_rows(part, [0, 1, 2]) == [b"b2", b"a1", b"a2"]
    assert part.keys == ["2", "1", "2"] and part.locate(0)[1] == 2
    assert part.fingerprint != index.fingerprint
    own = write_subset(part, [0, 1, 2], str(tmp_path / "sub" / "s.tar"))
    assert read_rows(own, [0, 1, 2]) == [b"b2", b"a1", b"a2"] and own.keys == ["2", "1", "2_2"]
    again = load_index("s.tar", str(tmp_path / "sub"), "text")
    assert again.keys == own.keys and again.fingerprint == own.fingerprint


def test_shards_written_by_tasks_are_joined_into_one_index(tmp_path):
    parts = [write_shard(str(tmp_path / f"p-{i}.tar"), samples(), "text") for i in range(2)]
    write_index(str(tmp_path), parts)
    assert sorted(json.loads((tmp_path / "index.json").read_text())["shards"]) == [
        "p-0.tar",
        "p-1.tar",
    ]
    (tmp_path / "p-0.tar").unlink()
    write_index(str(tmp_path))
    assert list(json.loads((tmp_path / "index.json").read_text())["shards"]) == ["p-1.tar"]


@pytest.mark.parametrize(
    "bad",
    [
        {"key": "a.b"},
        {"key": "../a"},
        {"key": ""},
        {"key": "same"},
        {"suffix": "exe"},
        {"data": b""},
        {"label": -2},
        {"text": "second"},
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path, bad):
    with pytest.raises(UserError):
        write_shards(samples(**bad), str(tmp_path), "t", "text")
    assert list(tmp_path.glob("*")) == []


def test_all_missing_shards_are_named_with_near_names(tmp_path):
    write_shards(samples(), str(tmp_path), "image-train", "text")
    with pytest.raises(UserError) as error:
        load_index(["image-tran-000000.tar", "nothing-*.tar"], str(tmp_path), "text")
    assert len(error.value.problems) == 2
    assert "did you mean 'image-train-000000.tar'" in error.value.problems[0]
    with pytest.raises(UserError, match="does not exist"):
        load_index("a.tar", str(tmp_path / "nowhere"), "text")
    with pytest.raises(UserError, match="000001"):
        load_index("image-train-{000000..000001}.tar", str(tmp_path), "text")


def test_a_shard_without_the_kind_says_what_it_misses(tmp_path):
    path = write_foreign(tmp_path / "f.tar", [("a.wav", b"x")])
    with pytest.raises(UserError, match="png jpg jpeg webp"):
        load_index(path, ".", "image")


def test_class_lists_must_agree(tmp_path):
    for name, classes in {"a": ["x", "y"], "b": ["x", "z"]}.items():
        write_shards(samples(), str(tmp_path / name), "t", "text")
        write_classes(str(tmp_path / name), classes)
    with pytest.raises(UserError, match="class lists differ"):
        load_index("*/t-*.tar", str(tmp_path), "text")
    (tmp_path / "a" / "classes.json").write_text("{}")
    with pytest.raises(UserError, match="not a list of names"):
        load_index("a/t-*.tar", str(tmp_path), "text")


def test_text_is_the_same_after_case_and_white_space():
    assert content_hash(b"Ein  Wort\n", text=True) == content_hash(b"ein wort", text=True)
    assert content_hash(b"Ein") != content_hash(b"ein")
