"""A recipe's data before anything runs: rounds, epochs, averages, what a person is told."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.running.data import make_round, open_data, resolved
from pipelines.running.dry_run import describe
from pipelines.running.feed import load_batches
from pipelines.streams.plan import Plan
from pipelines.streams.reader import iter_plan
from pipelines.streams.shards import (
    Sample,
    read_rows,
    write_classes,
    write_index,
    write_shard,
    write_shards,
)
from uml_core.errors import UserError
from uml_core.recipe import from_dict
from uml_core.schedule import Warmup

NAMES = ("ash", "birch", "cedar", "fir")


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array, dtype=np.float32))
    return stream.getvalue()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> Path:
    """Features of four classes: every class has images, the last one has no text."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    for name, labels in (
        ("image-train", np.arange(40) % 4),
        ("image-test", np.arange(20) % 4),
        ("text-train", np.repeat([0, 1, 2, -1], [7, 5, 2, 3])),
    ):
        samples = [
            Sample(f"{i:03d}", "npy", npy(rng.normal(size=3)), None if k < 0 else int(k))
            for i, k in enumerate(labels)
        ]
        write_shards(samples, str(folder), name, "vector", per_shard=9)
    write_classes(str(folder), NAMES)
    return folder


def recipe(folder, *, text=None, **changes):
    raw = {
        "name": "r",
        "target": "image",
        "shots": 4,
        "data_root": str(folder),
        "modalities": {
            "image": {"kind": "vector", "train": "image-train-*", "test": "image-test-*"},
            "text": {"kind": "vector", "train": "text-train-*", **(text or {})},
        },
        "model": {"width": 8, "heads": 2},
        "train": {"batch_size": 6, "steps": 50, **changes.pop("train", {})},
        "seeds": [0, 1],
    }
    return from_dict({**raw, **changes})


