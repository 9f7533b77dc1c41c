"""`uml sweep` on a local Ray: the files, the answer, fairness, early stopping, resume, kills."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from runs import Job, Meanwhile, trial_processes, wait_until

from pipelines import cli
from pipelines.tuning.journal import NAME, Journal

RECIPE = """
name: tiny-sweep
target: image
shots: 4
data_root: {data}
modalities:
  image: {{kind: image, train: image-train-*.tar, test: image-test-*.tar, size: 12}}
  text: {{kind: text, train: text-train-*.tar, vocab: 64}}
  wave: {{kind: sequence, train: wave-train-*.tar, ratio: 0}}
model: {{width: 16, depth: 1, heads: 2}}
train: {{steps: 12, batch_size: 8, lr: 3e-3, validate_every: 3, device: cpu}}
sweep: {{trials: 4, confirm: 2, keep: 2}}
seeds: [3, 4]
"""


# The first rate learns, the other does not: early stopping has something to stop.
RATES = """
from tune_spaces.base import Knob, Space

SPACE = Space(
    "rates",
    "Learning rates far apart.",
    lambda context: [Knob("rate", (1e-2, 1e-7), target=True)],
    lambda values, context: {"train.lr": values["rate"]},
)
"""


@pytest.fixture(scope="module")
def recipe(tiny_data, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE.format(data=tiny_data))
    return str(path)


def sweep(recipe: str, out: Path, *args: str) -> dict:
    assert cli.main(["sweep", recipe, "--out", str(out), *args]) == 0
    return json.loads((out / "sweep.json").read_text())


def runs_of(out: Path):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=json.loads((out / "tracking.json").read_text())["uri"])
    [experiment] = [e for e in client.search_experiments() if e.name == "tiny-sweep"]
    return client, client.search_runs([experiment.experiment_id])


@pytest.fixture(scope="module")
def finished(ray_cluster, recipe, tmp_path_factory) -> Path:
    """One sweep with early stopping and a confirmation, shared by the tests of this file."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    sweep(recipe, out, "--space", "modality_ratio")
    return out


@pytest.mark.ray
def test_sweep_json_has_the_documented_fields(finished: Path):
    found = json.loads((finished / "sweep.json").read_text())
    assert found["confirmed"] is True and found["gain"].keys() == {"mean", "ci95"}
    trials = found["trials"]
    assert [t["kind"] for t in trials].count("baseline") == 1 and len(trials) == 5
    baseline = next(t for t in trials if t["kind"] == "baseline")
    assert baseline["status"] == "finished" and baseline["spent"] == 100
    for trial in trials:
        assert len(trial["val_accuracy"]) == 2
        if trial["status"] == "finished":
            assert trial["target_samples"] == 12 * 8
            assert trial["flops"] == pytest.approx(trial["planned"]["flops"])
    assert len({t["flops"] for t in trials if t["status"] == "finished"}) > 1


@pytest.mark.ray
def test_the_sentence_is_that_of_seeds_the_sweep_did_not_use(finished: Path):
    found = json.loads((finished / "sweep.json").read_text())
    entry = found["confirmation"]
    assert not set(entry["seeds"]) & set(found["seeds"])
    uml, alone = (entry["arms"][a]["test_accuracy"] for a in ("uml", "unimodal"))
    gain = sum(a - b for a, b in zip(uml, alone, strict=True)) / 2
    assert found["gain"]["mean"] == pytest.approx(gain) == entry["gain"]["mean"]
    assert "2 seeds that the sweep did not use" in found["sentence"]
    spent = entry["adaptive"]["flops"] / entry["arms"]["uml"]["flops"]
    assert spent < 1.15 and found["adaptive_sentence"]  # rounding of a few batches


