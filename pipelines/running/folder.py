"""The folder of a job: for one process at a time, and resumed only as the job that it holds."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from pipelines.files import write_text
from pipelines.reporting import provenance
from pipelines.running.data import Data, record_left_out, write_json
from pipelines.tracking import flatten
from uml_core.errors import UserError
from uml_core.specs import Recipe

# What a resumed job may change. Data may lie elsewhere as long as it is the same.
FREE = (
    "data_root",
    "world.*",
    "modalities.*.train",
    "modalities.*.val",
    "modalities.*.test",
    "allow_overlap",
    "quarantine_budget",
    "trace",
    "train.workers",
    "train.worker_resources.*",
    "train.data_nodes.*",
    "train.resize_seconds",
    "sweep.gpu_share",
    "train.device",
    "train.compile",
    "train.checkpoint_every",
    "train.max_failures",
    "sweep.*",
)
# One run may also learn differently from here on. In a comparison every round must be alike.
FREE_IN_A_RUN = (
    *FREE,
    "compare.*",
    "train.steps",
    "train.lr",
    "train.weight_decay",
    "train.lr_schedule",
    "train.lr_warmup",
    "train.clip",
    "train.label_smoothing",
    "train.precision",
    "train.validate_every",
    "train.patience",
    "train.on_nan",
)


@contextlib.contextmanager
def opened(
    out: Path, recipe: Recipe, data: Data, free: Sequence[str] = FREE
) -> Iterator[dict[str, Any]]:
    """The folder `out`, made or taken up again, for this process alone; yields its environment.

    Leaves recipe.yaml, environment.json and what the scan of the shards left out. `free` are the
    fields that may differ from those of the job that `out` holds. Raises UserError where another
    process is at work in it, or where it holds another job.
    """
    environment = provenance.environment(
        data=provenance.data_facts(data.indices()),
        placement={},
        guards=data.guards,
        quarantined=0,
    )
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        problems = differences(out, recipe, environment["data"], free)
        if problems:
            raise UserError(
                [*problems, f"--resume goes on with the job in {out}: choose another --out"]
            )
        write_text(out / "recipe.yaml", recipe.to_yaml())
        write_json(out / "environment.json", environment)
        record_left_out(data, out)
        yield environment


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another job is at work in {out}: wait for it, or end it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)


def differences(
    out: Path, recipe: Recipe, data: Mapping[str, Mapping[str, Any]], free: Sequence[str]
) -> list[str]:
    """What keeps this job from going on with the one in `out`: changed fields, changed data."""
    try:
        held = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
        known = json.loads((out / "environment.json").read_text(encoding="utf-8"))["data"]
    except FileNotFoundError:
        return []  # it never came to a start
    before, now = flatten(held), flatten(recipe.to_dict())
    problems = [
        f"{name} was {before[name]} and is {now[name]}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name] and not any(fnmatchcase(name, part) for part in free)
    ]
    names, old_names = sorted(recipe.modalities), sorted(held["modalities"])
    if names != old_names:
        problems.append(f"modalities were {', '.join(old_names)} and are {', '.join(names)}")
    problems += [
        f"the data of {name} is not what the job began with (sha256 {known[name]['sha256'][:12]}, "
        f"now {data[name]['sha256'][:12]})"
        for name in sorted(known.keys() & data.keys())
        if known[name]["sha256"] != data[name]["sha256"]
    ]
    return problems
