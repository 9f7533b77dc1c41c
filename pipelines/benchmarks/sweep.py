"""Suite `sweep`: what a trial costs beside its training, on a Ray that is already up.

Eight configurations of a small shapes recipe run as `uml sweep` runs them. Overhead per trial is
the time that their places were taken (wall time x trials at a time) less the time spent in steps
and validations, over the number of trials: starting Tune and its actors, imports, models, decoded
samples, reports and checkpoints are all in it.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pipelines.running.runtime import ray_session
from pipelines.tuning.design import Design, design
from pipelines.tuning.held import hold
from pipelines.tuning.journal import Journal
from pipelines.tuning.search import Queue, concurrency, run_trials
from pipelines.tuning.trial import Shared
from tune_spaces.base import find
from uml_core import recipe

TRIALS = 8  # with the baseline
# name: (must, aim)
BOUNDS: dict[str, tuple[str, str]] = {"trial_overhead_seconds": ("≤ 5", "1")}
FIELDS = (
    "world={name: shapes, train: 20, test: 5}",
    "modalities.audio.ratio=1",
    "seeds=[0,1]",
    "train={steps: 40, batch_size: 32, validate_every: 10, device: cpu}",
    f"sweep={{search: random, trials: {TRIALS - 1}}}",
)


def measure(repeats: int = 3, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Seconds of overhead per trial, the median of `repeats`, with the raw numbers beside."""
    scratch = Path(tempfile.mkdtemp(prefix="uml-bench-"))
    source = Path(str(resources.files("pipelines"))) / "recipes" / "shapes.yaml"
    try:
        say("generating data")
        made = design(
            recipe.load(source, [f"data_root={scratch / 'data'}", *FIELDS]), find("modality_ratio")
        )
        with ray_session(workers=1, streams=1):
            say("a sweep to warm up")
            _once(made, scratch / "warm-up")
            found = []
            for number in range(repeats):
                say(f"sweep {number + 1} of {repeats}")
                found.append(_once(made, scratch / str(number)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    overheads = [one["overhead_seconds"] for one in found]
    return {
        "trial_overhead_seconds": statistics.median(overheads),
        "repeats": {name: [one[name] for one in found] for name in found[0]},
    }


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """(figure, value, must, aim) for the terminal."""
    return [[key, f"{result[key]:.2f}", *bounds] for key, bounds in BOUNDS.items()]


def _once(made: Design, out: Path) -> dict[str, float]:
    """One sweep of all trials in an empty folder."""
    out.mkdir(parents=True)
    began = time.monotonic()
    data = made.data
    held = hold(data.modalities, data.train, out, made.recipe.quarantine_budget)
    shared = Shared(made.recipe, data, held, str(out), threads=1)
    journal = Journal(out)
    run_trials(Queue(made.trials), shared, journal, scheduler=None, note=lambda *_: None)
    wall = time.monotonic() - began
    places = max(1, concurrency(made.recipe.train))
    training = [record.last["training_seconds"] for record in journal.records.values()]
    return {
        "overhead_seconds": (wall * places - sum(training)) / len(training),
        "wall_seconds": wall,
        "training_seconds": sum(training),
        "trials": len(training),
        "at_a_time": places,
    }