@pytest.mark.ray
def test_the_files_of_a_sweep_and_bounded_disk_use(finished: Path, capsys):
    for name in ("report.html", "frontier.png", "best.yaml", "environment.json", "recipe.yaml"):
        assert (finished / name).stat().st_size > 0, name
    model = {path.name for path in (finished / "model").iterdir()}
    assert {"model.safetensors", "model.json", "recipe.yaml", "MLmodel", "code"} <= model
    assert not list(finished.glob("tune-*"))
    kept = {path.name for path in (finished / "trials").iterdir()}
    found = json.loads((finished / "sweep.json").read_text())
    ranked = sorted(
        (t for t in found["trials"] if t["status"] == "finished"),
        key=lambda t: -t["score"]["mean"],
    )
    assert kept == {t["key"] for t in ranked[:2]}
    assert cli.main(["train", str(finished / "best.yaml"), "--dry-run"]) == 0  # a recipe as any


@pytest.mark.ray
def test_tracking_and_the_registered_model_come_once_also_after_a_resume(finished: Path, recipe):
    first = json.loads((finished / "sweep.json").read_text())
    again = sweep(recipe, finished, "--space", "modality_ratio", "--resume")
    assert again["trials"] == first["trials"] and again["sentence"] == first["sentence"]
    client, runs = runs_of(finished)
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert len(runs) == len(children) + 1 and len(children) == 5 + 4
    assert {r.info.status for r in runs} == {"FINISHED"}
    [version] = client.search_model_versions("name = 'tiny-sweep'")
    assert version.tags["confirmed"] == "true" and version.tags["space"] == "modality_ratio"
    [parent] = [r for r in runs if r not in children]
    assert version.run_id == parent.info.run_id
    names = {a.path for a in client.list_artifacts(parent.info.run_id, "model")}
    assert "model/model.safetensors" in names
    starts = [line for line in (finished / NAME).read_text().splitlines() if '"start"' in line]
    assert len(starts) == 5 + 4


@pytest.mark.ray
def test_a_sweep_is_resumed_as_the_same_sweep_only(finished: Path, recipe, capsys):
    argv = ["sweep", recipe, "--out", str(finished), "--resume", "--space", "optimiser"]
    assert cli.main(argv) == 2
    assert "space was modality_ratio and is optimiser" in capsys.readouterr().err


@pytest.mark.ray
def test_optuna_at_equal_flops_without_confirmation(ray_cluster, recipe, tmp_path):
    pytest.importorskip("optuna")
    found = sweep(
        recipe,
        tmp_path / "out",
        *("--space", "modality_ratio+loss_weight"),
        *("sweep.search=optuna", "sweep.budget=flops", "sweep.confirm=0", "sweep.trials=3"),
    )
    assert found["confirmed"] is False and found["sentence"].startswith("Not confirmed")
    flops = [t["flops"] for t in found["trials"]]
    assert len(flops) == 4 and max(flops) < 1.5 * min(flops)  # whole steps of a short run
    alone = found["trials"][0]
    assert alone["kind"] == "baseline"
    assert alone["target_samples"] > max(t["target_samples"] for t in found["trials"][1:])


