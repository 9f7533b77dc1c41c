"""`uml evaluate`: the numbers are the run's own, everything is shown, nothing is overwritten."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from pipelines import cli
from pipelines.report import write_report
from pipelines.reporting import evaluation
from pipelines.running import measure
from pipelines.running.data import make_round, open_data
from pipelines.running.feed import load_batches
from pipelines.running.finished import load_learner, open_finished
from uml_core.evaluation import embeddings
from uml_core.loop import accuracy
from uml_core.probes import linear_probe
from uml_core.specs import TrainSpec


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def one_store(store: str, private_caches, monkeypatch: pytest.MonkeyPatch):
    """Making a store takes seconds; the tests of this file share one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)


QUICK = ["evaluate.shots=[1,4]", "evaluate.split_seeds=[1,2]"]


def evaluate(folder, out, *overrides) -> dict:
    assert cli.main(["evaluate", str(folder), *QUICK, *overrides, "--out", str(out)]) == 0
    return json.loads((out / "evaluate.json").read_text())


@pytest.mark.ray
def test_a_trained_run_is_evaluated_as_it_was_tested(
    ray_cluster, tiny_recipe, write_recipe, tmp_path, capsys
):
    run, out = tmp_path / "run", tmp_path / "evaluated"
    assert cli.main(["train", write_recipe(tiny_recipe), "--out", str(run)]) == 0
    capsys.readouterr()
    found = evaluate(run, out)
    metrics = json.loads((run / "metrics.json").read_text())
    assert found["test"]["accuracy"]["value"] == pytest.approx(metrics["test_accuracy"])
    assert found["test"]["rule"] == "shared classifier" and found["test"]["samples"] == 30
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines() if "/" not in line)
    for part in ("shared classifier", "kNN probe", "4-shot probe", "silhouette", "effective rank"):
        assert part in said, part
    assert f"{metrics['test_accuracy']:.1f} %" in said
    state = json.loads((run / "tracking.json").read_text())
    assert "evaluation-evaluated" in state["runs"]


def test_everything_is_measured_on_the_runs_weights(make_run, capsys):
    folder = make_run("train")
    arguments = ["evaluate", str(folder), *QUICK, "probe.C=[0.1,1.0]", "--json"]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    (out,) = (folder / "evaluation").iterdir()  # where results lie by default
    assert found == json.loads((out / "evaluate.json").read_text())

    run = open_finished(folder)
    data = open_data(run.recipe)
    learner = load_learner(run.model, run.recipe, data.modalities, num_classes=3)
    test = load_batches(data.test["image"], data.modalities["image"])
    correct, labelled = accuracy(learner, "image", test)
    assert found["test"]["accuracy"]["value"] == pytest.approx(100 * correct / labelled)
    low, high = found["test"]["accuracy"]["ci95"]
    assert low <= 100 * correct / labelled <= high
    assert sum(c["samples"] for c in found["test"]["per_class"].values()) == labelled

    at = make_round(run.recipe, data, run.seed, run.shots)
    parts = [
        embeddings(learner, "image", load_batches(index, data.modalities["image"]))
        for index in (at.train["image"], at.val, data.test["image"])
    ]
    expected = linear_probe(*(a for part in parts for a in part), grid=(0.1, 1.0))
    linear = found["probes"]["linear"]
    assert linear["test_accuracy"]["value"] == pytest.approx(expected.test_accuracy)
    assert (linear["val_accuracy"], linear["chosen"]) == (expected.val_accuracy, expected.chosen)
    # Weights before training stand against themselves.
    assert linear == found["probes"]["linear, untrained"]

    points = found["few_shot"]["points"]
    assert [p["shots"] for p in points] == [1, 4] and len(points[0]["accuracies"]) == 2
    assert found["few_shot"]["fresh_labels"] and found["few_shot"]["pool"] == 24
    assert list(found["analyses"]) == [
        "few_shot",
        "plane",
        "margins",
        "separability",
        "prototypes-text",
        "prototypes-wave",
        "alignment",
        "ranks",
    ]
    assert found["left_out"]["neurons: text"].startswith("needs samples with the same key in both")
    assert found["auxiliary_samples"]["text"] == {"split": "train", "samples": 48}


