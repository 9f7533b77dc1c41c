from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pipelines.sources import guards
from pipelines.streams.index import Shard
from pipelines.streams.shards import Index
from uml_core.errors import UserError


def make_index(
    contents: list[str],
    sources: list[str | None] | None = None,
    labels: list[int] | None = None,
    classes: tuple[str, ...] | None = None,
    name: str = "a",
) -> Index:
    n = len(contents)
    shard = Shard(
        url=f"/data/{name}.tar",
        kind="text",
        keys=[f"{name}{i}" for i in range(n)],
        labels=np.array(labels or [0] * n),
        offsets=np.arange(n) * 512,
        sizes=np.ones(n, np.int64),
        suffixes=["txt"] * n,
        hashes=[hashlib.sha256(c.encode()).hexdigest()[:16] for c in contents],
        sources=sources or [None] * n,
        bytes=512 * n,
        sha256="0" * 64,
    )
    return Index((shard,), classes)


def test_overlap_counts_test_samples_whose_content_was_trained_on() -> None:
    train = make_index(["x", "y", "z"], name="train")
    test = make_index(["y", "q", "y", "r"], name="test")
    found = guards.content_overlap([train], test)
    assert (found["test"], found["shared"], found["share"]) == (4, 2, 0.5)
    assert found["examples"] == [["test0", "train1"], ["test2", "train1"]]


def test_overlap_is_a_problem_for_the_target_only_and_only_above_the_allowed_share() -> None:
    data = {"image": make_index(["x", "y"]), "text": make_index(["x", "y"])}
    test = {"image": make_index(["x", "q"]), "text": make_index(["x", "q"])}
    problems, report = guards.check(data, test, target="image", allow_overlap=0.49)
    assert len(problems) == 1 and "image: 1 of 2 test samples (50.0%)" in problems[0]
    assert len(report["warnings"]) == 1 and report["warnings"][0].startswith("text: 1 of 2")
    problems, report = guards.check(data, test, target="image", allow_overlap=0.5)
    assert problems == [] and len(report["warnings"]) == 2


def test_validation_samples_count_as_seen() -> None:
    test = {"image": make_index(["v"])}
    problems, _ = guards.check(
        {"image": make_index(["t"])},
        test,
        target="image",
        allow_overlap=0.01,
        val={"image": make_index(["v"])},
    )
    assert len(problems) == 1


def test_training_content_in_the_validation_set_is_told_apart_from_a_leak() -> None:
    parts = [{"image": make_index(list(text))} for text in ("ab", "xy", "bc")]
    problems, report = guards.check(
        parts[0], parts[1], target="image", allow_overlap=0.0, val=parts[2]
    )
    assert problems == [] and report["overlap"]["image (val)"]["shared"] == 1
    assert any("1 of 2 val samples (50.0%)" in warning for warning in report["warnings"])


def test_labels_without_names_cost_no_more_than_there_are() -> None:
    def classes(*labels: int) -> tuple[int, list[str]]:
        return guards.unnamed_classes([make_index(["x"] * len(labels), labels=list(labels))])

    assert classes(0, 2, 1, -1) == (3, [])
    assert classes(0, 5) == (6, [])
    assert classes(-1, -1) == (0, [])
    count, (problem,) = classes(51, 47126, 200_000_001)
    assert count == 3 and "3 different ones, from 51 to 200000001" in problem
    _, (problem,) = classes(1, 2, 3)
    assert "start at 1: class 0 has no sample" in problem


def test_names_that_are_one_off() -> None:
    index = make_index(["x"] * 3, labels=[1, 2, 3])
    assert "count from 1" in guards.check_labels(index, 3, "here")[0]
    assert guards.check_labels(index, 4, "here") == []


def test_classes_of_one_split_only_are_named() -> None:
    names = ("cat", "dog", "owl", "elk")
    train = make_index(["x"] * 3, labels=[0, 1, 2], classes=names)
    test = make_index(["x"] * 2, labels=[0, 3], classes=names)
    assert guards.lopsided({"image": {"train": train, "test": test}}) == [
        "image: class 'elk' is in test, but has no training sample",
        "image: 2 classes ('dog', 'owl') are in train, but have no test sample: test accuracy is "
        "measured on 2 of 4 classes",
    ]
    assert guards.lopsided({"image": {"train": train, "test": train}}) == []