def test_problems_come_before_anything_starts(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    for argv, said in (
        (["--space", "modality_rato"], "did you mean 'modality_ratio'"),
        (["--space", "optimiser", "seeds=[1]"], "one seed gives no interval"),
        (["--space", "optimiser", "shots=[1,2]"], "one number of shots"),
        (["--space", "exchange_rate", "shots=16"], "at image samples per class 16"),
        (["--space", "paper_grid", "sweep.workers=9"], "batch_size: 8 is less than one sample"),
    ):
        assert cli.main(["sweep", recipe, "--out", str(out), *argv]) == 2
        assert said in capsys.readouterr().err
    assert not out.exists()


def test_dry_run_says_what_each_trial_costs(recipe, capsys):
    assert cli.main(["sweep", recipe, "--space", "modality_ratio", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "trials      5 (1 without auxiliary data), each on 2 seeds, 4 validations" in text
    assert "confirmed   on seeds 5, 6" in text and text.count("GFLOPs  ") == 5


# ----------------------------------------------------------------------------- what goes wrong


class Assassin(Meanwhile):
    """Kills the process of a trial of this test's own sweep, once a trial has reported anew."""

    def __init__(self, out: Path) -> None:
        journal = out / NAME

        def reports() -> int:
            return journal.read_text().count('"report"') if journal.is_file() else 0

        before = reports()

        def is_killed() -> bool:
            if reports() > before:
                for pid in trial_processes():
                    with contextlib.suppress(ProcessLookupError):  # that trial has just ended
                        os.kill(pid, signal.SIGKILL)
                        return True
            return False

        super().__init__(is_killed, lambda: None)


@pytest.fixture(scope="module")
def rates(tmp_path_factory) -> str:
    """The file of a space of two learning rates far apart."""
    path = tmp_path_factory.mktemp("space") / "rates.py"
    path.write_text(RATES)
    return str(path)


# Both rates with texts and without, each to its end, then the best on other seeds.
GRID = ("sweep.search=grid", "train.steps=36")


@pytest.fixture(scope="module")
def calm(ray_cluster, recipe, rates, tmp_path_factory) -> dict:
    """The sweep to which nothing happens: what every disturbed one must find."""
    return sweep(recipe, tmp_path_factory.mktemp("calm") / "out", "--space", rates, *GRID)


def accuracies(found: dict) -> dict[str, list[float]]:
    """Trial -> validation accuracy of each seed, of the trials that ended as they should."""
    return {t["key"]: t["val_accuracy"] for t in found["trials"] if t["status"] == "finished"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_trial_that_dies_once_too_often_is_marked(recipe, rates, calm, tmp_path):
    args = ("--space", rates, *GRID, "sweep.confirm=0", "sweep.max_failures=0")
    with Assassin(tmp_path / "out"):
        found = sweep(recipe, tmp_path / "out", *args)
    [failed] = [t for t in found["trials"] if t["status"] == "failed"]
    assert failed["error"]
    kept = accuracies(found)
    assert len(kept) == len(calm["trials"]) - 1
    assert kept == {key: accuracies(calm)[key] for key in kept}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_sweep_resumes_and_loses_at_most_the_running_trials(recipe, rates, calm, tmp_path):
    """The sweep that goes on loses a trial's process too, and tries that trial again."""
    args = ["--space", rates, *GRID]
    out = tmp_path / "runs" / "killed"
    job = Job("sweep", recipe, "--out", str(out), *args, log=tmp_path / "log")
    job.wait_until(lambda: (out / NAME).is_file() and (out / NAME).read_text().count('"end"') >= 2)
    job.kill()
    ended = {key for key, record in Journal(out).records.items() if record.ended}
    assert len(ended) >= 2 and not (out / "sweep.json").exists()
    with Assassin(out):
        found = sweep(recipe, out, *args, "--resume")
    lines = [json.loads(line) for line in (out / NAME).read_text().splitlines()]
    starts = [line["trial"]["key"] for line in lines if line["kind"] == "start"]
    assert all(starts.count(key) == 1 for key in ended)  # what had ended was not run again
    assert [t["key"] for t in found["trials"]] == [t["key"] for t in calm["trials"]]
    assert accuracies(found) == accuracies(calm)
    assert found["gain"] == calm["gain"] and found["sentence"] == calm["sentence"]
    _, runs = runs_of(out)
    assert len(runs) == 1 + len(found["trials"]) + 4
    assert len({r.info.run_name for r in runs}) == len(runs)


def groups_left() -> list[tuple[str, dict]]:
    """State and bundles of every placement group that still holds or waits for resources."""
    import ray

    table = ray.util.placement_group_table().values()
    return [(g["state"], g["bundles"]) for g in table if g["state"] != "REMOVED"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_trials_of_two_workers_leak_nothing_and_give_what_one_worker_gives(
    recipe, rates, calm, tmp_path
):
    """Early stopping ends Ray Train runs while others wait for their place."""
    args = ("--space", rates, "sweep.confirm=0", "train.steps=36", "sweep.workers=2")
    two = sweep(recipe, tmp_path / "two", *args)
    assert len(two["trials"]) == 4 and not [t for t in two["trials"] if t["status"] == "failed"]
    assert "stopped" in {t["status"] for t in two["trials"]}, "nothing was stopped early"
    alone = {json.dumps(t["settings"]): t["val_accuracy"] for t in calm["trials"]}
    for trial in two["trials"]:
        if trial["status"] == "finished":
            expected = alone[json.dumps(trial["settings"])]
            assert trial["val_accuracy"] == pytest.approx(expected, abs=0.01)
    wait_until(lambda: not groups_left(), groups_left)
