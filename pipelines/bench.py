"""Speed as ratios: ours against ceilings and plain code that run in turn with it.

    uml bench data            streams against plain processes and a DataLoader
    uml bench data step       several suites, one bench.json
    uml bench data --repeats 7 --json

Each figure is a ratio of medians within one run, or a count, so that it means the same on a
busy machine. Writes bench.json into --out; what could not run here is null.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any

from pipelines import cli
from pipelines.reporting import provenance, terminal
from pipelines.running.data import write_json

SUITES = {
    "data": "streams to a training rank, against plain processes and a DataLoader",
    "step": "the training step, against a plain PyTorch script",
    "embed": "a frozen encoder over shards, against the bare encoder with cached inputs",
    "heads": "fits of heads over features, against a plain loop over fits",
    "sweep": "what a trial costs beside its training",
    "claims": "how often a gain is claimed where there is none, and where one is planted",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    listed = "; ".join(f"{name}: {purpose}" for name, purpose in SUITES.items())
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES), help=listed)
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (at least 3)")


def run(args: argparse.Namespace) -> int:
    """Measures; returns the exit code."""
    if args.dry_run:
        print("\n".join(f"would measure {name}: {SUITES[name]}" for name in args.suites))
        return 0
    out = cli.out_folder(args, "bench")
    found: dict[str, Any] = {}
    for name in args.suites:
        suite = importlib.import_module(f"pipelines.benchmarks.{name}")
        found[name] = suite.measure(max(3, args.repeats), terminal.note)
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "bench.json", {**found, "host": provenance.host(), "git": provenance.git_state()}
    )
    if args.json:
        print(json.dumps(found))
        return 0
    for name, result in found.items():
        suite = importlib.import_module(f"pipelines.benchmarks.{name}")
        screen = terminal.console()
        screen.print(f"\n{name}: {SUITES[name]}")
        screen.print(terminal.table(("figure", "measured", "must", "aim"), suite.rows(result)))
    terminal.print_paths({"numbers": out / "bench.json"})
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.main(["bench", *sys.argv[1:]]))