def test_class_lists_that_differ_are_told_apart_name_by_name() -> None:
    guards.check_classes({"image": ("a", "b"), "text": ("a", "b")})
    guards.check_classes({})
    with pytest.raises(UserError) as caught:
        guards.check_classes({"image": ("cat", "dog"), "text": ("cat", "dogs"), "audio": ("cat",)})
    assert len(caught.value.problems) == 2
    assert "image has 'dog' (did you mean 'dogs'?), which text lacks" in caught.value.problems[0]
    assert "image has 'dog', which audio lacks" in caught.value.problems[1]


def test_the_same_classes_in_another_order_are_an_error() -> None:
    with pytest.raises(UserError, match="class 0 is 'a' in image and 'b' in text"):
        guards.check_classes({"image": ("a", "b"), "text": ("b", "a")})


def test_a_label_out_of_range_names_shard_and_key() -> None:
    index = make_index(["x"] * 6, labels=[0, 2, 5, 3, 4, -1])
    problems = guards.check_labels(index, 2, "modalities.image.train")
    assert "label 2 of key a1 in /data/a.tar is out of range: there are 2 classes" in problems[0]
    assert len(problems) == 4 and "1 more labels" in problems[-1]
    assert guards.check_labels(index, 6, "x") == []


def shared(a: list[str | None], b: list[str | None], classes: tuple[str, ...] = ()) -> list[dict]:
    one = make_index(["x"] * len(a), a, classes=classes)
    two = make_index(["x"] * len(b), b, classes=classes)
    return guards.shared_sources({"image": [one], "audio": [two]})


def test_sources_that_two_modalities_share_are_pairs_in_disguise() -> None:
    (found,) = shared(["clip-1", "clip-2", "clip-3"], ["clip-2", "clip-9"])
    assert found["modalities"] == ["image", "audio"]
    assert (found["count"], found["share"], found["examples"]) == (1, 0.5, ["clip-2"])
    assert "image and audio share 1 source " in guards.source_sentence(found)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("cat/Rex_01.png", "cat/rex_01.wav"),  # suffix and letter case
        ("photos/cat/rex_01", "cat/rex_01"),  # one side gives more of the path
        ("rex_01", "photos\\cat\\rex_01.jpg"),
        ("./rex", "rex"),
    ],
)
def test_sources_match_however_they_are_written(a: str, b: str) -> None:
    assert shared([a], [b], ("cat", "dog"))


def test_plain_numbers_say_nothing() -> None:
    numbers = [str(i) for i in range(200)]
    assert shared(numbers, numbers[:80]) == []
    assert (
        shared([f"train/{i:04d}.png" for i in range(99)], [f"train/{i:04d}" for i in range(99)])
        == []
    )
    in_classes = [f"red circle/{i:03d}" for i in range(50)]
    assert shared(in_classes, in_classes, ("red circle", "dog")) == []
    assert shared([None, "a"], [None, "b"]) == []


def test_far_more_equal_numbers_than_chance_explains_are_reported() -> None:
    rng = np.random.default_rng(0)
    a = rng.choice(1_000_000, 400, replace=False)
    own = rng.choice(1_000_000, 400, replace=False)
    mixed = np.concatenate([a[:100], own[:300]])
    assert shared([str(n) for n in a], [str(n) for n in own]) == []
    (found,) = shared([str(n) for n in a], [str(n) for n in mixed])
    assert found["count"] >= 100


def test_sources_are_compared_between_all_modalities_and_splits() -> None:
    parts = {
        "image": [make_index(["x"], ["m"]), make_index(["x"], ["rex"])],
        "text": [make_index(["x"], ["n"])],
        "audio": [make_index(["x"], ["rex"])],
    }
    (found,) = guards.shared_sources(parts)
    assert found["modalities"] == ["image", "audio"]
