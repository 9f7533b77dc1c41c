"""Which mix of modalities is best, what matters, and what is it worth?

    uml sweep shapes --space modality_ratio
    uml sweep shapes --space modality_ratio+loss_weight sweep.trials=40 sweep.budget=flops
    uml sweep shapes --space my_space.py sweep.search=optuna --out runs/mine
    uml sweep shapes --space modality_ratio --out runs/mine --resume

Runs a search space of tune_spaces (or a file like them) on Ray Tune. A trial is one configuration
trained on all seeds of the recipe in lockstep; its score is the mean over seeds. All trials get the
same target samples or the same FLOPs, and the target alone is always among them. The best point is
then trained again beside the baseline and the permuted control on seeds that the sweep did not use,
because the best of many trials flatters itself.

Leaves in --out: sweep.json, frontier.png, best.yaml, report.html, model/ (the target path).
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
from pipelines.reporting import provenance, terminal
from pipelines.reporting.sweep_plots import save_frontier
from pipelines.reporting.sweep_terminal import print_sweep
from pipelines.running.data import write_json
from pipelines.running.folder import FREE_IN_A_SWEEP, opened
from pipelines.running.preflight import preflight
from pipelines.running.runtime import ray_session
from pipelines.tracking import PARENT, Tracker
from pipelines.tuning.design import design
from pipelines.tuning.driver import Sweep
from pipelines.tuning.plan import describe
from tune_spaces.base import find, packaged

TAKES_RECIPE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    spaces = "; ".join(
        f"{name}: {space.doc.lower().rstrip('.')}" for name, space in packaged().items()
    )
    parser.add_argument(
        "--space",
        required=True,
        help=f"what to search, joined by +: a .py file or a name ({spaces})",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the sweep in --out after a stop"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the sweep; returns the exit code."""
    began = time.monotonic()
    recipe = cli.load_recipe(args)
    space = find(args.space)
    out = cli.out_folder(args, recipe.name, resume=args.resume)
    made = design(recipe, space)
    if args.dry_run:
        print(describe(made))
        return 0
    preflight(recipe, made.data, out, workers=recipe.sweep.workers, tunes=True)
    for warning in made.data.warnings:
        terminal.note(warning)
    with (
        opened(out, made.recipe, made.data, FREE_IN_A_SWEEP, made.plan()) as environment,
        ray_session(recipe.sweep.workers, len(made.data.modalities)),
        Tracker.open(out, recipe.name) as tracker,
    ):
        tags = provenance.tags(environment) | {"space": space.name, "job": "sweep"}
        tracker.start(PARENT, f"sweep {recipe.name}", params=recipe.to_dict(), tags=tags)
        sweep = Sweep(made, out, tracker, recipe.train.workers)
        found = sweep.run()
        environment |= sweep.facts()
        found["wall_seconds"] = round(time.monotonic() - began, 1)
        _write(out, found, environment)
        _track(tracker, out, found)
        where = tracker.where
    if args.json:
        print(json.dumps(found))
        return 0
    print_sweep(found)
    terminal.print_paths(
        {"report": out / "report.html", "best recipe": out / "best.yaml", "MLflow": where}
    )
    return 0


def _write(out: Path, found: dict[str, Any], environment: dict[str, Any]) -> None:
    """All files of a finished sweep; best.yaml and the model are there already."""
    write_json(out / "environment.json", environment)
    write_json(out / "sweep.json", found)
    save_frontier(found, out / "frontier.png")
    write_report(out)


def _track(tracker: Tracker, out: Path, found: dict[str, Any]) -> None:
    """The answer, the files and the registered model."""
    tracker.log_metrics(PARENT, {"gain": found["gain"]["mean"]}, 0)
    tracker.describe(PARENT, found["sentence"])
    tracker.set_tags(PARENT, {"confirmed": str(found["confirmed"]).lower()})
    for name in ("recipe.yaml", "best.yaml", "sweep.json", "frontier.png", "report.html"):
        tracker.log_artifact(PARENT, out / name)
    if (out / "model").is_dir():
        gain = found["gain"]
        tracker.register(
            PARENT,
            out / "model",
            found["name"],
            {
                "space": found["space"],
                "confirmed": str(found["confirmed"]).lower(),
                "gain": f"{gain['mean']:.2f}",
                "gain_ci95": json.dumps(gain["ci95"]),
                "target": found["target"],
            },
        )


if __name__ == "__main__":
    raise SystemExit(cli.main(["sweep", *sys.argv[1:]]))
