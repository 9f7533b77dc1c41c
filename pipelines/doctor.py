"""Everything that must hold before a run, with what to do where it does not.

    uml doctor                          this machine, and a local Ray that really starts
    uml doctor shapes                   whether this recipe can run here
    uml doctor shapes train.workers=8 --out /mnt/runs/one

ok: as it should be. warn: a job runs, at the cost that is named. stop: a job would
hang or lose data, and is refused. Every job makes the same checks when it starts.
Exits 0 when nothing stops a job, else 2. Writes doctor.json into --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pipelines import cli
from pipelines.reporting import terminal
from pipelines.running.cluster_checks import running_cluster
from pipelines.running.data import open_data, resolved, write_json
from pipelines.running.machine import Finding
from pipelines.running.need import Need, estimate
from pipelines.running.preflight import cluster_for, examine
from pipelines.running.runtime import ray_session
from uml_core.errors import UserError

TAKES_FIELDS = True
STYLES = {"ok": "green", "warn": "yellow", "stop": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("recipe", nargs="?", help="a recipe file or a packaged recipe")
    parser.add_argument("overrides", nargs="*", help="fields to change, e.g. train.workers=4")


def run(args: argparse.Namespace) -> int:
    """The verb: returns the exit code."""
    began = time.monotonic()
    recipe = cli.load_recipe(args) if args.recipe else None
    out = cli.out_folder(args, "doctor")
    need, findings = Need(), []
    if recipe is not None:
        try:
            data = open_data(recipe)
            need = estimate(resolved(recipe, data), data)
            samples = sum(len(index) for index in data.train.values())
            findings.append(Finding("data", "ok", f"{samples} training samples"))
        except UserError as error:
            findings += [
                Finding("data", "stop", text, "uml verify shows more") for text in error.problems
            ]
            need = Need(workers=recipe.train.most_workers, streams=len(recipe.active))
    if args.dry_run:
        print(f"would check {need.workers} workers with {need.streams} streams, and start Ray")
        return 0
    start = time.monotonic()
    with cluster_for(need, out) as cluster:
        findings += examine(need, cluster, out)
    seconds = time.monotonic() - start
    findings.append(try_ray(need, private=cluster.private))
    report = {
        "ready": all(finding.state != "stop" for finding in findings),
        "checks": [asdict(finding) for finding in findings],
        "preflight_seconds": round(seconds, 2),
        "wall_seconds": round(time.monotonic() - began, 1),
    }
    _tell(args, out, findings, report)
    return 0 if report["ready"] else 2


def try_ray(need: Need, *, private: bool) -> Finding:
    """Starts the Ray that a job would start, or asks the one that runs, and has it do something."""
    start = time.monotonic()
    try:
        with ray_session(need.workers, need.streams):
            seconds = time.monotonic() - start
            trouble = _work(need)
    except Exception as error:  # whatever Ray raises at its start
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Finding("Ray", "stop", f"it does not start: {lines[-1]}", _START_FIX)
    what = "starts" if private else "answers"
    if trouble:
        return Finding("Ray", "stop", f"it {what} in {seconds:.1f} s, but {trouble}", _START_FIX)
    return Finding("Ray", "ok", f"it {what} in {seconds:.1f} s, works and has a dashboard")


_START_FIX = "UML_RAY_LOGS=1 uml doctor shows what Ray says; pip install 'ray[default]'"


def _work(need: Need) -> str:
    """What goes wrong when Ray passes an object through a task; empty when nothing does."""
    import numpy as np
    import ray

    @ray.remote(num_cpus=0.25)
    def total(values: np.ndarray) -> int:
        return int(values.sum())

    values = np.ones(1 << 20, dtype=np.int64)  # 8 MiB: through shared memory
    try:
        if ray.get(total.remote(ray.put(values)), timeout=60) != values.size:
            return "a task does not see what was put into the object store"
    except ray.exceptions.GetTimeoutError:
        return "no task runs within a minute"
    trouble = running_cluster(need, tempfile.gettempdir()).dashboard
    return f"its dashboard does not answer ({trouble})" if trouble else ""


# ------------------------------------------------------------------------------------ telling


def _tell(
    args: argparse.Namespace, out: Path, findings: Sequence[Finding], report: dict[str, Any]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "doctor.json", report)
    if args.json:
        print(json.dumps(report))
        return
    screen = terminal.console()
    screen.print(_table(findings))
    counts = {state: sum(f.state == state for f in findings) for state in STYLES}
    if counts["stop"]:
        text = f"\n{counts['stop']} of {len(findings)} checks stop a job."
        screen.print(Text(text, style=STYLES["stop"]))
    else:
        warned = f", {counts['warn']} with a warning" if counts["warn"] else ""
        screen.print(Text(f"\nReady: {len(findings)} checks{warned}.", style="bold green"))
    terminal.print_paths({"details": out / "doctor.json"})


def _table(findings: Sequence[Finding]) -> Table:
    """One row per finding; what to do stands below what was found."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, safe_box=True)
    table.add_column("", width=4)
    table.add_column("check", max_width=15, overflow="fold")
    table.add_column("found", overflow="fold")
    for finding in findings:
        said = Text(finding.found)
        if finding.fix and finding.state != "ok":
            said.append(f"\n→ {finding.fix}", style="bold")
        table.add_row(Text(finding.state, style=STYLES[finding.state]), finding.name, said)
    return table


if __name__ == "__main__":
    raise SystemExit(cli.main(["doctor", *sys.argv[1:]]))
