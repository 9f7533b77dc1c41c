"""Shards that are not there: listed ones are refused, holes in the numbers are told."""

import json
from pathlib import Path

import pytest

from pipelines.streams import gaps
from pipelines.streams.shards import Sample, load_index, write_shards
from uml_core.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of texts for training, one for testing, all listed in index.json."""
    for split, count in (("train", 6), ("test", 2)):
        samples = [
            Sample(f"{split}{i}", "txt", f"{split} {i}".encode(), i % 2) for i in range(count)
        ]
        write_shards(samples, str(tmp_path), f"text-{split}", "text", per_shard=2)
    return tmp_path


def shard(folder: Path, number: int) -> Path:
    return folder / f"text-train-00000{number}.tar"


def test_a_listed_shard_that_is_gone_is_refused_where_a_glob_would_take_it(folder: Path) -> None:
    assert len(load_index("text-train-*.tar", str(folder), "text")) == 6
    shard(folder, 1).unlink()
    for pattern in ("text-train-*.tar", "*-{train,test}-*.tar", ["text-test-*", "text-train-*"]):
        with pytest.raises(UserError, match=r"text-train-000001\.tar is listed"):
            load_index(pattern if isinstance(pattern, list) else [pattern], str(folder), "text")
    assert len(load_index("text-test-*.tar", str(folder), "text")) == 2
    assert len(load_index("text-train-{000000,000002}.tar", str(folder), "text")) == 4
    urls = [str(shard(folder, 0)), str(shard(folder, 2))]
    assert len(load_index(urls, ".", "text")) == 4
    with pytest.raises(UserError, match=r"000001\.tar is listed"):
        load_index(urls, ".", "text", wanted=gaps.alike(urls))


def test_a_shard_with_another_name_is_not_gone(folder: Path) -> None:
    shard(folder, 1).rename(folder / "text-train-b.tar")
    assert len(load_index("text-train-*.tar", str(folder), "text")) == 6
    index = json.loads((folder / "index.json").read_text())
    index["shards"]["text-train-000001.tar"] = None  # no entry of ours: the name still counts
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"000001\.tar is listed"):
        load_index("text-train-*.tar", str(folder), "text")


@pytest.mark.parametrize(
    ("names", "missing", "count"),
    [
        (["t-000000.tar", "t-000002.tar"], "t-000001.tar", "1 of 3 shards is"),
        (
            ["t-1.tar", "t-3.tar", "t-11.tar", *(f"t-{i}.tar" for i in range(5, 9))],
            "t-2.tar",
            "4 of",
        ),
        (["t-00000-of-00003.tar", "t-00001-of-00003.tar"], "t-00002-of-00003.tar", "1 of 3"),
        (["t-2-of-3.tar", "t-3-of-3.tar"], "t-1-of-3.tar", "1 of 3"),
        (["00000.tar", "00001.tar", "00003.tar"], "00002.tar", "1 of 4"),
    ],
)
def test_holes_in_the_numbers(tmp_path: Path, names: list[str], missing: str, count: str) -> None:
    (said,) = gaps.holes([str(tmp_path / name) for name in names])
    assert f"such as {missing}:" in said and said.startswith(count)
    (tmp_path / missing).write_bytes(b"")  # there, and named by nobody: that is meant so
    assert all(missing not in more for more in gaps.holes([str(tmp_path / n) for n in names]))


@pytest.mark.parametrize(
    "names",
    [
        ["t-000001.tar", "t-000002.tar"],
        ["t-3.tar", "u-5.tar"],
        ["train2014.tar", "train2016.tar", "train2017.tar"],
        ["t-20240101.tar", "t-20240301.tar"],
        ["t-7.tar", "t-400.tar", "t-999999999.tar"],
        ["t-0-of-999999999.tar"],
        ["a.tar", "b.tar"],
        ["t-1-of-2.tar", "t-2-of-2.tar"],
    ],
)
def test_numbers_that_count_nothing(tmp_path: Path, names: list[str]) -> None:
    assert gaps.holes([str(tmp_path / name) for name in names]) == []
