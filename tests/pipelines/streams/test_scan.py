import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.streams import scan
from pipelines.streams.index import from_json, scan_shard, to_json
from pipelines.streams.scan import scan_tar
from pipelines.streams.shards import load_index, read_rows
from uml_core.errors import UserError


def tar(members, **kinds):
    """Bytes of a tar; members: (name, bytes) or a ready TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as out:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                out.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            out.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def look(data, suffixes=("txt",)):
    entries, problems = scan_tar(io.BytesIO(data), suffixes)
    return [e.key for e in entries], {p.key: p.cause for p in problems}


GOOD = [("a.txt", b"one"), ("a.cls", b"3"), ("b.txt", b"two"), ("b.json", b'{"label": 4}')]


def test_entries_point_at_the_payload():
    data = tar([*GOOD, ("c.npy", b"x"), ("c.txt", b"three")])
    entries, problems = scan_tar(io.BytesIO(data), ("txt",))
    assert problems == []
    assert [(e.key, e.label, e.suffix) for e in entries] == [
        ("a", 3, "txt"),
        ("b", 4, "txt"),
        ("c", -1, "txt"),
    ]
    assert [data[e.offset : e.offset + e.size] for e in entries] == [b"one", b"two", b"three"]


@pytest.mark.parametrize(
    ("members", "key", "cause"),
    [
        ([("x.txt", b"")], "x", "empty"),
        ([("x.txt", b"1"), ("x.cls", b"seven")], "x", "whole number"),
        ([("x.txt", b"1"), ("x.cls", b"-3")], "x", "whole number"),
        ([("x.txt", b"1"), ("x.cls", b"9999999999")], "x", "whole number"),
        ([("x.txt", b"1"), ("x.json", b"{")], "x", "cannot be used"),
        ([("x.txt", b"1"), ("x.json", b"[" * 100_000)], "x", "cannot be used"),
        ([("x.txt", b"1"), ("x.json", b'{"label": true}')], "x", "whole number"),
        ([("x.txt", b"1"), ("x.cls", b"1"), ("x.json", b'{"label": 2}')], "x", "says 1"),
        ([("x.wav", b"1")], "x", "no member with suffix txt"),
        ([("x.txt", b"1"), ("y.txt", b"2"), ("x.cls", b"1")], "x", "not next to each other"),
        ([("x.txt", b"1"), ("x.TXT", b"2")], "x", "two .txt"),
        ([("README", b"hello")], "README", "<key>.<suffix>"),
    ],
)
def test_what_cannot_be_used_is_named(members, key, cause):
    keys, problems = look(tar([*GOOD, *members]))
    assert keys[:2] == ["a", "b"] and cause in problems[key]


def test_what_costs_no_sample_is_told_apart():
    members = [
        ("x.txt", b"1"),
        ("x.TXT", b"2"),
        ("void.txt", b""),
        ("a.note", b"late"),
        ("README", b"hello"),
    ]
    entries, problems = scan_tar(io.BytesIO(tar([*GOOD, *members])), ("txt",))
    assert [entry.key for entry in entries] == ["a", "b", "x"]
    assert {problem.key for problem in problems if problem.lost} == {"void"}
    assert {problem.key for problem in problems if not problem.lost} == {"x", "a", "README"}


def test_links_devices_and_folders_are_never_followed():
    members = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        info = tarfile.TarInfo(f"evil{kind.decode()}.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        members.append(info)
    folder = tarfile.TarInfo("dir")
    folder.type = tarfile.DIRTYPE
    keys, problems = look(tar([*GOOD, folder, *members]))
    assert keys == ["a", "b"] and len(problems) == 4


def test_names_stay_names(tmp_path):
    data = tar([("/etc/../../x.txt", b"1"), ("nul\udcff.txt", b"2")])
    keys, _ = look(data)
    assert keys == ["/etc/../../x", "nul\\xff"]


def test_caps(monkeypatch):
    monkeypatch.setattr(scan, "MAX_MEMBER_BYTES", 4)
    keys, problems = look(tar([*GOOD, ("x.txt", b"12345")]))
    assert keys == ["a", "b"] and "5 bytes, more than 4" in problems["x"]
    monkeypatch.setattr(scan, "MAX_MEMBERS", 2)
    keys, problems = look(tar(GOOD))
    assert keys == ["a"] and "more than 2 members" in problems[None]


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_absurd_sizes_neither_hang_nor_fill_memory(kind):
    info = tarfile.TarInfo("x.txt")
    info.type, info.size = kind, 2**60
    header = info.tobuf(tarfile.GNU_FORMAT)
    data = tar(GOOD).rstrip(b"\0")
    data += b"\0" * (-len(data) % 512) + header + b"y" * 2048
    keys, problems = look(data)
    assert keys == ["a", "b"] and "claims" in problems[None]


@pytest.mark.parametrize("where", ["header", "data", "boundary", "garbled"])
def test_a_damaged_tar_gives_what_came_before(where):
    data = tar([(f"{i}.txt", b"x" * 1000) for i in range(10)])
    sixth = 5 * 1536
    cut = {
        "header": data[: sixth + 100],
        "data": data[: sixth + 700],
        "boundary": data[:sixth],
        "garbled": data[:sixth] + b"\xff" * 512 + data[sixth + 512 :],
    }[where]
    keys, problems = look(cut)
    assert keys == ["0", "1", "2", "3", "4"] and None in problems


def test_other_files_are_not_tars(tmp_path):
    for data in (b"", b"hello", b"\0" * 100, b"\x1f\x8b\x08" + b"x" * 1000):
        assert look(data) == ([], {None: look(data)[1][None]})
    (tmp_path / "x.tar").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="no text sample"):
        load_index("x.tar", str(tmp_path), "text")


NAMES = st.text(max_size=20) | st.sampled_from(["a.txt", "a.cls", "a.json", "b.txt", "b.npy"])
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=8)
EDITS = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(members=MEMBERS, edits=EDITS, cut=st.integers(0, 20_000))
def test_no_tar_breaks_the_scan(members, edits, cut):
    data = bytearray(tar([(n.encode("utf-8", "ignore").decode() or "x", d) for n, d in members]))
    for place, value in edits:
        data[place % len(data)] = value
    data = bytes(data[: max(1, cut)])
    entries, problems = scan_tar(io.BytesIO(data), ("txt", "npy"))
    for entry in entries:
        payload = data[entry.offset : entry.offset + entry.size]
        assert scan.content_hash(payload, text=entry.suffix == "txt") == entry.hash
    json.dumps([[e.key, e.source] for e in entries] + [[p.key, p.cause] for p in problems])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = ["kind", "keys", "labels", "offsets", "sizes", "suffixes", "hashes", "sources", "bytes"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FIELDS), JSON), min_size=1, max_size=3), JSON)
def test_no_index_breaks_loading(tmp_path_factory, changes, other):
    folder = tmp_path_factory.mktemp("index")
    (folder / "x.tar").write_bytes(tar(GOOD))
    entry = to_json(scan_shard(str(folder / "x.tar"), "text"))
    assert from_json(entry, "x").keys == ["a", "b"]
    for shards in ({"x.tar": {**entry, **dict(changes)}}, {"x.tar": other}, other):
        (folder / "index.json").write_text(json.dumps({"version": 1, "shards": shards}))
        index = load_index("x.tar", str(folder), "text")
        for data in read_rows(index, range(len(index))):
            assert isinstance(data, bytes)
    (folder / "index.json").write_text(json.dumps(other))
    assert load_index("x.tar", str(folder), "text").keys == ["a", "b"]
