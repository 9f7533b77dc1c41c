"""Texts per class: names find their class, and what finds none is told, never dropped."""

from __future__ import annotations

import json

import pytest

from pipelines import cli
from pipelines.sources.descriptions import from_templates, read_descriptions
from pipelines.streams.shards import load_index, read_rows
from uml_core.errors import UserError

CLASSES = ["Golden Retriever", "cat", "café_au-lait"]


def texts(listing) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for item in listing.items:
        out.setdefault(item.label, []).append(item.text)
    return out


def test_names_match_without_case_and_separators(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(
        json.dumps(
            {
                "golden_retriever": ["A large dog.", " It is friendly. "],
                "cat": "A small cat.",
                "Cafe\u0301 au lait": ["Coffee."],
            }
        )
    )
    listing = read_descriptions(path, CLASSES)
    assert listing.kind == "text" and not listing.notes
    assert texts(listing) == {
        "Golden Retriever": ["A large dog.", "It is friendly."],
        "cat": ["A small cat."],
        "café_au-lait": ["Coffee."],
    }
    alike = read_descriptions(path, ["Golden Retriever", "golden retriever", "cat"])
    assert "golden_retriever" in texts(alike)  # which of the two is not for us to guess


def test_templates_name_every_class(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("a photo of a {}.\n\nthe {}, drawn\n")
    listing = read_descriptions(path, ["cat", "big_dog"])
    assert texts(listing) == {
        "cat": ["a photo of a cat.", "the cat, drawn"],
        "big_dog": ["a photo of a big dog.", "the big dog, drawn"],
    }
    assert from_templates(["{}"], ["a_b"]) == {"a_b": ["a b"]}
    with pytest.raises(UserError, match="need class names"):
        read_descriptions(path, None)
    path.write_text("a photo\n")
    with pytest.raises(UserError, match="every line must hold"):
        read_descriptions(path, ["cat"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": ["x"], "a": ["y"]}', "a given twice"),
        ('{"a": [1]}', "a: expected a list of sentences"),
        ("[1]", "expected a mapping"),
        ("{", "cannot be read"),
        ('{"a": []}', "holds no text"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path, content, said):
    path = tmp_path / "d.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_descriptions(path, None)


def test_prepare_lists_names_that_match_no_class(tmp_path, capsys):
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["cat", "dog", "owl"]))
    path = tmp_path / "descriptions.yaml"
    path.write_text("cat: [It purrs., It sleeps.]\ndgo: [It barks.]\nBACKGROUND: [Nothing.]\n")
    common = ["prepare", str(path), "--classes", str(classes), "--split", "train"]
    out = tmp_path / "out"
    assert cli.main([*common, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "'dgo' of 1 sample" in said and "did you mean 'dog'" in said
    assert "'BACKGROUND'" in said and "--skip-unknown" in said and not out.exists()
    assert cli.main([*common, "--out", str(out), "--skip-unknown"]) == 0
    both = capsys.readouterr()
    said = " ".join((both.out + both.err).split())
    assert "1 sample of 'dgo', which is no class (did you mean 'dog'?)" in said
    assert "'BACKGROUND'" in said and "2 of 3 classes have no text: dog, owl" in said
    index = load_index("text-train-*.tar", str(out), "text")
    assert sorted(read_rows(index, range(len(index)))) == [b"It purrs.", b"It sleeps."]
    assert index.labels.tolist() == [0, 0]


def test_names_in_yaml_are_the_words_that_stand_there(tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text("no: [a sign]\n1_000: [many]\n2020-01-01: [y]\nnull: [nothing, 7]\n1e3: x\n")
    found = texts(read_descriptions(path, ["no", "1_000", "2020-01-01", "null", "1e3"]))
    assert found["null"] == ["nothing", "7"] and set(found) == {
        *("no", "1_000", "2020-01-01", "null", "1e3")
    }
