"""Sources as people have them: nothing left out, replaced or turned into its printed form."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import cli
from pipelines.sources.class_notes import name_notes
from pipelines.sources.folders import places
from pipelines.sources.inputs import open_inputs
from pipelines.sources.reading import Reading, read_source
from pipelines.streams.shards import write_classes
from uml_core.errors import UserError


def placed(*names: str) -> dict[str, tuple[str | None, str | None]]:
    return places(names, [])


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train/train", "test/test"),
        ("training_set", "test_set"),
        ("train2017/images", "val2017/images"),
        ("archive/train", "archive/test"),
    ],
)
def test_splits_however_archives_spell_them(train, test):
    found = placed(*(f"{part}/{c}/1.png" for part in (train, test) for c in ("cat", "dog")))
    other = "val" if "val" in test else "test"
    assert found == {
        f"{part}/{c}/1.png": (split, c)
        for part, split in ((train, "train"), (test, other))
        for c in ("cat", "dog")
    }


def test_folders_around_classes_and_splits_below_them():
    notes: list[str] = []
    assert places(["pets/cat/1.png", "pets/dog/2.png"], notes) == {
        "pets/cat/1.png": (None, "cat"),
        "pets/dog/2.png": (None, "dog"),
    }
    assert notes == ["pets: taken for a folder around the classes, not for a class"]
    assert placed("cat/train/1.png", "cat/test/2.png") == {
        "cat/train/1.png": ("train", "cat"),
        "cat/test/2.png": ("test", "cat"),
    }
    classes = placed("train station/1.png", "test tube/2.png", "cat/3.png")
    assert [label for _, label in classes.values()] == ["train station", "test tube", "cat"]


def table(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


LABELS = pa.array(["a", "b"])


def test_cells_of_a_table_are_what_they_mean(tmp_path):
    path = tmp_path / "t.parquet"

    def read(**columns: pa.Array) -> list[tuple[str | None, str | None]]:
        items = read_source(table(path, **columns), Reading()).items
        return [(item.text, item.label) for item in items]

    text = pa.array(["x", "y"])
    assert read(text=pa.array([["p", "q"], ["r"]]), label=LABELS) == [
        ("p", "a"),
        ("q", "a"),
        ("r", "b"),
    ]
    for kind in (pa.large_string(), pa.string_view(), pa.binary()):
        assert read(text=text.cast(kind), label=LABELS) == [("x", "a"), ("y", "b")]
    assert read(text=text.dictionary_encode(), label=pa.array([True, False])) == [
        ("x", "True"),
        ("y", "False"),
    ]
    assert read(text=text, label=pa.array([3, None])) == [("x", "3")]
    assert read(text=text, label=pa.array([3.0, None])) == [("x", "3")]
    assert read(text=text, label=pa.array([Decimal("1"), Decimal("2")])) == [("x", "1"), ("y", "2")]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": pa.array([{"a": 1}, {"a": 2}]), "label": LABELS}, "struct<a: int64>"),
        ({"text": pa.array([1, 2]), "label": LABELS}, "int64, not texts"),
        ({"text": pa.array([[1], [2]]), "label": LABELS}, "list<element: int64>|list<item: int64>"),
        ({"text": LABELS, "label": pa.array([["a"], ["b"]])}, "list<.*>, not names"),
        ({"text": LABELS, "label": pa.array([0.5, 1.0])}, "with fractions"),
        ({"text": LABELS, "label": pa.array([0, 1], pa.timestamp("s"))}, "timestamp"),
        ({"text": pa.array([b"\x89PNG\r\n\x1a\n", b"x"]), "label": LABELS}, "a PNG"),
        ({"image": pa.array([b"\xff\xd8", b"x"]), "label": LABELS}, "holds whole files"),
        (
            {"image": pa.array([{"bytes": b"\xff", "path": "x"}] * 2), "label": LABELS},
            "holds whole files",
        ),
    ],
)
def test_other_cells_are_refused_with_their_type(tmp_path, columns, said):
    with pytest.raises(UserError, match=said) as caught:
        read_source(table(tmp_path / "t.parquet", **columns), Reading())
    assert len(caught.value.problems) == 1 and len(str(caught.value)) < 400


def test_a_lone_quote_swallows_no_lines(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('text\tlabel\none\ta\n"Best, a cat\ta\ntwo\tb\nthe best"\tb\n', "utf-8")
    listing = read_source(path, Reading())
    assert [i.text for i in listing.items] == ["one", '"Best, a cat', "two", 'the best"']
    assert "line 3" in listing.notes[0]
    path.write_text('text\tlabel\n"good"\ta\n"Best, a cat\ta\ntwo\tb\n', "utf-8")
    with pytest.raises(UserError, match="line 3: a cell begins with a quote"):
        read_source(path, Reading())
    path.write_text('text,label\n"two\nlines, said",a\n', "utf-8")
    assert read_source(path, Reading()).items[0].text == "two\nlines, said"


def test_tables_of_excel_and_windows(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"sep=;\r\ntext;label\r\nx;a\r\n")
    assert read_source(path, Reading()).items[0].text == "x"
    path.write_bytes("text,label\ncaf\xe9,a\n".encode("cp1252"))
    with pytest.raises(UserError, match="seems to be Windows-1252"):
        read_source(path, Reading())
    path.write_bytes("text,label\nx,a\n".encode("utf-16"))
    with pytest.raises(UserError, match="seems to be UTF-16"):
        read_source(path, Reading())
    path.write_text("text,label,label\nx,a,7\n", "utf-8")
    with pytest.raises(UserError, match="2 columns called 'label'"):
        read_source(path, Reading())
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "A.PNG").write_bytes(b"x")
    path.write_text("file,label\ncat\\A.PNG,a\ncat/a.png,a\n", "utf-8")
    listing = read_source(path, Reading())
    assert [i.name for i in listing.items] == ["cat\\A.PNG"]
    assert "it is called cat/A.PNG" in listing.bad[0][1]


VALUES = [[float(i + j) for j in range(4)] for i in range(3)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([np.array(v, np.float16) for v in VALUES], pa.list_(pa.float16())),
        pa.array(VALUES, pa.list_(pa.float32(), 4)),
        pa.array(VALUES, pa.large_list(pa.float64())),
        pa.array([[Decimal(int(x)) for x in v] for v in VALUES]),
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(VALUES, np.float32)),
    ],
    ids=["halves", "fixed", "large", "decimal", "tensor"],
)
def test_vectors_are_the_same_numbers_however_they_are_stored(tmp_path, column):
    path = table(tmp_path / "v.parquet", id=pa.array(["x", "y", "z"]), features=column)
    rows = list(open_inputs(str(path), "vector").read(0, 3))
    assert [r.key for r in rows] == ["x", "y", "z"] and not any(r.error for r in rows)
    assert np.array_equal(np.array([r.data for r in rows]), VALUES)


def test_a_bad_cell_costs_its_row_and_an_odd_column_names_its_type(tmp_path):
    column = pa.array([[1.0, None], None, [1.0, 2.0]])
    path = table(tmp_path / "v.parquet", features=column)
    rows = list(open_inputs(str(path), "vector").read(0, 3))
    assert [bool(r.error) for r in rows] == [True, True, False]
    files = pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": "p"}])
    path = table(tmp_path / "i.parquet", image=files)
    rows = list(open_inputs(str(path), "image").read(0, 2))
    assert rows[0].data == b"x" and "the path of a file" in rows[1].error
    texts = table(tmp_path / "t.parquet", text=pa.array([b"x", b"\xff"]))
    rows = list(open_inputs(str(texts), "text").read(0, 2))
    assert rows[0].data == "x" and "no UTF-8" in rows[1].error
    odd = table(tmp_path / "m.parquet", features=pa.array([[("a", 1)]], pa.map_("string", "int8")))
    with pytest.raises(UserError, match=r"no column holds lists of numbers; found features \(map"):
        open_inputs(str(odd), "vector")


@pytest.mark.parametrize(
    "foreign",
    [
        '{"version": 2, "shards": [{"format": "mds"}]}',
        '{"chunks": []}',
        '{"__kind__": "simple", "shardlist": []}',
        "[1]",
        "no json",
        "",
    ],
)
def test_an_index_json_of_others_is_never_touched(tmp_path, foreign, capsys):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.json").write_text(foreign)
    texts = tmp_path / "t.csv"
    texts.write_text("text,label\nx,a\ny,b\n")
    for words in ([str(texts), "--split", "train"], ["shapes", "--train", "1", "--test", "1"]):
        assert cli.main(["prepare", *words, "--out", str(out)]) == 2
    assert (out / "index.json").read_text() == foreign
    assert [p.name for p in out.iterdir()] == ["index.json"]


def test_a_class_list_that_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "classes.json").write_text('["a","b"]')
    write_classes(str(tmp_path), ["a", "b"])
    assert (tmp_path / "classes.json").read_text() == '["a","b"]'
    with pytest.raises(UserError, match="holds other names"):
        write_classes(str(tmp_path), ["a", "c"])


def test_alike_names_and_splits_without_a_class_are_told(tmp_path, capsys):
    assert "'Cat', 'cat' differ in case" in name_notes(["Cat", "cat", "dog"])[0]
    assert "missing value" in name_notes(["NaN", "x"])[0]
    texts = tmp_path / "t.csv"
    texts.write_text("text,label\nx,a\ny,b\nz,b\n")
    assert cli.main(["prepare", str(texts), "--out", str(tmp_path / "o"), "--json"]) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
    assert "test has no sample of 1 of 2 classes: 'a'" in notes
    pointer = tmp_path / "p" / "a"
    pointer.mkdir(parents=True)
    (pointer / "1.npy").write_text("version https://git-lfs.github.com/spec/v1\n")
    args = ["prepare", str(tmp_path / "p"), "--kind", "vector", "--out", str(tmp_path / "q")]
    assert cli.main(args) == 2 and "git lfs pull" in " ".join(capsys.readouterr().err.split())
