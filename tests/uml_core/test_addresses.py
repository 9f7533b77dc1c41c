"""Urls: taken apart, put together, and shown without their secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from uml_core import addresses, recipe
from uml_core.addresses import redacted
from uml_core.errors import RunError, UserError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:p@h:80/a.tar?sig=x/y#z", "http://***@h:80/a.tar?***"),
        ("'http://h/a?sig=a%2Fb' is gone", "'http://h/a?***' is gone"),
        ("https://h/a.tar?X-Amz-Signature=f: 403", "https://h/a.tar?***: 403"),
        ("https://token@h/a", "https://***@h/a"),
        ("https://h/a#token", "https://h/a#***"),
        ("postgresql://u:p/w@h/db", "postgresql://***@h/db"),
        ("postgresql:///db?password=x", "postgresql:///db?***"),
        ("s3://b/image-?.tar", "s3://b/image-?.tar"),
        ("s3://k:s@b/x?secret_key=y", "s3://***@b/x?***"),
        ("sqlite:////a/b?c#d", "sqlite:////a/b?c#d"),
        ("no url? none#here user@host", "no url? none#here user@host"),
    ],
)
def test_shown_without_secrets(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


def test_long_texts_take_no_time() -> None:
    assert redacted("a" * 2_000_000 + "://u:p@h") == "a" * 2_000_000 + "://***@h"


def test_errors_show_no_secrets() -> None:
    url = "http://user:word@h/a?sig=abc"
    for error in (UserError([f"there is no {url}"]), RunError(f"{url} is gone")):
        assert "word" not in str(error) and "abc" not in str(error)
    assert UserError(url).problems == ["http://***@h/a?***"]


def test_the_query_goes_along_with_what_lies_beside() -> None:
    url = "https://h/c/image-train-0.tar?sig=a/b%2Fc"
    assert addresses.name_of(url) == "image-train-0.tar"
    assert addresses.folder_of(url) == "https://h/c?sig=a/b%2Fc"
    assert addresses.beside(url, "classes.json") == "https://h/c/classes.json?sig=a/b%2Fc"
    assert addresses.absolute("x.tar", "https://h/c?sig=a/b") == "https://h/c/x.tar?sig=a/b"
    assert addresses.folder_of("s3://b/a?/x.tar") == "s3://b/a?"
    assert addresses.on_the_wire("http://h/a b%2Fü%z?x=%2F") == "http://h/a%20b%2F%C3%BC%25z?x=%2F"


def test_file_urls_are_paths(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    for url in ("file:/x/y", "file:///x/y", "FILE://localhost/x/y"):
        assert addresses.absolute(url, "data") == "/x/y"
    assert addresses.absolute(f"file://{tmp_path}/a%20b/x") == f"{tmp_path}/a b/x"
    assert addresses.absolute("S3://B/x") == "s3://B/x"
    assert "no other machine" in (addresses.problem_of("file://host/x") or "")


@pytest.mark.parametrize(
    "url",
    [
        "hf://a/b",
        "gcs://b/x",
        "s3a://b/x",
        "hdfs://n/x",
        "s3://k:s@b/x",
        "http:///x",
        "https://h/?***",
    ],
)
def test_what_cannot_be_read_is_said(url: str) -> None:
    assert addresses.problem_of(url)
    assert addresses.problem_of(f"https://h/{len(url)}") is None


def test_a_resolved_recipe_holds_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    url = "https://user:word@h/data?sig=abc"
    body = {"name": "x", "target": "image", "shots": 2, "data_root": url}
    body["modalities"] = {"image": {"kind": "image", "train": [f"{url}1", "b.tar"]}}
    path.write_text(json.dumps(body))
    found = recipe.load(path)
    assert found.data_root == url
    shown = yaml.safe_load(found.to_yaml())
    assert shown["data_root"] == "https://***@h/data?***"
    assert shown["modalities"]["image"]["train"] == ["https://***@h/data?***", "b.tar"]
    assert yaml.safe_load(found.to_yaml(secrets=True))["data_root"] == url
    # What was written down is refused with what to do, and works with the url given again.
    path.write_text(found.to_yaml())
    assert "again" in (addresses.problem_of(str(recipe.load(path).data_root)) or "")
    again = recipe.load(path, [f"data_root={url}"])
    assert again.data_root == url


def test_relative_data_roots_stay_paths(tmp_path: Path) -> None:
    assert addresses.absolute("a/b", tmp_path) == os.path.join(tmp_path, "a", "b")
