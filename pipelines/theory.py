"""The paper's theorems checked by number, and its Gaussian experiment.

    uml theory --out runs/theory

Every lemma, theorem and corollary is evaluated on random problems and must hold; counter-examples
state the paper's claims as written and must fail. The experiment trains small autoencoders on X
alone and on X and Y, and says where Y helps and where X alone catches up. Writes theory.json and
theory.png. Exit code 0 if every check comes out as expected, 1 if not. Takes about a minute and a
half on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.text import Text

from pipelines import cli
from pipelines.files import write_text
from pipelines.reporting import terminal
from uml_core.errors import UserError
from uml_core.theory.checks import INSTANCES, run_checks
from uml_core.theory.example import Example, worked_example
from uml_core.theory.figure import draw
from uml_core.theory.gaussian import GaussianCurves, GaussianSetup, judge, run_gaussian
from uml_core.theory.instances import Check

WIDTHS = (128, 10)  # the paper gives none; the wide ones take longest and start first
SCALES = (0.5, 1.0)  # 0.5 matches the axis of the paper's plot
MARKS = (200, 500, 1000, 2000, 3000)  # steps at which gains are written out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `uml theory`."""
    default = GaussianSetup()
    parser.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    parser.add_argument(
        "--instances",
        type=int,
        default=INSTANCES,
        help=f"random problems per check and size (default {INSTANCES})",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=len(default.seeds),
        help=f"seeds of the experiment (default {len(default.seeds)})",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=default.steps,
        help=f"training steps of the experiment (default {default.steps})",
    )


def run(args: argparse.Namespace) -> int:
    """Check, train, write and print; 0 if every check is as expected, else 1."""
    setups = _setups(args)
    if args.dry_run:
        _print_plan(args, setups)
        return 0
    out = cli.out_folder(args, "theory")
    began = time.monotonic()
    checks, curves = _compute(args, setups)
    example = worked_example(args.seed)
    answer = {
        "checks": [asdict(check) for check in checks],
        "as_expected": all(check.as_expected for check in checks),
        "gaussian": _gaussian_json(curves),
        "example": _example_json(example),
        "seed": args.seed,
        "wall_seconds": round(time.monotonic() - began, 1),
    }
    out.mkdir(parents=True, exist_ok=True)
    draw(example, curves, out / "theory.png")
    text = json.dumps(_plain(answer), indent=1, allow_nan=False)
    write_text(out / "theory.json", text + "\n")
    if args.json:
        print(text)
    else:
        _print_answer(checks, answer["gaussian"])
        terminal.print_paths({"numbers": out / "theory.json", "figure": out / "theory.png"})
    return 0 if answer["as_expected"] else 1


def _setups(args: argparse.Namespace) -> list[GaussianSetup]:
    every = GaussianSetup().evaluate_every
    problems = []
    if args.seed < 0:
        problems.append(f"--seed must be 0 or more, got {args.seed}")
    if args.instances < 20:
        problems.append(f"--instances must be at least 20, got {args.instances}")
    if args.seeds < 2:
        problems.append(f"--seeds must be at least 2 for an interval, got {args.seeds}")
    if args.steps < 2 * every:
        problems.append(f"--steps must be at least {2 * every}, got {args.steps}")
    if problems:
        raise UserError(problems)
    seeds = tuple(range(args.seed, args.seed + args.seeds))
    return [
        GaussianSetup(width=width, scale=scale, seeds=seeds, steps=args.steps)
        for width in WIDTHS
        for scale in SCALES
    ]


def _print_plan(args: argparse.Namespace, setups: Sequence[GaussianSetup]) -> None:
    one = setups[0]
    floats = len(one.seeds) * (1.5 * one.samples + one.validation) * one.observed
    print(f"checks: {args.instances} random problems per check and size")
    print(
        f"experiment: {len(setups)} settings x {len(one.seeds)} seeds x 2 arms, "
        f"{one.steps} steps each, on {_workers(setups)} processes"
    )
    print(f"memory: about {300 + 4 * floats * 2 / 2**20:.0f} MiB per process")


def _workers(setups: Sequence[GaussianSetup]) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(len(setups), cores or 1)


