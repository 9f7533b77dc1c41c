"""Which samples an evaluation reads: labels the model never saw, true pairs, legal label maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.running.data import make_round, open_data
from pipelines.running.finished import open_finished
from pipelines.running.sets import NO_PAIRS, choose_sets, few, with_keys
from pipelines.streams.shards import Sample, load_index, read_rows, subset, write_shards
from uml_core.errors import UserError

SELF = {
    "setting": "self_supervised",
    "target": "wave",
    "modalities": {
        "wave": {"kind": "sequence", "train": "wave-train-*.tar", "test": "wave-test-*.tar"},
        "text": {"kind": "text", "train": "text-train-*.tar", "test": "text-test-*.tar"},
    },
}


def choose(folder: Path, scratch: Path, *overrides: str):
    run = open_finished(folder, overrides)
    data = open_data(run.recipe)
    return run, data, choose_sets(run, data, run.recipe.active[1:], scratch)


def test_probes_learn_from_the_runs_own_samples(make_run, tmp_path):
    run, data, sets = choose(make_run("train"), tmp_path)
    at = make_round(run.recipe, data, run.seed, run.shots)
    assert sets.train.keys == at.train["image"].keys and len(sets.train) == 12
    assert sets.val.keys == at.val.keys
    assert sets.test.keys == data.test["image"].keys
    assert sets.splits == {"text": "train", "wave": "train"}
    assert len(list(sets.indices())) == 4 + 2  # test, train, val, pool; no pairs


def test_the_few_shot_pool_holds_no_label_the_model_was_trained_on(make_run, tmp_path):
    _, data, sets = choose(make_run("train"), tmp_path, "evaluate.shots=[1,2,4]")
    used = {*sets.train.keys, *sets.val.keys}
    assert sets.pool_fresh and not used & set(sets.pool.keys)
    # 8 of 16 samples per class are left: as many as 4 shots and their validation need.
    assert np.bincount(sets.pool.labels).tolist() == [8, 8, 8]
    _, _, sets = choose(make_run("train", "more"), tmp_path, "evaluate.shots=[8]")
    assert not sets.pool_fresh and len(sets.pool) == len(data.train["image"])


def test_a_self_supervised_model_saw_no_label(make_run, tmp_path):
    _, data, sets = choose(make_run("train", **SELF), tmp_path)
    assert sets.pool_fresh and len(sets.pool) == len(data.train["wave"])
    # The tiny shards of both modalities have the same keys, so each has the other's partners.
    view = sets.views["text"]
    assert set(view["train"].keys) == set(sets.train.keys)
    assert set(view["val"].keys) == set(sets.val.keys)
    assert view["test"].keys == sets.test.keys


def test_an_own_probe_needs_test_shards(make_run, tmp_path):
    modalities = json.loads(json.dumps(SELF["modalities"]))
    del modalities["text"]["test"]
    _, _, sets = choose(make_run("train", **{**SELF, "modalities": modalities}), tmp_path)
    assert not sets.views
    assert sets.left_out["text"] == "needs test shards of its own: modalities.text.test"


def test_samples_are_few_where_asked(make_run, tmp_path, tiny_data):
    index = load_index("text-train-*.tar", str(tiny_data), "text")
    assert few(index, 10).keys == few(index, 10).keys != index.keys[:10]
    assert len(few(index, 10)) == 10 and len(few(index, 999)) == len(index)


def test_pairs_are_rows_with_equal_keys(make_run, tmp_path, tiny_data):
    _, data, sets = choose(make_run("train", **SELF), tmp_path)
    one, other = sets.pairs["text"]
    assert one.keys == other.keys == data.test["wave"].keys
    of = load_index("image-test-*.tar", str(tiny_data), "image")
    index = subset(load_index("text-test-*.tar", str(tiny_data), "text"), [5, 2, 9])
    assert with_keys(index, of).keys == index.keys
    assert not len(with_keys(subset(index, [0, 0]), of))  # a repeated key names no sample
    _, _, sets = choose(make_run("train", "images"), tmp_path)
    assert sets.pairs["text"] == NO_PAIRS  # test pictures have no partner among training texts


def test_an_embedded_world_shows_pairs_of_its_own(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.running.sets.WORLD_PAIRS", 40)
    world = {
        "world": {"name": "shapes", "train": 20, "test": 2},
        "data_root": str(tmp_path / "shapes"),
        "modalities": {
            "image": {"kind": "image", "train": "image-train-*.tar", "test": "image-test-*.tar"},
            "text": {"kind": "text", "train": "text-train-*.tar"},
        },
    }
    _, data, sets = choose(make_run("train", **world), tmp_path / "scratch")
    one, other = sets.pairs["text"]
    assert one.keys == other.keys and len(one) == 40
    assert one.labels.tolist() == other.labels.tolist()
    assert not set(one.hashes) & set(data.test["image"].hashes)
    assert read_rows(other, [0])[0].decode().strip()


# ------------------------------------------------------------------------ named test sets


def shards(folder: Path, labels: list[int | None], classes: list[str] | None) -> str:
    folder.mkdir()
    samples = [Sample(f"k{i}", "npy", wave(i), label) for i, label in enumerate(labels)]
    write_shards(samples, str(folder), "new", "sequence")
    if classes is not None:
        (folder / "classes.json").write_text(json.dumps(classes))
    return f"{folder}/new-*.tar"


def wave(i: int) -> bytes:
    import io

    out = io.BytesIO()
    np.save(out, np.full((4, 2), float(i), np.float32))
    return out.getvalue()


def test_test_sets_are_mapped_by_name_by_map_and_by_number(make_run, tmp_path):
    named = shards(tmp_path / "named", [0, 1, 1, None], ["blue", "mauve"])
    numbers = shards(tmp_path / "numbers", [0, 1, 2], None)
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"0": "red", "2": "red", "1": None}))
    _, _, sets = choose(
        make_run("train", **SELF),
        tmp_path,
        f"tests.named.files={named}",
        f"tests.numbers.files={numbers}",
        f"tests.numbers.labels={table}",
    )
    assert sets.shifts["named"].mapped.targets.tolist() == [2, -1]
    assert sets.shifts["named"].mapped.missing == ("mauve",)
    assert sets.shifts["numbers"].mapped.targets.tolist() == [0, -1, 0]
    assert sets.shifts["numbers"].overlap == 0


def test_content_that_was_trained_on_is_counted(make_run, tmp_path, tiny_data):
    _, _, sets = choose(
        make_run("train", **SELF), tmp_path, f"tests.again.files={tiny_data}/wave-train-*.tar"
    )
    assert sets.shifts["again"].overlap == 1.0


def test_every_problem_of_a_test_set_is_told_at_once(make_run, tmp_path):
    numbers = shards(tmp_path / "numbers", [0, 1], None)
    nameless = shards(tmp_path / "nameless", [None, None], None)
    torn = tmp_path / "torn.json"
    torn.write_text("{")
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"0": 3}')
    unknown = tmp_path / "unknown.json"
    unknown.write_text('{"0": "rde", "7": "red"}')
    given = {
        "missing.files": f"{tmp_path}/none-*.tar",
        "nameless.files": nameless,
        "torn.files": numbers,
        "torn.labels": torn,
        "wrong.files": numbers,
        "wrong.labels": wrong,
        "unknown.files": numbers,
        "unknown.labels": unknown,
        "absent.files": numbers,
        "absent.labels": tmp_path / "absent.json",
    }
    overrides = [f"tests.{key}={value}" for key, value in given.items()]
    with pytest.raises(UserError) as error:
        choose(make_run("train", **SELF), tmp_path, *overrides)
    told = "\n".join(error.value.problems)
    for part in (
        "tests.missing:",
        "tests.nameless: no sample has a label",
        "tests.torn: labels:",
        'must hold {"class of the set": "class of the model" or null',
        "the training set has no class 'rde' (did you mean 'red'?)",
        "the test set has no class '7'",
        "tests.absent: labels: there is no",
    ):
        assert part in told, f"{part!r} is not in\n{told}"
