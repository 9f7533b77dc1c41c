"""The target-only model of a finished run, to take home.

    uml export runs/shapes/20260101-120000 --out models/shapes
    uml export runs/shapes/20260101-120000 --arm unimodal --seed 3 --out models/alone
    uml export runs/shapes/20260101-120000 --register shapes

RUN is the --out folder of `uml compare`, `uml train` or `uml sweep`. Of a comparison with several
numbers of shots the most shots count. Without --arm and --seed the model is: of a comparison the
UML arm (`uml`) at the settings that validation chose, and of its seeds the one of best validation;
of a sweep the same of the confirmed best mix; of a training run its best checkpoint. Test accuracy
never decides.

Leaves in --out (default: RUN/export): model.safetensors and model.json (preprocessing, classes,
encoder, where it comes from), and what MLflow needs to serve the folder: MLmodel, requirements.txt,
python_env.yaml, code/. Plain Python needs neither Ray nor MLflow:

    from uml_core.export import load
    load("models/shapes").predict([open("photo.png", "rb").read()]).classes
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pipelines import cli
from pipelines.files import local_path
from pipelines.reporting import terminal
from pipelines.running.exporting import exportable, flavoured, registry_tags
from pipelines.tracking import PARENT, Tracker
from uml_core.errors import UserError
from uml_core.export import TargetModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="the --out folder of a finished run")
    parser.add_argument("--arm", help="of a comparison: which arm (default: uml)")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of a comparison: which seed (default: best validation)",
    )
    parser.add_argument(
        "--register", metavar="NAME", help="also register it in MLflow under this name"
    )


def run(args: argparse.Namespace) -> int:
    """Exports; returns the exit code."""
    folder = local_path(args.run_folder, "RUN")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the --out folder of a finished run")
    model = exportable(folder, args.arm, args.seed)
    args.out = args.out or str(folder / "export")
    out = cli.out_folder(args, folder.name)
    if args.dry_run:
        print(_describe(model, out))
        return 0
    flavoured(model, out)
    places: dict[str, Path | str] = {"model": out}
    if args.register:
        places["MLflow"] = _register(model, folder, out, args.register)
    if args.json:
        print(json.dumps({"out": str(out), **model.facts()}))
        return 0
    print(_describe(model, out))
    terminal.print_paths({**places, "next": f"uml predict {out} FILES"})
    return 0


def _describe(model: TargetModel, out: Path) -> str:
    """What is exported, in words."""
    facts = model.made_with
    weights = sum(p.numel() for p in model.learner.parameters())
    lines = [
        f"model      {model.modality.kind} -> "
        + (f"{len(model.classes)} classes" if model.classes else "embeddings")
        + f" and {model.learner.spec.width} numbers, {weights:,} weights",
        f"from       {facts['run']}: " + _origin(facts),
    ]
    if model.encoder is not None:
        lines.append(f"takes      features of {model.encoder['name']}")
    return "\n".join([*lines, f"to         {out}"])


def _origin(facts: dict[str, Any]) -> str:
    parts = [str(facts.get("job", "a run"))]
    if facts.get("arm"):
        parts.append(f"arm {facts['arm']}")
    if facts.get("seed") is not None:
        parts.append(f"seed {facts['seed']}")
    for name in ("val_accuracy", "test_accuracy"):
        if facts.get(name) is not None:
            parts.append(f"{name.partition('_')[0]} {facts[name]:.1f} %")
    return ", ".join(parts)


def _register(model: TargetModel, folder: Path, out: Path, name: str) -> str:
    """A run of its own in MLflow, nested in the run that the model comes from."""
    run_name = model.made_with["run"]
    with Tracker.open(folder, run_name) as tracker:
        key = f"export-{out.name}-{name}"
        if not tracker.has(PARENT):  # another store than the run's own
            tracker.start(PARENT, run_name)
        tracker.start(key, f"{run_name} export", params=model.made_with)
        tracker.register(key, out, name, registry_tags(model))
        return tracker.where


if __name__ == "__main__":
    raise SystemExit(cli.main(["export", *sys.argv[1:]]))
