"""Probes, test sets and analyses of a finished run.

    uml evaluate runs/shapes/20260101-120000
    uml evaluate runs/one evaluate.shots=[1,4] --out runs/one-evaluated
    uml evaluate runs/one tests.sketch.files='data/sketch/*.tar' tests.sketch.labels=sketch.json

RUN is the --out folder of `uml train` or `uml compare`, or its checkpoint or model folder. Of a
comparison the chosen UML fit of the first seed is evaluated, and all arms are set side by side.
Nothing is trained but probes: the weights stay as they are.

A further test set (other circumstances, perhaps other classes) is named in the recipe's `tests`
or on the command line; its label map is a JSON object {class of the set: class of the model, or
null}. Samples of classes that mean nothing to the model are counted and left out.

Leaves in --out (default: RUN/evaluation/<timestamp>): evaluate.json, report.html, figures/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines import cli
from pipelines.report import write_report
from pipelines.reporting import evaluation, plots, provenance, terminal
from pipelines.reporting.findings import Finding, findings, plain
from pipelines.running.data import Data, open_data, resolved, write_json
from pipelines.running.embedding import wants_ray
from pipelines.running.finished import FinishedRun, open_finished, stems_of
from pipelines.running.measure import Measured, load_models, measure
from pipelines.running.runtime import ray_session
from pipelines.running.sets import NO_PAIRS, Sets, choose_sets
from pipelines.tracking import PARENT, Tracker
from uml_core.probes import ClassResult
from uml_core.shift import ShiftResult

TAKES_RECIPE = False
TAKES_FIELDS = True
WORDS = ("name", "title", "value", "reference", "says", "reading")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="the --out folder of a finished run")
    parser.add_argument(
        "overrides", nargs="*", help="recipe fields to change, e.g. evaluate.shots=[1,4]"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates; returns the exit code."""
    began = time.monotonic()
    finished = open_finished(args.run_folder, args.overrides)
    if args.out is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        args.out = str(finished.folder / "evaluation" / stamp)
    out = cli.out_folder(args, finished.recipe.name)
    data = open_data(finished.recipe)
    others = [n for n in finished.recipe.active[1:] if n in stems_of(finished.model)]
    with tempfile.TemporaryDirectory(prefix="uml-evaluate-") as scratch:
        sets = choose_sets(finished, data, others, Path(scratch))
        if args.dry_run:
            print(_describe(finished, sets))
            return 0
        models = load_models(finished, data)
        session = ray_session() if wants_ray(sets.indices()) else contextlib.nullcontext()
        with session, _progress(finished, sets) as progress:
            out.mkdir(parents=True, exist_ok=True)
            measured = measure(finished, data, models, sets, out, progress)
    shown = findings(
        finished.recipe.target,
        data.classes,
        measured.suite,
        measured.few_shot,
        measured.arms,
        _baseline(finished),
    )
    result = _result(finished, data, sets, measured, shown)
    result["wall_seconds"] = round(time.monotonic() - began, 1)
    _write(out, finished, data, shown, result)
    where = _track(finished, out, result)
    if args.json:
        print(json.dumps(result))
        return 0
    evaluation.print_evaluation(result)
    terminal.print_paths(
        {"report": out / "report.html", "numbers": out / "evaluate.json", "MLflow": where}
    )
    return 0


def _progress(finished: FinishedRun, sets: Sets) -> terminal.Progress:
    """A bar over the sets that are embedded and the computations that follow."""
    stages = 4 + len(sets.shifts) + len(sets.auxiliary) + 3 * len(sets.views) + 3
    stages += 2 * sum(not isinstance(pair, str) for pair in sets.pairs.values())
    if finished.arms:
        fits = sum(len(by_seed) for by_seed in finished.arms.values())
        stages += 1 + (2 * fits if finished.recipe.setting != "supervised" else 0)
    return terminal.Progress(f"Evaluating {finished.recipe.name}", stages, "stages")


