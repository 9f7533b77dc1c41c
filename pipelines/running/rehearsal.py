"""A short run of the same recipe on this Ray: what no sum of parts tells.

Processes that train side by side share cores, caches and memory with each other, with the streams
and with Ray; how much that costs is measured by doing it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.running.data import rounds_of
from uml_core.cost import with_steps
from uml_core.errors import RunError
from uml_core.specs import Recipe

SECONDS = 10.0  # of training that a rehearsal aims at
FEWEST = 10  # steps


@dataclass(frozen=True)
class Rehearsal:
    """What a short run took.

    steps   of it
    step    seconds of one, with its share of validations and of waiting for data
    around  seconds of everything else: start, test evaluation, checkpoint, report
    """

    steps: int
    step: float
    around: float


def rehearse(recipe: Recipe, step: float, validation: float, out: Path) -> Rehearsal:
    """Trains for some seconds in a folder inside `out`, which is removed again.

    step, validation  what they take by themselves, in seconds

    Raises RunError where the run fails.
    """
    every = recipe.train.validate_every
    short = with_steps(recipe, min(recipe.train.steps, max(FEWEST, round(SECONDS / step))))
    train = replace(short.train, validate_every=every, storage=None)
    shots = next(k for k, _ in rounds_of(recipe))
    short = replace(short, train=train, shots=shots, trace=False)
    folder = out / "rehearsal"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / "recipe.yaml"
    path.touch(mode=0o600)
    path.write_text(short.to_yaml(secrets=True), encoding="utf-8")
    command = [sys.executable, "-m", "pipelines.train", str(path)]
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--out", str(folder / "run")], env=env, capture_output=True, text=True
        )
        whole = time.monotonic() - began
        if done.returncode:
            last = (done.stderr or done.stdout).strip()[-600:]
            raise RunError(f"a short run of this recipe fails: {last}")
        found = json.loads((folder / "run" / "metrics.json").read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    steps, measured = found["steps"], found["step_seconds"] or step
    around = max(0.0, whole - measured * steps)
    # A short run validates more often than the whole one: always at its end.
    often = train.steps // every + bool(train.steps % every)
    measured += validation * (1 / every - often / steps)
    return Rehearsal(steps, max(measured, step), around)
