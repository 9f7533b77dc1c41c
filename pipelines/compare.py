"""The main job: does unpaired data of other modalities make the target model better?

    uml compare shapes
    uml compare digits data_root=path/to/digits shots=4 seeds=[0,1,2]
    uml compare shapes shots=[2,4,8] modalities.text.shots=[1,5,20]     and an exchange rate
    python -m pipelines.compare my-recipe.yaml --out runs/mine

Trains the target-only baselines, UML and the permuted control on the same target samples for the
same number of target steps, chooses hyper-parameters per arm on validation from grids of equal
size, reads the test set once, and reports paired gains over seeds with 95 % intervals. Several
numbers of auxiliary samples per class add UML with fewer of them, and say what one target sample is
worth. Before any training, the features of the training data say whether a gain is likely.

One worker group serves the whole comparison. All fits of one seed train in lockstep on the same
stream, so data is read and decoded once for all arms, and the arms are paired batch by batch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pipelines import cli
from pipelines.report import write_report
from pipelines.reporting import plots, provenance, terminal
from pipelines.reporting.answer import forecast_line, gains, remarks, sentence
from pipelines.reporting.samples import save_samples
from pipelines.running.cohort import Cohort, Result, rounds_at_once, run_cohort, steps_of
from pipelines.running.data import (
    Data,
    analysed,
    make_round,
    num_classes,
    open_data,
    resolved,
    rounds_of,
    sample_inputs,
    write_json,
)
from pipelines.running.dry_run import describe, describe_without, lacks_data
from pipelines.running.exchange import exchange_json
from pipelines.running.exporting import describe_model, of_comparison
from pipelines.running.folder import opened
from pipelines.running.forecasting import forecast_json, foresee, is_quick
from pipelines.running.preflight import preflight
from pipelines.running.runtime import ray_session
from pipelines.streams import quarantine
from pipelines.tracking import PARENT, Tracker
from uml_core.analysis.gradients import GradientReport
from uml_core.arms import applicable, control_description
from uml_core.comparison import conclude, curves, units_of
from uml_core.language_trunk import check_weights
from uml_core.specs import Recipe

TAKES_RECIPE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "--resume", action="store_true", help="continue the comparison in --out after a stop"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the comparison; returns the exit code."""
    began = time.monotonic()
    recipe = cli.load_recipe(args)
    arms = applicable(recipe)
    out = cli.out_folder(args, recipe.name, resume=args.resume)
    if args.dry_run and lacks_data(recipe):
        print(describe_without(recipe, arms))
        return 0
    data = open_data(recipe)
    recipe = resolved(recipe, data)
    check_weights(recipe.model)
    for warning in data.warnings:
        terminal.note(warning)
    if args.dry_run:
        print(describe(recipe, data, arms))
        if is_quick(recipe, data):
            views = make_all_rounds(recipe, data, None)
            print(f"forecast    {forecast_line(foresee(recipe, data, views))}")
        return 0
    # Too few samples anywhere is an error before the start.
    views = make_all_rounds(recipe, data, None)
    units = len(units_of(recipe, arms, views[0].seed, views[0].shots))
    together = -(-units * rounds_at_once(recipe) // recipe.train.most_workers)
    preflight(recipe, data, out, together=together, fits=units * len(views))
    found = foresee(recipe, data, views)
    terminal.note(f"Forecast: {forecast_line(found)}")
    with opened(out, recipe, data) as environment:
        cohort = Cohort(
            recipe=recipe,
            modalities=data.modalities,
            num_classes=num_classes(recipe, data),
            classes=data.classes,
            rounds=make_all_rounds(recipe, data, out / "subsets"),
            arms=arms,
            test=data.test[recipe.target],
            out=str(out),
        )
        with (
            ray_session(recipe.train.most_workers, len(cohort.rounds[0].train)),
            Tracker.open(out, recipe.name) as tracker,
        ):
            _start_tracking(tracker, recipe, environment)
            with terminal.Progress(
                f"{recipe.name}: {len(cohort.rounds)} rounds x {len(cohort.units(0))} fits",
                steps_of(cohort),
            ) as progress:
                results, restarts = run_cohort(cohort, progress)
            answer = _summarise(recipe, results)
            answer["forecast"] = forecast_json(found)
            answer |= {"exchange": rate} if (rate := exchange_json(recipe, data, results)) else {}
            answer["wall_seconds"] = round(time.monotonic() - began, 1)
            answer["restarts"] = restarts
            answer["quarantined"] = quarantine.count(out / quarantine.FILE)
            _write(out, recipe, data, results, answer, environment)
            _track(tracker, out, recipe, results, answer)
            where = tracker.where
    if args.json:
        print(json.dumps(answer))
        return 0
    terminal.print_answer(answer)
    for remark in remarks(answer):
        terminal.note(remark)
    terminal.print_paths(
        {"report": out / "report.html", "numbers": out / "compare.json", "MLflow": where}
    )
    return 0


def make_all_rounds(recipe: Recipe, data: Data, folder: Path | None) -> list[Any]:
    """Every round of the comparison, shots outermost."""
    return [make_round(recipe, data, seed, shots, folder) for shots, seed in rounds_of(recipe)]


# --------------------------------------------------------------------------------- results


def _summarise(recipe: Recipe, results: list[Result]) -> dict[str, Any]:
    control = control_description(recipe)
    entries = [conclude(recipe, r.shots, r.outcomes, r.chosen, r.test, control) for r in results]
    if isinstance(recipe.shots, list):
        return {"target": recipe.target, "shots": recipe.shots, "results": entries}
    return entries[0]


def _write(
    out: Path,
    recipe: Recipe,
    data: Data,
    results: list[Result],
    answer: dict[str, Any],
    environment: dict[str, Any],
) -> None:
    """All files of a finished comparison."""
    traces = [{"shots": r.shots, "arms": curves(recipe, r.outcomes, r.chosen)} for r in results]
    many = isinstance(recipe.shots, list)
    write_json(out / "curves.json", {"results": traces} if many else traces[0])
    placement = results[0].placement
    environment = {
        **environment,
        "placement": {"workers": placement},
        "quarantined": answer["quarantined"],
    }
    write_json(out / "environment.json", environment)
    save_samples(out, sample_inputs(recipe, data))
    write_json(out / "compare.json", answer)
    if (out / "model").is_dir():
        chosen = of_comparison(answer.get("results", [answer]), analysed(recipe)[0])
        describe_model(out / "model", recipe, data, chosen)
    plots.save_comparison(answer, out / "compare.png")
    write_report(out)


# -------------------------------------------------------------------------------- tracking


def _start_tracking(tracker: Tracker, recipe: Recipe, environment: dict[str, Any]) -> None:
    tracker.start(PARENT, recipe.name, params=recipe.to_dict(), tags=provenance.tags(environment))


def _track(
    tracker: Tracker, out: Path, recipe: Recipe, results: list[Result], answer: dict[str, Any]
) -> None:
    """Nested runs for every chosen arm and seed, and the artifacts of the whole."""
    entries = answer.get("results", [answer])
    for result, entry in zip(results, entries, strict=True):
        traces = curves(recipe, result.outcomes, result.chosen)
        for arm, numbers in entry["arms"].items():
            for i, seed in enumerate(recipe.seeds):
                key = f"{arm}-shots{result.shots}-seed{seed}"
                tags = {"arm": arm, "seed": str(seed), "shots": str(result.shots)}
                tracker.start(key, f"{arm} seed {seed}", params=numbers["chosen"], tags=tags)
                values = traces[arm]["val_accuracy"][i]
                steps = traces[arm]["steps"][: len(values)]
                tracker.log_series(key, "val_accuracy", steps, values)
                tracker.log_metrics(key, {"test_accuracy": numbers["test_accuracy"][i]}, 0)
                for at in traces[arm]["gradients"][i] if "gradients" in traces[arm] else []:
                    report = GradientReport.from_json(at)
                    tracker.log_metrics(key, report.metrics(), report.step)
                tracker.end(key)
        for name, gain in gains(entry).items():
            tracker.log_metrics(PARENT, {name: gain.mean}, result.shots or 0)
    rate = answer.get("exchange", {}).get("rate", {}).get("value")
    if rate is not None:
        tracker.log_metrics(PARENT, {"exchange_rate": rate}, 0)
    tracker.describe(PARENT, sentence(answer))
    for name in ("recipe.yaml", "compare.json", "compare.png", "report.html", "curves.json"):
        tracker.log_artifact(PARENT, out / name)
    if (out / "model").exists():
        tracker.log_artifact(PARENT, out / "model")


if __name__ == "__main__":
    raise SystemExit(cli.main(["compare", *sys.argv[1:]]))