def _describe(finished: FinishedRun, sets: Sets) -> str:
    """What would be read."""
    target = finished.recipe.target
    lines = [
        f"run         {finished.folder} ({finished.kind}, seed {finished.seed})",
        f"model       {finished.model}",
        f"test        {len(sets.test)} labelled samples of {target}",
        f"probes      {len(sets.train)} training and {len(sets.val)} validation samples",
        f"few-shot    k = {', '.join(map(str, finished.recipe.evaluate.shots))} from a pool of "
        f"{len(sets.pool)}",
    ]
    for name, index in sets.auxiliary.items():
        lines.append(f"{name:<11} {len(index)} samples ({sets.splits[name]})")
    for name, pair in sets.pairs.items():
        count = pair if isinstance(pair, str) else f"{len(pair[0])} pairs with {target}"
        lines.append(f"{name:<11} {count}")
    for name, shift in sets.shifts.items():
        known = int((shift.mapped.targets >= 0).sum())
        lines.append(
            f"tests.{name}  {len(shift.index)} samples, {known} classes that mean something"
        )
    for arm, by_seed in finished.arms.items():
        lines.append(f"arm         {arm}, seeds {', '.join(map(str, by_seed))}")
    return "\n".join(lines)


def _baseline(finished: FinishedRun) -> str | None:
    """The target-only arm that a comparison was held against."""
    if not finished.arms:
        return None
    compare = json.loads((finished.folder / "compare.json").read_text(encoding="utf-8"))
    entries = compare.get("results", [compare])
    return next(e["baseline"] for e in entries if e["shots"] == finished.shots)


# --------------------------------------------------------------------------------- results


def _result(
    finished: FinishedRun, data: Data, sets: Sets, measured: Measured, shown: list[Finding]
) -> dict[str, Any]:
    """The object of evaluate.json."""
    recipe, classes = finished.recipe, data.classes
    supervised = recipe.setting == "supervised"
    mixed = measured.suite.confusion
    pair = mixed.pair and [classes[c] for c in mixed.pair]
    return {
        "run": str(finished.folder),
        "kind": finished.kind,
        "setting": recipe.setting,
        "target": recipe.target,
        "auxiliary": recipe.active[1:],
        "shots": finished.shots,
        "seed": finished.seed,
        "classes": list(classes),
        "test": {
            "rule": "shared classifier" if supervised else "linear probe",
            "accuracy": plain(measured.decided.accuracy),
            "samples": measured.decided.samples,
            "of": measured.test_of,
            "per_class": _per_class(measured.decided.per_class, classes),
            "most_confused": {"classes": pair, "share": plain(mixed.share)} if pair else None,
        },
        "probes": {
            name: {
                "test_accuracy": plain(probe.test.accuracy),
                "val_accuracy": probe.val_accuracy,
                "chosen": probe.chosen,
                "train_samples": probe.train_samples,
                "per_class": _per_class(probe.test.per_class, classes),
            }
            for name, probe in measured.probes.items()
        },
        "views": _views(measured),
        "few_shot": {
            **next((f.numbers for f in shown if f.key == "few_shot"), {"points": []}),
            "split_seeds": list(recipe.evaluate.split_seeds),
            "pool": len(sets.pool),
            "fresh_labels": sets.pool_fresh,
        },
        "tests": {
            name: _shift(shift, sets.shifts[name].overlap, classes)
            for name, shift in measured.shifts.items()
        },
        "arm_accuracy": measured.arm_accuracy,
        "analyses": {
            f.key: {name: getattr(f, name) for name in (*WORDS, "table", "numbers")} for f in shown
        },
        "left_out": _left_out(finished, measured, sets),
        "auxiliary_samples": {
            name: {"split": sets.splits[name], "samples": len(index)}
            for name, index in sets.auxiliary.items()
        },
        "device": measured.device,
    }


