"""Which member of the samples `uml embed` takes, and what it says where that has to be asked."""

import io
import tarfile

import pytest

from pipelines.embed import _choose
from pipelines.streams.shards import Sample, write_shards
from uml_core.errors import UserError


def shard(path, *suffixes):
    with tarfile.open(path, "w") as out:
        for suffix in suffixes:
            info = tarfile.TarInfo(f"a.{suffix}")
            info.size = 1
            out.addfile(info, io.BytesIO(b"1"))


def test_samples_of_two_kinds_are_asked_for_by_member(tmp_path):
    shard(tmp_path / "clip-train-0.tar", "cls", "jpg", "wav", "txt")
    with pytest.raises(UserError, match="--member jpg or --member wav"):
        _choose(tmp_path, None, None, None)
    for member, kind in (("jpg", "image"), ("wav", "audio"), (".TXT", "text")):
        _, splits = _choose(tmp_path, None, None, member.lstrip("."))
        assert splits["train"].shards[0].kind == kind
    shard(tmp_path / "clip-train-0.tar", "cls", "jpg", "png")
    with pytest.raises(UserError, match="--member"):
        _choose(tmp_path, None, None, None)


def test_what_is_there_is_named_where_no_encoder_takes_it(tmp_path):
    shard(tmp_path / "scan-train-0.tar", "cls", "tiff")
    with pytest.raises(UserError, match=r"no picture, text or sound.*only \.cls \.tiff"):
        _choose(tmp_path, None, None, None)
    (tmp_path / "scan-train-0.tar").write_bytes(b"\x1f\x8b gzip")
    with pytest.raises(UserError, match="gzip-compressed"):
        _choose(tmp_path, None, None, None)


def test_a_listed_shard_that_is_gone_is_not_left_out(tmp_path):
    for name in ("a-train", "b-train"):
        samples = [Sample(f"{name}{i}", "txt", f"{name} {i}".encode(), 0) for i in range(4)]
        write_shards(samples, str(tmp_path), name, "text", per_shard=2)
    (tmp_path / "a-train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"a-train-000001\.tar is listed"):
        _choose(tmp_path, "a", None, None)
    assert len(_choose(tmp_path, "b", None, None)[1]["train"]) == 4
