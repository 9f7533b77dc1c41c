"""One rule for modality and split, held against names as people give them."""

import pytest

from pipelines.streams.layout import arrange, misplaced, place, places

NAMES = [
    ("image-train-000000.tar", "image", "train"),
    ("train-000.tar", None, "train"),
    ("train_0.tar", None, "train"),
    ("TRAIN-12.TAR", None, "train"),
    ("train-00000-of-00010.tar", None, "train"),
    ("training-1.tar", None, "train"),
    ("00000-train.tar", None, "train"),
    ("val-000.tar", None, "val"),
    ("valid.tar", None, "val"),
    ("dev-0001.tar", None, "val"),
    ("eval_3.tar", None, "val"),
    ("imagenet1k-validation-00.tar", "imagenet1k", "val"),
    ("cifar-10-test-0.tar", "cifar-10", "test"),
    ("my_image.test.000.tar", "my_image", "test"),
    ("train2017.tar", None, "train"),
    ("train_images_0.tar", "images", "train"),
    ("train-shard-0.tar", None, "train"),
    ("image-train-000000.tar.gz", "image", "train"),
    ("s3://bucket/x/text-val-0.tar?versionId=7", "text", "val"),
    ("/data/test/0.tar", None, "test"),
    ("/data/test/image-train-0.tar", "image", "train"),
    ("00000.tar", None, None),
    ("shard_000001.tar", None, None),
    ("part-1-of-3.tar", None, None),
    ("words.tar", "words", None),
    ("image0001.tar", "image", None),
    ("latest-0.tar", "latest", None),
    ("contest.tar", "contest", None),
    ("devices-00.tar", "devices", None),
    ("trainval-00.tar", "trainval", None),
    ("test-dev-0.tar", None, None),
]


@pytest.mark.parametrize(("name", "modality", "split"), NAMES)
def test_what_a_name_tells(name, modality, split):
    found = place(name)
    assert (found.modality, found.split) == (modality, split)
    assert (found.problem is not None) == (name == "test-dev-0.tar")


def test_only_a_url_has_a_query():
    asked = places(["/my data ?q=1 #2/text-train-0.tar", "http://a/image-test-0.tar?sig=train"])
    assert [(p.modality, p.split) for p in asked.values()] == [("text", "train"), ("image", "test")]


def test_folders_tell_what_files_do_not():
    found = places(
        ["d/image/train/0.tar", "d/image/validation/shard-0.tar", "d/text-test/00.tar", "d/a/b.tar"]
    )
    assert [(p.modality, p.split) for p in found.values()] == [
        ("image", "train"),
        ("image", "val"),
        ("text", "test"),
        ("b", None),
    ]
    clash = places(["d/test/train-0.tar", "d/x.tar"])["d/test/train-0.tar"]
    assert clash.split is None and "'train' and 'test'" in clash.problem


def layout(*urls, split=None):
    found = arrange([f"d/{url}" for url in urls], lambda _: "image", split)
    return {at: len(urls) for at, urls in found.groups.items()}, [c for _, c in found.problems]


def test_shards_without_a_name_go_by_their_kind_and_never_by_their_number():
    assert layout("train-0.tar", "train-1.tar", "test-0.tar") == (
        {("image", "train"): 2, ("image", "test"): 1},
        [],
    )
    assert layout("00000.tar", "00001.tar", "00002.tar") == ({("image", None): 3}, [])
    assert layout("train/0.tar", "test/0.tar")[0] == {("image", "train"): 1, ("image", "test"): 1}


def test_what_the_rule_cannot_tell_is_asked_for():
    groups, (cause,) = layout("image-train-0.tar", "image-1.tar")
    assert groups == {("image", "train"): 1} and "1 of the shards of image tell no split" in cause
    assert layout("image-train-0.tar", "image-1.tar", split="test") == (
        {("image", "train"): 1, ("image", "test"): 1},
        [],
    )
    _, (cause,) = layout("train-0.tar", "val-0.tar", "dev-0.tar")
    assert "val and dev both mean the val split" in cause


def test_upper_and_lower_case_are_one_modality():
    found = arrange(["/d/Image-Train-0.tar", "/d/image-TEST-0.tar"], lambda urls: "x")
    assert found.groups == {
        ("Image", "test"): ["/d/image-TEST-0.tar"],
        ("Image", "train"): ["/d/Image-Train-0.tar"],
    }


@pytest.mark.parametrize(
    ("split", "pattern", "shards", "modality", "wrong"),
    [
        ("train", "*.tar", ["train-0.tar", "test-0.tar"], "image", "test-0.tar is a test shard"),
        ("train", "test-*.tar", ["test-0.tar"], "image", "test-0.tar is a test shard"),
        ("train", "test-*.tar", ["test-0.tar"], "text", None),  # not what is measured
        ("train", "{train,val}-*.tar", ["train-0.tar", "val-0.tar"], "image", None),
        ("train", "*-0.tar", ["train-0.tar", "val-0.tar"], "image", "val-0.tar is a val shard"),
        ("test", "train-9.tar", ["train-9.tar"], "image", None),  # cut from the train shards
        ("test", ["imagenet-validation-*.tar"], ["imagenet-validation-0.tar"], "image", None),
        ("test", "*", ["train-0.tar"], "image", "train-0.tar is a train shard"),
        ("val", "?.tar", ["0.tar"], "image", None),
    ],
)
def test_patterns_of_a_recipe_against_the_names_of_shards(split, pattern, shards, modality, wrong):
    at = {(modality, split): [f"/data/test/{name}" for name in shards]}
    problems = misplaced({(modality, split): pattern}, at, "image")
    assert [wrong in p for p in problems] == ([True] if wrong else [])


def test_a_shard_belongs_to_one_split(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "b.tar").symlink_to("a.tar")
    at = {("image", s): [str(tmp_path / n)] for s, n in (("train", "a.tar"), ("test", "b.tar"))}
    (problem,) = misplaced(dict.fromkeys(at, "?.tar"), at, "image")
    assert "b.tar is named by train and by test" in problem
    apart = {("image", "train"): at["image", "train"], ("text", "test"): at["image", "test"]}
    assert misplaced(dict.fromkeys(apart, "?.tar"), apart, "image") == []
