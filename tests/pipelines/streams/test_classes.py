"""classes.json: a list of names, and what it is instead, told once with what to write."""

import json

import pytest

from pipelines.streams.classes import names_beside, parse, read_classes
from pipelines.streams.shards import Sample, load_index, write_shards
from uml_core.errors import UserError


def test_a_list_of_names_in_any_unicode():
    text = json.dumps(["käse", " Brot"], ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert parse(text.encode(encoding)) == ("käse", " Brot")


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b'{"cat": 0, "dog": 1}', 'as a list: ["cat", "dog"]'),
        (b'{"1": "dog", "0": "cat"}', 'as a list: ["cat", "dog"]'),
        (b'{"cat": 1, "dog": 2}', "an object, not a list of names"),
        (b'{"0": 1, "1": 0}', 'as a list: ["1", "0"]'),
        (b"{}", "an object, not a list of names"),
        (b"[]", "names no class"),
        (b'"cat"', "not a list of names"),
        (b'["cat", 7]', "name of class 1 is 7"),
        (b'["cat", "  "]', "name of class 1 is"),
        (b'["cat", "dog", "cat "]', "'cat' names classes 0 and 2"),
        ('["k\u00e4se", "ka\u0308se"]'.encode(), "names classes 0 and 1"),
        (b'["k\xe4se"]', "not UTF-8"),
        (b'["cat"', "not JSON"),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_it_is_instead(data, cause, tmp_path):
    with pytest.raises(ValueError) as told:
        parse(data)
    assert cause in str(told.value)
    (tmp_path / "classes.json").write_bytes(data)
    assert names_beside(str(tmp_path)) is None
    with pytest.raises(UserError, match=r"classes\.json: "):
        read_classes(str(tmp_path))


def test_a_useless_list_is_never_passed_over(tmp_path):
    write_shards([Sample("a", "txt", b"a", 0)], str(tmp_path), "text-train", "text")
    (tmp_path / "classes.json").write_text("[]")
    with pytest.raises(UserError, match="names no class"):
        load_index("text-train-*.tar", str(tmp_path), "text")