def test_files_and_page(make_run, tmp_path, tiny_data):
    out = tmp_path / "out"
    found = evaluate(make_run("compare"), out, f"tests.again.files={tiny_data}/image-train-*.tar")
    for key in found["analyses"]:
        for suffix in ("png", "svg"):
            assert (out / "figures" / f"{key}.{suffix}").stat().st_size > 1000, key
    again = found["tests"]["again"]
    assert again["overlap"] == 1.0 and again["samples"] == 48 and again["skipped"] == 0
    drop = again["own"]["value"] - again["accuracy"]["value"]
    assert again["drop"]["value"] == pytest.approx(drop)
    page = (out / "report.html").read_text(encoding="utf-8")
    for part in (
        "What the image model learnt at 4 labelled images per class",
        "On the own test set",
        "On other test sets",
        "again: 100.0 % of its samples also occur in training",
        "Does the other data change the geometry?",
        "UML minus ...",
        "Do classes form groups?",
        "What could not be measured",
        "needs samples with the same key in both modalities",
        "quarantine_budget",
    ):
        assert part in page, part
    assert page.count('<figure class="drawn"') == len(found["analyses"])
    for analysis in found["analyses"].values():
        assert len(analysis["says"]) > 20 and len(analysis["reading"]) > 40
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    json.loads(json.dumps(found, allow_nan=False))
    (out / "report.html").unlink()
    assert write_report(out).read_text(encoding="utf-8") == page


def test_arms_of_one_seed_stand_side_by_side(make_run, tmp_path):
    found = evaluate(make_run("compare", seeds=[5]), tmp_path / "out")
    shown = found["analyses"]["arms"]["numbers"]
    assert shown["seeds"] == [5] and shown["samples"] == 30
    # Untrained arms of one seed are the same network.
    assert shown["differences"]["margin"]["unimodal"]["mean"] == 0
    assert shown["differences"]["silhouette"]["uml_permuted"]["ci95"] == [0, 0]
    assert found["arm_accuracy"]["uml"] == found["arm_accuracy"]["unimodal"]


def test_self_supervised_views_need_true_pairs(make_run, tmp_path):
    recipe = {
        "setting": "self_supervised",
        "target": "wave",
        "modalities": {
            "wave": {"kind": "sequence", "train": "wave-train-*.tar", "test": "wave-test-*.tar"},
            "text": {
                "kind": "text",
                "train": "text-train-*.tar",
                "test": "text-test-*.tar",
                "vocab": 64,
            },
        },
    }
    found = evaluate(make_run("train", **recipe), tmp_path / "out")
    assert found["test"]["rule"] == "linear probe"
    assert list(found["views"]) == ["wave", "text", "wave+text"]
    linear = found["probes"]["linear"]["test_accuracy"]["value"]
    assert found["views"]["wave"]["test_accuracy"]["value"] == pytest.approx(linear)
    assert found["test"]["accuracy"]["value"] == pytest.approx(linear)
    assert found["views"]["wave+text"]["samples"] == 30
    assert "neurons-text" in found["analyses"] and not found["left_out"]
    neurons = found["analyses"]["neurons-text"]["numbers"]
    assert set(neurons) == {"all", "red", "green", "blue"}
    assert neurons["all"]["pairs"] == 30 and neurons["red"]["pairs"] == 10


def test_weights_of_the_target_alone_say_what_they_lack(make_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["evaluate", str(make_run("model") / "model"), *QUICK, "--out", str(out)]) == 0
    found = json.loads((out / "evaluate.json").read_text())
    assert found["left_out"]["text"] == "these weights hold the target's path alone"
    assert "left out: text" in capsys.readouterr().out
    assert set(found["analyses"]) >= {"few_shot", "margins", "separability", "ranks"}


