"""YAML of bounded size: nothing a recipe says takes long, fills memory or runs code."""

import resource
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uml_core import typed
from uml_core.errors import UserError
from uml_core.recipe import load
from uml_core.typed import read_yaml

BILLION = "\n".join(
    ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
)
MERGED = "\n".join(
    ["a0: &a0 {k0: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40)]
)
KEYS = "\n".join(["a0: &a0 [x]"] + [f"? [*a{i - 1}, *a{i - 1}]\n: &a{i} 1" for i in range(1, 3)])
ATTACKS = {
    "aliases of aliases": (BILLION, "more than 20000 values"),
    "merges of merges": (MERGED, "more than 20000 values"),
    "collections as keys": (KEYS, "unhashable"),
    "an alias of itself": ("a: &a [*a]", "holds itself"),
    "a mapping in itself": ("a: &a {b: *a}", "holds itself"),
    "lists in lists": ("[" * 100_000, "nested too deeply"),
    "mappings in mappings": ("{a: " * 100_000, "nested too deeply"),
    "blocks in blocks": ("\n".join(" " * i + "a:" for i in range(1000)), "nested too deeply"),
    "many values": ("[" + "1," * 30_000 + "]", "more than 20000 values"),
    "many keys": ("\n".join(f"k{i}: 1" for i in range(12_000)), "more than 20000 values"),
    "a long text": ("a: " + "x" * 2_000_000, "more than 1048576 characters"),
    "a long value": ("a: " + "x" * 20_000, "a value of 20000 characters"),
    "a number in base 60": ("a: 1" + ":59" * 20_000, "a value of 60001 characters"),
    "a long number in base 60": ("a: 1" + ":59" * 3_000, "more than 63 bits"),
    "many digits": ("a: " + "9" * 5000, "integer string conversion"),
    "many hexadecimal digits": ("a: 0x" + "f" * 5000, "more than 63 bits"),
    "a zero byte": (r'a: "\0"', "no file name"),
    "half a character": (r'a: "\ud800"', "no file name"),
    "a Python object": ("a: !!python/object/apply:os.system [ls]", "could not determine"),
    "a Python name": ("a: !!python/name:os.system", "could not determine"),
    "a day that is none": ("a: 2026-99-99", "month must be"),
    "no base64": ("a: !!binary a", "base64"),
    "no set": ("a: !!set [1]", "expected a mapping"),
}


def peak_memory() -> int:
    """Bytes this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_in_words_and_at_once(attack):
    text, words = ATTACKS[attack]
    start, before = time.process_time(), peak_memory()
    with pytest.raises(ValueError, match=words) as caught:
        read_yaml(text)
    assert type(caught.value) is ValueError
    assert time.process_time() - start < 20 and peak_memory() - before < 300 << 20


def test_aliases_within_reason_are_legal():
    assert read_yaml("a: &a {k: 1}\nb: *a\nc: {<<: *a, l: 2}") == {
        "a": {"k": 1},
        "b": {"k": 1},
        "c": {"k": 1, "l": 2},
    }


def test_only_the_first_of_many_wrong_values_are_told(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("seeds: [" + "x, " * 5000 + "]\n")
    with pytest.raises(UserError) as caught:
        load(path)
    told = [problem for problem in caught.value.problems if problem.startswith("seeds")]
    assert len(told) == typed.MAX_TOLD + 1 and "4990 more values are wrong" in told[-1]


def test_an_endless_file_is_not_read_to_its_end(tmp_path):
    with pytest.raises(UserError, match="more than 1048576 characters"):
        load("/dev/zero")


SIGNS = st.text(alphabet="&*<>{}[]:-,|!'\"?@#% \n~ab01x.\\", max_size=60)
TAGS = st.sampled_from(["!!int ", "!!binary ", "!!timestamp ", "!!omap ", "!!pairs ", "!!set "])
PIECES = TAGS | st.sampled_from(
    ["&a ", "*a", "<<: ", "? ", "- ", "a: ", "\n", "  ", "[", "]", "{", "}", ", ", "|\n", "---"]
)
VALUES = st.sampled_from(["1:59", "0x", "2026-01-01", ".inf", "1e999", "~", "1_0"])


@given(st.lists(SIGNS | PIECES | VALUES, max_size=12).map("".join))
@settings(max_examples=200, deadline=None)
def test_any_text_is_plain_values_or_refused(text):
    try:
        value = read_yaml(text)
    except ValueError as error:
        assert str(error)
    else:
        assert plain(value)


def plain(value) -> bool:
    if isinstance(value, dict):
        return all(plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set):
        return all(map(plain, value))
    return value is None or type(value).__module__ in ("builtins", "datetime")