def _per_class(found: dict[int, ClassResult], classes: tuple[str, ...]) -> dict[str, Any]:
    return {classes[label]: plain(result) for label, result in found.items()}


def _views(measured: Measured) -> dict[str, Any] | None:
    if measured.views is None:
        return None
    return {
        name: {
            "test_accuracy": plain(accuracy),
            "samples": samples,
            "val_accuracy": val_accuracy,
            "C": c,
        }
        for name, (accuracy, samples, val_accuracy, c) in measured.view_results().items()
    }


def _shift(found: ShiftResult, overlap: float, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "accuracy": plain(found.accuracy),
        "own": plain(found.own),
        "drop": plain(found.drop),
        "samples": found.samples,
        "own_samples": found.own_samples,
        "skipped": found.skipped,
        "unlabelled": found.unlabelled,
        "classes": found.classes,
        "unmapped_classes": list(found.missing),
        "overlap": overlap,
        "per_class": _per_class(found.per_class, classes),
    }


def _left_out(finished: FinishedRun, measured: Measured, sets: Sets) -> dict[str, str]:
    """What could not be measured, and why."""
    found = dict(measured.suite.left_out)
    found |= {f"{k}-shot probe": why for k, why in measured.few_shot.left_out.items()}
    if measured.views is not None:
        for name, why in measured.views.left_out.items():
            found[f"probe on {name}"] = f"{NO_PAIRS}: {why}" if "+" in name else why
    for name in finished.recipe.active[1:]:
        if name not in sets.auxiliary:
            found[name] = "these weights hold the target's path alone"
    return found


def _write(
    out: Path, finished: FinishedRun, data: Data, shown: list[Finding], result: dict[str, Any]
) -> None:
    """All files of an evaluation."""
    folder = out / evaluation.FIGURES
    folder.mkdir(exist_ok=True)
    for finding in shown:
        plots.save_figure(finding.draw, folder / finding.key)
    quarantine = out / "quarantine.jsonl"
    bad = len(quarantine.read_text().splitlines()) if quarantine.is_file() else 0
    environment = provenance.environment(
        data=provenance.data_facts(data.indices()),
        placement={"workers": [{"rank": 0, "device": result["device"]}]},
        guards=data.guards,
        quarantined=bad,
    )
    result["quarantined"] = bad
    write_json(out / "environment.json", environment)
    recipe = resolved(finished.recipe, data)
    (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    write_json(out / "evaluate.json", result)
    write_report(out)


def _track(finished: FinishedRun, out: Path, result: dict[str, Any]) -> str:
    """The evaluation as a run of its own in MLflow, nested in the run it looks at where known."""
    nested = (finished.folder / "tracking.json").is_file()
    with Tracker.open(finished.folder if nested else out, finished.recipe.name) as tracker:
        key = f"evaluation-{out.name}" if nested else PARENT
        if nested and not tracker.has(PARENT):  # another store than the run's own
            tracker.start(PARENT, finished.recipe.name)
        tracker.start(key, f"{finished.recipe.name} evaluation")
        metrics = {"test_accuracy": result["test"]["accuracy"]["value"]}
        for name, probe in result["probes"].items():
            metrics[f"probe/{name}"] = probe["test_accuracy"]["value"]
        for name, shift in result["tests"].items():
            metrics |= {f"tests/{name}": shift["accuracy"]["value"]}
            metrics |= {f"drop/{name}": shift["drop"]["value"]}
        tracker.log_metrics(key, metrics, 0)
        for point in result["few_shot"]["points"]:
            tracker.log_metrics(key, {"few_shot": point["mean"]["mean"]}, point["shots"])
        tracker.describe(key, evaluation.sentence(result))
        for name in ("evaluate.json", "report.html", evaluation.FIGURES):
            tracker.log_artifact(key, out / name)
        return tracker.where


if __name__ == "__main__":
    raise SystemExit(cli.main(["evaluate", *sys.argv[1:]]))