def test_a_dry_run_says_what_would_be_read(make_run, tmp_path, capsys):
    out = tmp_path / "out"
    folder = make_run("compare")
    assert cli.main(["evaluate", str(folder), "--dry-run", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "30 labelled samples of image" in said and "uml_permuted, seeds 0, 1" in said
    assert "needs samples with the same key" in said
    assert not out.exists() and not (folder / "evaluation").exists()


def test_bad_input_is_exit_code_2_and_writes_nothing(make_run, tmp_path, capsys):
    out, folder = tmp_path / "out", make_run("train")
    for overrides, told in (
        (["evaluate.shotz=[1]"], "did you mean 'shots'?"),
        (["tests.a.files=none-*.tar"], "tests.a: "),
        (["model.width=32"], "does not fit the recipe"),
    ):
        assert cli.main(["evaluate", str(folder), *overrides, "--out", str(out)]) == 2
        assert told in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "absent"), "--out", str(out)]) == 2
    older = tmp_path / "older"
    older.mkdir()
    (older / "x").write_text("")
    assert cli.main(["evaluate", str(folder), "--out", str(older)]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert not out.exists()


def test_a_bad_sample_is_left_out_and_counted(make_run, tmp_path, tiny_data, monkeypatch):
    folder = tmp_path / "torn"
    shutil.copytree(tiny_data, folder)
    run = make_run("train", quarantine_budget=0.5)
    shard = folder / "image-test-000001.tar"
    data = bytearray(shard.read_bytes())
    at = data.index(b"\x89PNG")
    data[at : at + 200] = bytes(200)
    shard.write_bytes(data)
    found = evaluate(run, tmp_path / "out", f"data_root={folder}")
    assert found["quarantined"] == 1
    assert found["test"]["samples"] == 29 and found["test"]["of"] == 30
    assert "quarantine.jsonl" in {path.name for path in (tmp_path / "out").iterdir()}


def test_a_gpu_is_taken_where_there_is_one(tiny_recipe, monkeypatch):
    monkeypatch.setattr(measure.torch.cuda, "is_available", lambda: True)
    assert measure.choose_device(TrainSpec(device="auto")).type == "cuda"
    assert measure.choose_device(TrainSpec(device="cpu")).type == "cpu"
    monkeypatch.setattr(measure.torch.cuda, "is_available", lambda: False)
    assert measure.choose_device(TrainSpec(device="auto")).type == "cpu"


def test_numbers_of_the_table_are_those_of_the_file():
    found = {
        "target": "image",
        "views": {"image": {}, "text": {"test_accuracy": e(27, 25, 29), "C": 10.0}},
        "test": {"rule": "linear probe", "accuracy": e(7.1, 6, 8), "samples": 2112},
        "probes": {
            "linear": {"test_accuracy": e(7.1, 6, 8), "chosen": {"C": 1.0}},
            "linear, untrained": {"test_accuracy": e(6.5, 5, 8), "chosen": {"C": 0.1}},
            "kNN": {"test_accuracy": e(3.6, 3, 4), "chosen": {"k": 11}},
        },
        "few_shot": {
            "points": [{"shots": 1, "accuracies": [3.0], "mean": {"mean": 3.0, "ci95": None}}]
        },
        "tests": {
            "sketch": {
                "accuracy": e(40, 35, 45),
                "own": e(50, 45, 55),
                "drop": e(10, 3, 17),
                "samples": 300,
                "skipped": 20,
                "unlabelled": 2,
            }
        },
    }
    assert list(evaluation.accuracy_rows(found)) == [
        ("linear probe", "7.1 %", "6.0 to 8.0", "2,112 samples"),
        ("linear probe, untrained", "6.5 %", "5.0 to 8.0", "C = 0.1"),
        ("kNN probe", "3.6 %", "3.0 to 4.0", "k = 11"),
        ("linear probe on text", "27.0 %", "25.0 to 29.0", "C = 10"),
        ("1-shot probe", "3.0 %", "none", "1 draws"),
    ]
    assert list(evaluation.shift_rows(found)) == [
        ("sketch", "40.0 %", "50.0 %", "+10.0 (+3.0 to +17.0)", "300, 22 left out")
    ]
    assert evaluation.sentence(found) == (
        "Linear probe: 7.1 % (6.0 to 8.0) of 2,112 test samples right. The same probe on "
        "untrained weights: 6.5 %."
    )


def e(value: float, low: float, high: float) -> dict:
    return {"value": value, "ci95": [low, high]}
