"""Write the HTML report of a finished run again: one file that needs neither server nor network.

    uml report runs/shapes/20260101-120000
    python -m pipelines.report runs/shapes/20260101-120000 --out elsewhere

Reads what `uml compare`, `uml sweep`, `uml train` or `uml evaluate` left in the folder and writes
report.html there, or into --out. Tracking events that could not be delivered when the run ended
are delivered now.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from pipelines import cli, tracking
from pipelines.files import local_path, new_folder, write_text
from pipelines.reporting import (
    answer,
    evaluation,
    insights,
    sections,
    sweep_answer,
    sweep_sections,
    terminal,
)
from pipelines.reporting.samples import FOLDER, save_samples
from pipelines.reporting.sections import Section
from uml_core.addresses import redacted
from uml_core.errors import UserError

__all__ = ["add_arguments", "run", "save_samples", "write_report"]

TAKES_RECIPE = False
NAME = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("run_folder", help="the --out folder of a finished run")


def run(args: argparse.Namespace) -> int:
    """Writes the report; returns the exit code."""
    folder = local_path(args.run_folder, "RUN")
    to = new_folder(args.out) if args.out else None
    parts = _Inputs(folder)
    if args.dry_run:
        print(f"would write {(to or folder) / NAME} from {', '.join(parts.names)}")
        return 0
    path = write_report(folder, to)
    tracking.deliver_waiting(folder)
    if args.json:
        print(json.dumps({"report": str(path)}))
    else:
        terminal.print_paths({"report": path})
    return 0


def write_report(out: Path, to: Path | None = None) -> Path:
    """Writes report.html of the finished run in `out` into `to` (default: `out` itself).

    Raises UserError naming every input that is missing or unreadable.
    """
    parts = _Inputs(Path(out))
    page = _PAGES[parts.kind](parts)
    folder = Path(to or out)
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / NAME).resolve()
    write_text(path, redacted(page))
    return path


class _Inputs:
    """The files a report is made of, all read before anything is written."""

    def __init__(self, out: Path) -> None:
        if not out.is_dir():
            raise UserError(f"{out} is not a folder: give the --out folder of a finished run")
        kinds = [kind for kind in _PAGES if (out / f"{kind}.json").is_file()]
        if not kinds:
            raise UserError(
                f"{out} holds none of compare.json (from `uml compare`), sweep.json (from `uml "
                "sweep`), metrics.json (from `uml train`) and evaluate.json (from `uml evaluate`): "
                "has the run finished?"
            )
        self.kind, self.out = kinds[0], out
        self.folder = out / FOLDER
        self.names: list[str] = []
        self._problems: list[str] = []
        self.result = self._json(out / f"{self.kind}.json")
        self.env = self._json(out / "environment.json")
        self.recipe = self._text(out / "recipe.yaml")
        shown = self.folder / "samples.json"
        self.samples, self.curves = {}, {}
        if self.kind == "compare":
            self.curves = self._json(out / "curves.json")
        if self.kind == "compare" or shown.is_file():
            self.samples = self._json(shown)
        if self._problems:
            raise UserError(self._problems)
        self.day = date.fromtimestamp((out / f"{self.kind}.json").stat().st_mtime).isoformat()
        plain = yaml.safe_load(self.recipe)
        self.recipe_name = str(plain["name"])
        if self.kind == "compare":  # the words of the answer name what was added
            others = plain["modalities"].items()
            used = [n for n, m in others if n != plain["target"] and m.get("ratio", 1) != 0]
            self.result.setdefault("auxiliary", used)

    def _text(self, path: Path) -> str:
        self.names.append(path.name)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            self._problems.append(f"the report needs {path}: {reason}")
            return ""

    def _json(self, path: Path) -> Any:
        text = self._text(path)
        try:
            return json.loads(text) if text else {}
        except json.JSONDecodeError as error:
            self._problems.append(f"{path} is not valid JSON: {error}")
            return {}


def _comparison(parts: _Inputs) -> str:
    """The page of a comparison."""
    compare = parts.result
    entries = answer.results(compare)
    traces = parts.curves.get("results", [parts.curves])
    each = [
        [
            sections.arms(entry),
            sections.gains(entry),
            sections.learning_curves(trace["arms"]),
            *_present(insights.gradients(entry["target"], trace["arms"])),
        ]
        for entry, trace in zip(entries, traces, strict=True)
    ]
    if len(entries) == 1:
        body = each[0]
    else:
        names = [answer.budget(entry).capitalize() for entry in entries]
        rate = _present(insights.exchange(compare))
        body = [sections.by_shots(entries), *rate, *map(sections.group, names, each)]
    seconds = compare.get("wall_seconds")
    if seconds is None:
        known = [e["wall_seconds"] for e in entries if e.get("wall_seconds") is not None]
        seconds = sum(known) if known else None
    tiles = sections.tiles(entries[0]) if len(entries) == 1 else None
    return _page(
        parts,
        title=answer.question(compare),
        lead=sections.verdict(compare),
        tiles=tiles,
        body=[
            *body,
            *_present(insights.forecast(compare)),
            *_context(parts, seconds),
        ],
        explain=True,
    )


def _sweep(parts: _Inputs) -> str:
    """The page of a sweep."""
    sweep = parts.result
    entry = sweep["confirmation"]
    body = [sweep_sections.frontier(sweep), sweep_sections.knobs(sweep)]
    if entry:
        found = [sections.arms(entry), sections.gains(entry)]
        body.insert(0, sections.group("Confirmation on fresh seeds", found))
    if sweep["adaptive_sentence"]:
        body.append(sweep_sections.adaptive(sweep))
    body.append(sweep_sections.trials(sweep))
    return _page(
        parts,
        title=sweep_answer.question(sweep),
        lead=sweep_sections.verdict(sweep),
        tiles=sections.tiles(entry) if entry else None,
        body=body + _context(parts, sweep.get("wall_seconds")),
        explain=False,
    )


def _training(parts: _Inputs) -> str:
    """The page of one training run."""
    metrics = dict(parts.result)
    history = metrics.pop("history")
    names = dict.fromkeys(name for losses in history["losses"] for name in losses)
    curve = {
        "steps": history["steps"],
        "val_accuracy": [history["val_accuracy"]],
        "loss": {name: [[at.get(name) for at in history["losses"]]] for name in names},
    }
    curve["gradients"] = [history.get("gradients", [])]
    body = [
        sections.learning_curves({"uml": curve}),
        *_present(insights.gradients(metrics["target"], {"uml": curve})),
        sections.numbers(metrics, "Numbers"),
    ]
    return _page(
        parts,
        title=f"One training run: the {metrics['target']} model {answer.budget(metrics)}",
        lead=Markup(""),
        tiles=sections.accuracy_tiles(metrics),
        body=body + _context(parts, metrics.get("wall_seconds")),
        explain=False,
    )


def _evaluation(parts: _Inputs) -> str:
    """The page of an evaluation."""
    found = parts.result
    return _page(
        parts,
        title=evaluation.title(found),
        lead=evaluation.lead(found),
        tiles=evaluation.tiles(found),
        body=evaluation.body(found, parts.out) + _context(parts, found["wall_seconds"]),
        explain=False,
    )


_PAGES: dict[str, Callable[[_Inputs], str]] = {
    "compare": _comparison,
    "sweep": _sweep,
    "metrics": _training,
    "evaluate": _evaluation,
}


def _present(*found: Section | None) -> list[Section]:
    """The sections whose results the run has."""
    return [section for section in found if section is not None]


def _context(parts: _Inputs, seconds: float | None) -> list[Section]:
    env = parts.env
    shown = [sections.inputs(parts.samples, parts.folder)] if parts.samples else []
    return [
        *shown,
        sections.checks(env.get("guards", {}), env.get("quarantined", 0)),
        sections.conduct(env, seconds, answer.remarks(parts.result)),
        sections.recipe(parts.recipe),
        sections.versions(env),
    ]


def _page(
    parts: _Inputs,
    *,
    title: str,
    lead: Markup,
    tiles: Markup | None,
    body: list[Section],
    explain: bool,
) -> str:
    return sections.page(
        title=title,
        name=parts.recipe_name,
        day=parts.day,
        lead=lead,
        tiles=tiles or "",
        sections=body,
        explain=explain,
    )


if __name__ == "__main__":
    raise SystemExit(cli.main(["report", *sys.argv[1:]]))