def _compute(
    args: argparse.Namespace, setups: Sequence[GaussianSetup]
) -> tuple[list[Check], list[GaussianCurves]]:
    """The checks here, the experiment's settings in processes of one thread each beside them."""
    # Fresh interpreters: a fork of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(_workers(setups), mp_context=context) as pool,
        terminal.Progress("Theory", total=len(setups) + 1, unit="parts") as progress,
    ):
        try:
            futures = [pool.submit(run_gaussian, setup) for setup in setups]
            checks = run_checks(args.seed, args.instances)
            progress.advance(note="checks done, training autoencoders")
            for future in as_completed(futures):
                future.result()
                progress.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return checks, [future.result() for future in futures]


def _gaussian_json(curves: Sequence[GaussianCurves]) -> dict[str, Any]:
    runs = [_setting_json(one) for one in curves]
    setup = asdict(curves[0].setup)
    for varied in ("width", "scale"):
        setup.pop(varied)
    marks = [mark for mark in MARKS if all(str(mark) in run["gains"] for run in runs)]
    caught = sum(run["caught_up"] is not None for run in runs)
    return {
        "claim": "at equal steps, half X and half Y beats all X on new X",
        "setup": setup,
        "settings_where_claim_holds": {
            str(mark): sum(run["claim_holds"][str(mark)] for run in runs) for mark in marks
        },
        "settings_where_claim_holds_at_equal_samples": sum(
            run["equal_samples"]["ci95"][0] > 0 for run in runs
        ),
        "settings_where_x_only_caught_up": caught,
        "settings": len(runs),
        "runs": runs,
    }


def _setting_json(curves: GaussianCurves) -> dict[str, Any]:
    verdict = judge(curves)
    marked = {mark: verdict.gains[mark] for mark in MARKS if mark in verdict.gains}
    return {
        "width": curves.setup.width,
        "scale": curves.setup.scale,
        "sentence": verdict.sentence,
        "gains": {str(mark): gain.to_json() for mark, gain in marked.items()},
        "claim_holds": {str(mark): gain.above_zero for mark, gain in marked.items()},
        "first_ahead": verdict.first_ahead,
        "last_ahead": verdict.last_ahead,
        "caught_up": verdict.caught_up,
        "largest_gain": verdict.largest_gain.to_json() | {"step": verdict.largest_gain_step},
        "equal_samples": verdict.equal_samples.to_json(),
        "variance_of_x": float(curves.variance.mean()),
        "best_linear_error": float(curves.floor.mean()),
        "steps": curves.steps,
        "x_only": np.round(curves.x_only, 5),
        "uml": np.round(curves.uml, 5),
    }


def _example_json(example: Example) -> dict[str, Any]:
    return {
        "strength_of_x": example.strength,
        "variance_x_only": example.x_only,
        "variance_joint": example.joint,
        "exchange_rate": example.rates,
        "budgets": {
            name: {
                "total": budget.total,
                "n_x": budget.n_x,
                "n_y": budget.n_y,
                "error": budget.error,
                "x_only_error": budget.x_only_error,
            }
            for name, budget in example.budgets.items()
        },
    }


def _plain(value: Any) -> Any:
    """The same in JSON's own types; infinity, which JSON lacks, becomes the string "inf"."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _print_answer(checks: Sequence[Check], gaussian: dict[str, Any]) -> None:
    out = terminal.console(sys.stdout)
    words = {True: "holds", False: "fails"}
    rows: list[list[str | Text]] = []
    for check in checks:
        found = Text(words[check.holds], "green" if check.as_expected else "bold red")
        name = check.id.split("-")[0] if check.id.startswith("CX") else check.id
        rows.append([f"{name}: {check.statement}", words[check.expected], found])
    out.print(
        terminal.table(["check (CX: the paper's claim as written)", "expected", "found"], rows)
    )
    wrong = [check.id for check in checks if not check.as_expected]
    verdict = f"NOT as expected: {', '.join(wrong)}" if wrong else "All checks are as expected."
    out.print(Text(f"\n{verdict}\n", style="bold red" if wrong else "bold green"))
    out.print(f"Gaussian experiment: {gaussian['claim']}")
    for setting in gaussian["runs"]:
        out.print(f"  {setting['sentence']}")
    held, of = gaussian["settings_where_claim_holds_at_equal_samples"], gaussian["settings"]
    at = ", ".join(
        f"{count} of {of} at step {mark}"
        for mark, count in gaussian["settings_where_claim_holds"].items()
    )
    out.print(f"  UML is ahead in {at}." if at else "  Too few steps for a verdict.")
    out.print(
        f"  A UML step processes twice the samples; at equal samples processed, UML is ahead in "
        f"{held} of {of}.\n"
    )


if __name__ == "__main__":
    raise SystemExit(cli.main(["theory", *sys.argv[1:]]))
