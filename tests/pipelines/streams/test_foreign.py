"""What people's tars hold beside clean samples: each told once, by its cause, with a way out."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest

from pipelines.streams.index import from_json, scan_shard, to_json
from pipelines.streams.scan import scan_tar
from pipelines.streams.shards import load_index, read_rows
from uml_core.errors import UserError

IMAGE = ("png", "jpg")


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tar(*members, **options):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, **options) as out:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                out.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            out.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def scan(*members, suffixes=IMAGE, **options):
    """({key: (bytes, label)}, problems) of a tar of these members."""
    data = tar(*members)
    entries, problems = scan_tar(io.BytesIO(data), suffixes, **options)
    return {e.key: (data[e.offset : e.offset + e.size], e.label) for e in entries}, problems


def test_hidden_members_are_one_note():
    hidden = ("._a.jpg", "./.DS_Store", "__MACOSX/._a.cls", "d/Thumbs.db", "PaxHeaders.1/a.jpg")
    found, problems = scan(("a.jpg", b"1"), ("a.cls", b"4"), *[(name, b"x") for name in hidden])
    assert found == {"a": (b"1", 4)}
    (note,) = problems
    assert note.note and not note.lost
    assert note.cause == "5 hidden members left out, such as ._a.jpg"


def test_a_file_that_belongs_to_no_sample_is_a_note():
    found, problems = scan(("a.jpg", b"1"), ("README.md", b"hi"), ("LICENSE", b"free"))
    assert set(found) == {"a"} and all(p.note for p in problems) and len(problems) == 2


def test_links_are_followed_within_the_archive():
    found, problems = scan(
        link("d/0.jpg", "2.jpg", tarfile.SYMTYPE),  # before what it points at
        ("d/0.cls", b"5"),
        ("d/1.jpg", b"one"),
        ("d/1.cls", b"7"),
        ("d/2.jpg", b"two"),
        link("d/2.cls", "./d/1.cls", tarfile.LNKTYPE),
        link("3.jpg", "d/0.jpg", tarfile.SYMTYPE),  # a link to a link
    )
    assert problems == []
    assert found == {
        "d/0": (b"two", 5),
        "d/1": (b"one", 7),
        "d/2": (b"two", 7),
        "3": (b"two", -1),
    }
    found, (problem,) = scan(("a.jpg", b"1"), link("b.jpg", "../x.jpg", tarfile.SYMTYPE))
    assert set(found) == {"a"} and problem.lost and problem.key == "b"
    assert "a link to '../x.jpg'" in problem.cause and "--dereference" in problem.cause


def test_an_index_of_links_is_trusted_but_not_one_that_overlaps(tmp_path):
    members = [link(f"{i}.jpg", "a.jpg", tarfile.LNKTYPE) for i in range(9)]
    path = tmp_path / "x.tar"
    path.write_bytes(tar(("a.jpg", b"y" * 5000), *members))
    shard = scan_shard(str(path), "image")
    assert int(shard.sizes.sum()) > shard.bytes
    entry = to_json(shard)
    assert len(from_json(entry, str(path))) == 10
    entry["offsets"] = [offset + i for i, offset in enumerate(entry["offsets"])]
    assert from_json(entry, str(path)) is None
    index = load_index("x.tar", str(tmp_path), "image")
    assert set(read_rows(index, range(10))) == {b"y" * 5000}


def test_which_member_is_the_sample_is_asked_for_and_can_be_said():
    members = [("a.jpg", b"photo"), ("a.png", b"mask"), ("a.cls", b"1"), ("b.jpg", b"other")]
    found, (problem,) = scan(*members)
    assert set(found) == {"b"} and problem.lost
    assert "has .png and .jpg" in problem.cause and "member: jpg" in problem.cause
    assert scan(*members, suffixes=("jpg",), chosen=True) == (
        {"a": (b"photo", 1), "b": (b"other", -1)},
        [],
    )
    found, _ = scan(*members, ("c.png", b"c"), suffixes=("png", "jpg"), chosen=True)
    assert {k: v[0] for k, v in found.items()} == {"a": b"mask", "b": b"other", "c": b"c"}


def test_a_suffix_of_two_parts_is_named_and_can_be_chosen(tmp_path):
    members = [("s1.input.jpg", b"1"), ("s1.target.cls", b"2"), ("s1.outputs.txt", b"x")]
    found, (problem,) = scan(*members)
    assert found == {} and "its suffix is 'input.jpg'" in problem.cause
    assert scan(*members, suffixes=("input.jpg",), chosen=True) == ({"s1": (b"1", 2)}, [])
    (tmp_path / "x.tar").write_bytes(tar(*members))
    index = load_index("x.tar", str(tmp_path), "image", "input.jpg")
    assert (index.suffixes, index.labels.tolist()) == (["jpg"], [2])
    with pytest.raises(UserError, match="choose it with"):  # the cache keeps the two apart
        load_index("x.tar", str(tmp_path), "image")
    with pytest.raises(UserError, match="no suffix of kind image"):
        load_index("x.tar", str(tmp_path), "image", "outputs.txt")


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([("v1/0.05.png", b"1")], "'0.05.png' is read as key '0' and suffix '05.png'"),
        ([("Take 2.0 (x).png", b"1")], "a dot inside the name"),
        ([("a.jpg.gz", b"1")], "gunzip"),
        ([("a.tif", b"1"), ("a.cls", b"1")], "convert the .tif files"),
        ([("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid")], "git lfs pull"),
        ([("a.jpg", b"<!DOCTYPE html><html>404</html>")], "an HTML page"),
        ([("a.jpg", gzip.compress(b"1"))], "gzip-compressed"),
    ],
)
def test_a_sample_without_a_payload_says_why(members, cause):
    found, (problem,) = scan(*members)
    assert found == {} and problem.lost and cause in problem.cause


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"\0" * 10240, "holds no sample"),
        (gzip.compress(tar(("a.jpg", b"1"))), "gzip-compressed: gunzip it"),
        (bz2.compress(tar(("a.jpg", b"1"))), "bzip2-compressed"),
        (lzma.compress(tar(("a.jpg", b"1"))), "xz-compressed"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 600, "zstd-compressed"),
        (b"PK\x03\x04" + b"x" * 600, "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 3\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><title>404</title>" * 30, "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML answer"),
        (b"/annex/objects/SHA256E-s3--4d.tar\n", "git annex get"),
        (b"no tar at all " * 100, "not a tar"),
    ],
)
def test_what_is_no_tar_is_called_what_it_is(data, cause):
    entries, (problem,) = scan_tar(io.BytesIO(data), IMAGE)
    assert entries == [] and problem.key is None and cause in problem.cause


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"cls": b" 1\r\n"}, 1),
        ({"cls": b"\xef\xbb\xbf2"}, 2),
        ({"cls": b"owl"}, 2),
        ({"cls": b"1", "json": b'{"label": "dog"}'}, 1),
        ({"cls": b"1", "json": b"{torn"}, 1),
        ({"cls": b"1", "json": b'{"label": 2}'}, 1),
        ({"json": b'{"label": "owl"}'}, 2),
        ({"json": b'{"label": null}'}, -1),
    ],
)
def test_labels(members, label):
    found, problems = scan(
        ("a.jpg", b"1"), *[(f"a.{s}", d) for s, d in members.items()], classes=("cat", "dog", "owl")
    )
    assert found == {"a": (b"1", label)} and all(p.note for p in problems)


@pytest.mark.parametrize(
    ("cls", "classes", "cause"),
    [
        (b"1.0", None, "the label '1.0' is not a whole number from 0 on: write 1"),
        (b"-1", None, "a sample without a label has none"),
        (b"dog", None, "put classes.json"),
        (b"dgo", ("cat", "dog"), "nor in classes.json (did you mean 'dog'?)"),
        (b"", None, "empty"),
        (b"99999999999", None, "from 0 to 2147483647"),
    ],
)
def test_labels_that_cannot_be_used_say_what_to_write(cls, classes, cause):
    found, (problem,) = scan(("a.jpg", b"1"), ("a.cls", cls), classes=classes)
    assert found == {} and problem.lost and cause in problem.cause


def test_names_follow_the_class_list_when_it_changes(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar(("a.jpg", b"1"), ("a.cls", b"dog")))
    for names in (["cat", "dog"], ["dog", "cat"]):
        (tmp_path / "classes.json").write_text(json.dumps(names))
        index = load_index("x.tar", str(tmp_path), "image")
        assert index.labels.tolist() == [names.index("dog")]


def test_a_link_without_content_is_named_by_a_glob_too(tmp_path):
    (tmp_path / "t-0.tar").write_bytes(tar(("a.txt", b"1")))
    (tmp_path / "t-1.tar").symlink_to(tmp_path / "gone.tar")
    (tmp_path / "t-2.tar").mkdir()
    for pattern in ("t-*.tar", "t-{0..2}.tar"):
        with pytest.raises(UserError) as found:
            load_index(pattern, str(tmp_path), "text")
        first, second = found.value.problems
        assert "is a link to" in first and "which is not there" in first and "t-1.tar" in first
        assert "t-2.tar is a folder, not a tar" in second


def test_tars_joined_by_cat_are_not_half_read_in_silence():
    one, two = tar(("a.jpg", b"1")), tar(("b.jpg", b"2"))
    entries, (problem,) = scan_tar(io.BytesIO(one + two), IMAGE)
    assert [e.key for e in entries] == ["a"] and problem.lost
    assert "another tar follows" in problem.cause
    for rubbish in (b"\0" * 100_000, b"garbage" * 3000):
        assert scan_tar(io.BytesIO(one + rubbish), IMAGE)[1] == []


def test_json_without_a_label():
    members = [("a.jpg", b"1"), ("a.json", b'{"class": 3}'), ("b.jpg", b"2"), ("b.json", b"[1]")]
    found, (note,) = scan(*members, ("c.jpg", b"3"), ("c.json", b'{"label": null, "id": 1}'))
    assert {key: label for key, (_, label) in found.items()} == {"a": -1, "b": -1, "c": -1}
    assert note.note and note.cause.startswith("1 .json with 'class' and no `label`")


def test_a_tar_of_tars_says_so():
    _, problems = scan(("inner.tar", tar(("a.jpg", b"1"))))
    assert problems[-1].cause == "the tar holds no sample, only files such as inner.tar"
