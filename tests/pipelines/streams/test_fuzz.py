"""Foreign shards from tar to batch: an error of ours or a quarantined sample, nothing else."""

import io
import json
import tarfile
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.sources.inspection import check_shard, kinds_in
from pipelines.streams.index import from_json, scan_shard, to_json
from pipelines.streams.plan import Plan
from pipelines.streams.quarantine import Quarantine
from pipelines.streams.reader import iter_plan
from pipelines.streams.scan import MAX_GLOBALS, content_hash, scan_tar
from pipelines.streams.shards import load_index, write_subset
from uml_core.errors import RunError, UserError
from uml_core.modalities import KINDS

FOLDER = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def tar(members, form=tarfile.PAX_FORMAT, **options) -> bytes:
    """Bytes of a tar of (name, bytes)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, **options) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return file.getvalue()


STEMS = st.sampled_from(["a", "b", "/etc/passwd", "../../x", "d/./e", "\x1b[2Jc", "n" * 5000, "é"])
NAMES = st.builds(
    lambda stem, suffix: stem + suffix,
    STEMS,
    st.sampled_from(
        [f".{s}" for kind in KINDS.values() for s in kind.suffixes] + [".cls", ".json"]
    ),
)
LABELS = st.sampled_from([b"0", b" 1\n", b"-1", b"1e3", b"\xff", b"9" * 5000, b"[" * 9000, b"null"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
ABOUT = st.dictionaries(st.sampled_from(["label", "source", "src", "x"]), JSON).map(
    lambda value: json.dumps(value).encode()
)
MEMBERS = st.lists(
    st.tuples(NAMES, st.binary(max_size=60) | LABELS | ABOUT | st.just(b"good words")), max_size=8
)
FORMS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


@pytest.mark.parametrize("kind", KINDS)
@FOLDER
@given(members=MEMBERS, form=FORMS)
def test_any_tar_becomes_batches_or_an_error_of_ours(tmp_path, kind, members, form):
    (tmp_path / "x.tar").write_bytes(tar(members, form))
    before = sorted(path.name for path in tmp_path.rglob("*") if "sub" not in path.parts)
    result = check_shard({"url": str(tmp_path / "x.tar"), "kind": kind, "options": {}})
    bad = {key for key, _, lost, _ in result["problems"] if lost}
    assert set(kinds_in(str(tmp_path / "x.tar"))) <= set(KINDS)
    try:
        index = load_index("x.tar", str(tmp_path), kind)
        quarantine = Quarantine(None, 1000, modality=kind, rows=len(index))
        plan = Plan(len(index), 4, 0, kind, shuffle=False)
        modality = KINDS[kind](KINDS[kind].Options())
        kept = [
            key
            for item in iter_plan(index, plan, modality, quarantine=quarantine, augment=False)
            for key in item.batch.keys
        ]
        if kind != "vector":  # vectors of several sizes do not make one batch
            assert set(kept).isdisjoint(bad) and {key for _, key in quarantine.errors} <= bad
        copy = write_subset(index, range(len(index)), str(tmp_path / "sub" / "s.tar"))
        assert [copy.origin(row) for row in range(len(copy))] == [
            index.origin(row) for row in range(len(index))
        ]
    except (UserError, RunError) as error:
        assert str(error)
    assert before == sorted(path.name for path in tmp_path.rglob("*") if "sub" not in path.parts)


@FOLDER
@given(content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_class_list_is_names_or_an_error_of_ours(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(tar([("a.txt", b"one"), ("a.cls", b"0")]))
    for name in ("classes.json", "index.json"):
        (tmp_path / name).write_bytes(content)
        try:
            index = load_index("x.tar", str(tmp_path), "text")
        except UserError as error:
            assert name in str(error)
        else:
            assert index.classes is None or all(isinstance(n, str) for n in index.classes)
        (tmp_path / name).unlink()


def test_the_parsers_of_tarfile_may_raise_what_they_like():
    """An old sparse header whose continuation is missing: `tarfile` raises IndexError."""
    info = tarfile.TarInfo("x.txt")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 1000
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(IndexError):
        tarfile.open(fileobj=io.BytesIO(bytes(header)), mode="r|").close()
    entries, problems = scan_tar(io.BytesIO(bytes(header)), ("txt",))
    assert entries == [] and "not a whole tar" in problems[0].cause


def test_records_for_all_members_are_few():
    """`tarfile` copies them for each member: a thousand of them make a scan take hours."""
    records = {f"UML.{i}": "x" for i in range(MAX_GLOBALS + 1)}
    data = tar([("a.txt", b"one")], pax_headers=records)
    _, problems = scan_tar(io.BytesIO(data), ("txt",))
    assert "records for all members" in problems[0].cause
    assert len(scan_tar(io.BytesIO(tar([("a.txt", b"one")], pax_headers={"k": "v"})), ("txt",))[0])


def test_names_reach_no_terminal_as_they_are():
    members = [("\x1b[2J\n.txt", b"1"), ("x" * 5000 + ".txt", b"2"), ("a.txt", b"3")]
    about = json.dumps({"label": 1, "source": ["not", "a", "name"]}).encode()
    entries, problems = scan_tar(io.BytesIO(tar([*members, ("a.json", about)])), ("txt",))
    assert [entry.key for entry in entries] == ["\\x1b[2J\\n", "a"]
    assert entries[1].source is None and entries[1].label == 1
    assert "5004 characters" in problems[0].cause and len(problems[0].key) < 100


def test_texts_that_grow_or_take_long_are_compared_as_they_are():
    start = time.process_time()
    content_hash("\ufdfa".encode() * 1_000_000, text=True)
    content_hash(b"a" + "\u0315\u05b0".encode() * 200_000, text=True)
    assert time.process_time() - start < 5
    assert content_hash("  É a ".encode(), text=True) == content_hash(b"e\xcc\x81 A", text=True)


def test_an_index_whose_payloads_overlap_is_not_used(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar([(f"{i}.txt", b"x" * 1000) for i in range(3)]))
    entry = to_json(scan_shard(str(tmp_path / "x.tar"), "text"))
    assert from_json(entry, "x") is not None
    whole = {"offsets": [0, 1, 2], "sizes": [entry["bytes"] - 2] * 3}
    assert from_json({**entry, **whole}, "x") is None
