from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from pipelines.sources.reading import Reading, read_source
from uml_core.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def fails(source: Path, reading: Reading | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_source(source, reading or Reading())
    return str(caught.value)


# ---------------------------------------------------------------------------------- folders


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.PNG", "cat/deep/2.jpg", "cat/.DS_Store", ".git/x.png", "cat/notes.md")
    listing = read_source(tmp_path, Reading())
    assert listing.kind == "image"
    assert [(i.name, i.label, i.source, i.split, i.suffix) for i in listing.items] == [
        ("cat/deep/2.jpg", "cat", "cat/deep/2", None, "jpg"),
        ("dog/1.PNG", "dog", "dog/1", None, "png"),
    ]
    assert listing.notes == ["left out: 1 .md"]


def test_split_folders_are_splits_and_a_class_called_test_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path / "a", "train/cat/1.png", "Validation/cat/2.png", "test/cat/3.png", "x/y/4.png")
    listing = read_source(tmp_path / "a", Reading())
    assert {i.name: (i.split, i.label) for i in listing.items} == {
        "train/cat/1.png": ("train", "cat"),
        "Validation/cat/2.png": ("val", "cat"),
        "test/cat/3.png": ("test", "cat"),
    }
    assert listing.notes == ["x: 1 file left out, beside the split folders"]
    touch(tmp_path / "b", "test/1.png", "exam/2.png")
    assert {i.label for i in read_source(tmp_path / "b", Reading()).items} == {"test", "exam"}


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "far", "1.wav")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "cat").symlink_to(tmp_path / "far")
    assert [i.label for i in read_source(tmp_path / "near", Reading()).items] == ["cat"]


def test_loose_files_need_classes_or_the_word_that_there_are_none(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png", "cat/3.png")
    assert "2 files outside a class folder, e.g. 1.png" in fails(tmp_path)
    listing = read_source(tmp_path, Reading(unlabelled=True))
    assert [i.label for i in listing.items] == [None] * 3


def test_arrays_do_not_tell_their_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.npy", "a/2.npz")
    assert "can be sequence or vector: give --kind" in fails(tmp_path)
    assert len(read_source(tmp_path, Reading(kind="vector")).items) == 2


def test_folders_without_a_usable_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no file" in fails(tmp_path / "empty")
    touch(tmp_path / "tiff", "a/1.tiff", "a/2.tiff")
    assert "only 2 .tiff. Convert them to one of" in fails(tmp_path / "tiff")
    assert "no audio file (wav flac ogg)" in fails(
        touch(tmp_path / "p", "a/1.png"), Reading("audio")
    )
    assert "did you mean 'tiff'?" in fails(tmp_path / "tif")


# ----------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_texts(tmp_path: Path, separator: str) -> None:
    rows = [["Caption", "ID", "Class", "split"], ["a, b; c\td", "i-1.txt", " cat ", "TRAIN"]]
    lines = [separator.join(f'"{cell}"' for cell in row) for row in rows]
    table = write(tmp_path / "t.csv", "\ufeff" + "\n".join(lines))
    listing = read_source(table, Reading())
    (item,) = listing.items
    assert (listing.kind, item.text, item.label) == ("text", "a, b; c\td", "cat")
    assert (item.source, item.split, item.name, item.suffix) == (
        "i-1",
        "train",
        "t.csv row 2",
        "txt",
    )


def test_words_that_look_like_missing_values_stay_words(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "text,label\nNA,null\nnan,007\n")
    assert [(i.text, i.label) for i in read_source(table, Reading()).items] == [
        ("NA", "null"),
        ("nan", "007"),
    ]


def test_parquet_with_numbers_as_labels_and_gaps(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"sentence": ["x", None, "z"], "target": [3, 1, 2]})
    frame.to_parquet(tmp_path / "t.parquet")
    listing = read_source(tmp_path / "t.parquet", Reading())
    assert [(i.text, i.label) for i in listing.items] == [("x", "3"), ("z", "2")]
    assert listing.bad == [("t.parquet row 3", "the text is empty")]


def test_rows_without_a_label_are_bad_unless_labels_are_not_wanted(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "text,label\nx,a\ny,\n")
    assert read_source(table, Reading()).bad == [("t.csv row 3", "it has no label")]
    assert len(read_source(table, Reading(unlabelled=True)).items) == 2


def test_missing_columns_are_named_with_what_they_might_be(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "captoin,lable\nx,a\n")
    message = fails(table)
    assert "no column for the text" in message and "perhaps 'captoin'?" in message
    assert "no column for the label" in message and "perhaps 'lable'?" in message
    reading = Reading(text_column="captoin", label_column="lable")
    assert len(read_source(table, reading).items) == 1
    assert "no column 'lables' (did you mean 'lable'?)" in fails(
        table, Reading(text_column="captoin", label_column="lables")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\n\xff\xfe,a\n", "is not UTF-8"),
        (b"", "cannot be read as a table"),
        (b"text,label\n", "has no row"),
        (b"text,label\na,b,c,d\n", "more cells than its first line"),
        (b"text,label\na,b\na,b,c,d\n", "cannot be read as a table"),
    ],
)
def test_damaged_tables(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    assert message in fails(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(content)
    assert "cannot be read as a table" in fails(tmp_path / "t.parquet")


def test_a_table_of_files(tmp_path: Path) -> None:
    touch(tmp_path / "clips", "a/1.WAV", "2.flac", "notes.txt")
    text = "file,label\na/1.WAV,cat\n2,dog\ngone.wav,cat\nnotes.txt,cat\n"
    table = write(tmp_path / "t.csv", text)
    listing = read_source(table, Reading(files=tmp_path / "clips"))
    assert listing.kind == "audio"
    assert [(i.name, i.source, i.suffix) for i in listing.items] == [
        ("a/1.WAV", "a/1", "wav"),
        ("2", "2", "flac"),
    ]
    assert listing.bad == [("t.csv row 4", "there is no file gone.wav")]
    assert listing.notes == ["left out: 1 .txt"]
    assert "none of its files lies in" in fails(table)


def test_a_folder_of_files_with_one_table(tmp_path: Path) -> None:
    touch(tmp_path, "1.wav")
    write(tmp_path / "labels.csv", "filename,class\n1.wav,cat\n")
    assert [i.label for i in read_source(tmp_path, Reading()).items] == ["cat"]
    write(tmp_path / "more.csv", "x\n")
    assert "holds 2 tables (labels.csv, more.csv)" in fails(tmp_path)


def test_captions_know_the_file_they_belong_to(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png")
    table = write(tmp_path / "t.csv", "file,caption,label\ncat/1.png,a cat,cat\n")
    (item,) = read_source(table, Reading(kind="text")).items
    assert (item.text, item.source, item.path) == ("a cat", "cat/1", None)
    (item,) = read_source(table, Reading()).items
    assert (item.text, item.source) == (None, "cat/1")


def test_class_names_are_equal_however_their_accents_are_stored(tmp_path: Path) -> None:
    touch(tmp_path, "A\u0308pfel/1.png")
    assert read_source(tmp_path, Reading()).items[0].label == "\u00c4pfel"