# -------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize(
    ("changes", "modality", "samples"),
    [
        ({}, "image", 16),  # 4 classes x 4 shots
        ({}, "text", 17),
        ({"text": {"shots": "average"}}, "text", 3),
        ({"text": {"shots": 2}}, "text", 6),
        ({"setting": "self_supervised"}, "image", 40 - 16),  # all rows outside validation
    ],
)
def test_epochs_of_a_warm_up_are_counted_in_what_the_modality_streams(
    vectors, changes, modality, samples
):
    r = recipe(vectors, train={"warmup": {"modality": modality, "epochs": 4}}, **changes)
    data = open_data(r)
    found = resolved(r, data)
    steps = -(-4 * samples // 6)
    assert found.schedule().warmup == Warmup(modality, steps)
    assert from_dict(found.to_dict()) == found and resolved(found, data) == found
    said = describe(found, data)
    passes = f"({steps * 6 / samples:.2f} passes over its {samples} samples)"
    when = "of" if modality == "image" else "before"
    assert f"{steps} steps on {modality} alone {passes}, {when} the 50 target batches" in said


def test_a_warm_up_in_steps_is_counted_in_passes(vectors):
    r = recipe(vectors, train={"warmup": {"modality": "text", "steps": 17}})
    said = describe(resolved(r, open_data(r)), open_data(r))
    assert "17 steps on text alone (6.00 passes over its 17 samples)" in said
    assert "steps       67 per fit" in said


def test_a_warm_up_of_no_epoch_is_none(vectors):
    r = recipe(vectors, train={"warmup": {"modality": "text", "epochs": 0}})
    found = resolved(r, open_data(r))
    assert found.train.warmup is None and found.schedule().total == 50


def test_an_epoch_that_differs_between_the_shots_is_not_guessed(vectors):
    warm = {"train": {"warmup": {"modality": "image", "epochs": 2}}}
    r = recipe(vectors, shots=[2, 4], **warm)
    with pytest.raises(UserError, match=r"differs between the numbers of shots.*steps"):
        resolved(r, open_data(r))
    r = recipe(vectors, shots=[2, 4], train={"warmup": {"modality": "text", "epochs": 2}})
    assert resolved(r, open_data(r)).train.warmup.steps == 6


def test_a_warm_up_in_epochs_may_be_longer_than_the_run(vectors):
    r = recipe(vectors, train={"warmup": {"modality": "image", "epochs": 100}})
    with pytest.raises(UserError, match=r"train\.warmup: 267 of 50 steps on image alone"):
        resolved(r, open_data(r))


# -------------------------------------------------------------------------------- averages


@pytest.mark.parametrize("normalise", [False, True])
def test_an_averaged_modality_streams_the_mean_of_each_class(vectors, tmp_path, normalise):
    r = recipe(vectors, text={"shots": "average", "normalise": normalise})
    data = open_data(r)
    means = make_round(r, data, 0, 4, tmp_path).train["text"]
    source = data.train["text"]
    rows = np.stack([np.load(io.BytesIO(b)) for b in read_rows(source, range(len(source)))])
    if normalise:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert means.labels.tolist() == [0, 1, 2]
    stored = [np.load(io.BytesIO(b)) for b in read_rows(means, range(3))]
    for k, mean in enumerate(stored):
        np.testing.assert_allclose(mean, rows[source.labels == k].mean(0), rtol=1e-5)
    assert make_round(r, data, 1, 4, tmp_path).train["text"] is means  # once for all seeds
    assert len(make_round(r, data, 0, 4).train["text"]) == 3  # what a dry run counts
    [batch] = load_batches(means, data.modalities["text"])
    if normalise:
        np.testing.assert_allclose(batch.x.norm(dim=1), np.ones(3), rtol=1e-5)


def test_fewer_means_than_a_batch_holds_make_whole_batches(vectors, tmp_path):
    """The reference drops the last, short batch and ends without any (fault 8)."""
    r = recipe(vectors, text={"shots": "average"})
    data = open_data(r)
    means = make_round(r, data, 0, 4, tmp_path).train["text"]
    batches = list(iter_plan(means, Plan(3, 6, 0, "text"), data.modalities["text"], count=4))
    assert [len(item.batch) for item in batches] == [6] * 4
    for item in batches:
        assert np.bincount(item.batch.y).tolist() == [2, 2, 2]


def test_an_average_needs_labels(vectors, tmp_path):
    folder = tmp_path / "unlabelled"
    write_shards([Sample("a", "npy", npy([1, 2]))], str(folder), "text-train", "vector")
    r = recipe(
        vectors,
        setting="self_supervised",
        text={"shots": "average", "train": str(folder / "text-train-*.tar")},
    )
    with pytest.raises(UserError, match="average needs labels"):
        make_round(r, open_data(r), 0, 4, tmp_path)


# ------------------------------------------------------------------------ absent classes


def test_classes_that_an_auxiliary_lacks_are_told_and_left_out(vectors, tmp_path):
    data = open_data(recipe(vectors))
    unlabelled, warning = data.warnings
    assert unlabelled.startswith("text (train): 3 of 17 samples have no label")
    assert warning.startswith("text ") and "1 of 4 classes (fir)" in warning
    assert data.guards["warnings"] == list(data.warnings)
    assert open_data(recipe(vectors, setting="self_supervised")).warnings == ()
    few = make_round(recipe(vectors, text={"shots": 2}), data, 0, 4).train["text"]
    assert np.bincount(few.labels).tolist() == [2, 2, 2]
    with pytest.raises(UserError, match="class 'cedar' has 2 samples but 3"):
        make_round(recipe(vectors, text={"shots": 3}), data, 0, 4)


def test_features_of_two_encoders_are_not_one_modality(tmp_path):
    def shards(split: str, encoder: dict | None) -> None:
        made = [Sample(f"{split}{i}", "npy", npy([i, len(split)]), i % 2) for i in range(8)]
        path = tmp_path / f"image-{split}-000000.tar"
        shard = write_shard(str(path), made, "vector")
        write_index(str(tmp_path), [replace(shard, encoder=encoder)])

    recipe = from_dict(
        {
            "name": "features",
            "target": "image",
            "data_root": str(tmp_path),
            "allow_overlap": 1,
            "modalities": {
                "image": {
                    "kind": "vector",
                    "train": "image-train-0*",
                    "test": "image-test-0*",
                }
            },
        }
    )
    one = {"name": "transformers:vit", "weights_sha256": "1"}
    shards("train", one)
    shards("test", one)
    assert open_data(recipe).train["image"].encoder == one
    shards("test", {**one, "weights_sha256": "2"})
    with pytest.raises(UserError, match="different encoders or settings"):
        open_data(recipe)
    shards("test", None)
    with pytest.raises(UserError, match=r"none that is known, transformers:vit"):
        open_data(recipe)


def test_few_shots_of_sets_stored_pair_by_pair_are_no_pairs(tmp_path):
    """Row i of one shows what row i of the other says: the draws must not go side by side."""
    labels = np.arange(120) % 3
    rng = np.random.default_rng(0)
    for name in ("image-train", "text-train", "image-test"):
        samples = [
            Sample(f"{i:03d}", "npy", npy(rng.normal(size=3)), int(k)) for i, k in enumerate(labels)
        ]
        write_shards(samples, str(tmp_path), name, "vector")
    write_classes(str(tmp_path), NAMES[:3])
    made = recipe(tmp_path, text={"shots": 4})
    data = open_data(made)
    shared = []
    for seed in range(20):
        train = make_round(made, data, seed, 4).train
        assert np.bincount(labels[train["text"].picked]).tolist() == [4, 4, 4]
        shared.append(len(set(train["image"].picked) & set(train["text"].picked)))
    assert np.mean(shared) < 3  # 3 x 4 x 4 / 40 = 1.2 by chance; all 12 with one common draw


def test_what_names_and_labels_of_a_recipe_contradict(vectors, tmp_path):
    def told(**image) -> list[str]:
        asked = recipe(vectors)
        spec = replace(asked.modalities["image"], **image)
        with pytest.raises(UserError) as error:
            open_data(replace(asked, modalities={**asked.modalities, "image": spec}))
        return error.value.problems

    (mixed, twice) = told(train="image-*")
    assert "image-test-000000.tar" in mixed and "is a test shard by its name" in mixed
    assert "image-test-000000.tar is named by train and by test" in twice
    (one,) = told(val="image-train-000000.tar")
    assert "image-train-000000.tar is named by train and by val" in one


def test_one_class_and_a_cause_told_once(tmp_path):
    for at, name in enumerate(("image-train", "image-test", "text-train")):
        samples = [Sample(f"{i}", "npy", npy([at, i, 1]), 0) for i in range(8)]
        write_shards(samples, str(tmp_path), name, "vector")
    with pytest.raises(UserError, match="all labels are of one class"):
        open_data(recipe(tmp_path))
    (tmp_path / "classes.json").write_text('{"cat": 0, "dog": 1}')
    with pytest.raises(UserError) as error:
        open_data(recipe(tmp_path))
    (problem,) = error.value.problems
    assert "modalities.image.train, modalities.image.test, modalities.text.train:" in problem
    (tmp_path / "classes.json").unlink()
    (tmp_path / "image-train-000002.tar").write_bytes(
        (tmp_path / "image-train-000000.tar").read_bytes()
    )
    write_classes(str(tmp_path), ["cat", "dog"])
    said = open_data(recipe(tmp_path)).warnings
    assert any("image-train-000001.tar" in w and "1 of 3 shards" in w for w in said)
    assert any("image-train-000002.tar holds the same as image-train-000000" in w for w in said)
