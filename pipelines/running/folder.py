"""The folder of a job: for one process at a time, and resumed only as the job that it holds.

Every verb that resumes asks here: `opened` where a recipe makes the job, `kept` where arguments do.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from pipelines.files import write_text
from pipelines.reporting import provenance
from pipelines.running.data import Data, record_left_out, write_json
from pipelines.running.lock import alone
from uml_core import recipe as recipes
from uml_core.addresses import redacted_tree
from uml_core.errors import UserError
from uml_core.specs import Recipe

REQUEST = "request.json"  # what a job without a recipe was asked for
PLAN = "plan.json"  # what a job does beyond its recipe
SHOWN = 12  # differences that one message lists

# What a resumed job may change: where and on what it runs, and what other verbs read. Data may lie
# elsewhere as long as it is the same.
_ANYWHERE = (
    "data_root",
    "source",
    "world",
    "modalities.*.train",
    "modalities.*.val",
    "modalities.*.test",
    "allow_overlap",
    "quarantine_budget",
    "trace",
    "train.workers",
    "train.worker_resources",
    "train.data_nodes",
    "train.resize_seconds",
    "train.device",
    "train.compile",
    "train.checkpoint_every",
    "train.max_failures",
    "evaluate",
    "tests",
)
FREE = (*_ANYWHERE, "sweep")
# One run may also learn differently from here on. In a comparison every round must be alike.
FREE_IN_A_RUN = (
    *FREE,
    "compare",
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
# Trials must be alike too, and what the search does decides which there are.
FREE_IN_A_SWEEP = (
    *_ANYWHERE,
    "sweep.workers",
    "sweep.gpu_share",
    "sweep.keep",
    "sweep.max_failures",
)


@contextlib.contextmanager
def opened(
    out: Path,
    recipe: Recipe,
    data: Data,
    free: Sequence[str] = FREE,
    plan: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """The folder `out`, made or taken up again, for this process alone; yields its environment.

    Leaves recipe.yaml, environment.json, what the scan of the shards left out, and plan.json where
    a `plan` says more of the job than its recipe. `free` are the fields (with all below them) that
    may differ from those of the job that `out` holds. Raises UserError where another process is at
    work in it, or where it holds another job.
    """
    environment = provenance.environment(
        data=provenance.data_facts(data.indices()),
        placement={},
        guards=data.guards,
        quarantined=0,
    )
    with alone(out):
        held = _held(out)
        if held is not None:
            before, known, planned = held
            problems = _recipe_differences(before, recipe, free)
            problems += _data_differences(known, environment["data"])
            problems += differences(planned or {}, plan or {})
            _refuse(out, problems)
        # recipe.yaml last: where it lies, all that a resume is compared with lies there too.
        write_json(out / "environment.json", environment)
        if plan is not None:
            write_json(out / PLAN, plan)
        write_text(out / "recipe.yaml", recipe.to_yaml())
        record_left_out(data, out)
        yield environment


def kept(folder: Path, request: Mapping[str, Any]) -> None:
    """Notes in `folder` what a job was asked for; call it inside `alone`.

    request: arguments, and hashes of what they name. Raises UserError where the folder holds a job
    that was asked for something else.
    """
    path, request = folder / REQUEST, redacted_tree(request)
    if path.is_file():
        _refuse(folder, differences(_json(path), request))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, request)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str] = ()
) -> list[str]:
    """A sentence for every field that differs, is new or has gone; null and empty are "not set"."""
    old, new = _flat(before), _flat(now)
    return [
        f"{name} was {old.get(name, 'not set')} and is {new.get(name, 'not set')}"
        for name in sorted(old.keys() | new.keys(), key=lambda name: (name.count("."), name))
        if old.get(name) != new.get(name) and not _is_free(name, free)
    ]


def _refuse(out: Path, problems: Sequence[str]) -> None:
    """The one answer of every verb to a job that is not the one in the folder."""
    if not problems:
        return
    more = len(problems) - SHOWN
    shown = [*problems[:SHOWN], *([f"{more} more differences"] if more > 0 else [])]
    raise UserError(
        [
            *shown,
            f"--resume goes on with the job in {out}: use the arguments and the data that it began "
            "with, or choose another --out",
        ]
    )


def _held(out: Path) -> tuple[dict, dict, dict | None] | None:
    """(recipe, data, plan) of the job in the folder; None where it never came to a start."""
    if not (out / "recipe.yaml").is_file():
        return None
    try:
        before = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
        named = isinstance(before, dict) and isinstance(before["modalities"], dict)
    except (OSError, ValueError, KeyError, yaml.YAMLError):
        named = False
    if not named:
        raise UserError(f"{out / 'recipe.yaml'} cannot be read: choose another --out")
    if not (out / "environment.json").is_file():
        raise UserError(f"{out} does not say which data its job began with: choose another --out")
    data = _json(out / "environment.json").get("data", {})
    return before, data, _json(out / PLAN) if (out / PLAN).is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read: choose another --out")
    return found


def _recipe_differences(before: dict[str, Any], recipe: Recipe, free: Sequence[str]) -> list[str]:
    now = redacted_tree(recipe.to_dict())  # as it was written down
    problems = []
    names, old_names = sorted(now["modalities"]), sorted(before["modalities"])
    if names != old_names:
        problems.append(f"modalities were {', '.join(old_names)} and are {', '.join(names)}")
    both = set(names) & set(old_names)
    return problems + [
        problem
        for problem in differences(_with_defaults(before, now), now, free)
        if not problem.startswith("modalities.") or problem.split(".")[1] in both
    ]


def _with_defaults(before: dict[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """An older version's recipe with today's defaults for the fields that it did not know.

    Fields that today's version does not know stay as they are.
    """
    known = _known(before, now)
    for part in (before, known):
        with contextlib.suppress(UserError):
            return _merged(before, recipes.from_dict(part).to_dict())
    return before


def _known(before: Any, now: Any) -> Any:
    """What of `before` has a name that occurs in `now` too."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return before
    return {key: _known(value, now[key]) for key, value in before.items() if key in now}


def _merged(under: Any, over: Any) -> Any:
    if not isinstance(under, Mapping) or not isinstance(over, Mapping):
        return over
    names = dict.fromkeys((*over, *under))
    return {n: _merged(under.get(n), over[n]) if n in over else under[n] for n in names}


def _data_differences(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    problems = []
    for name in sorted(before.keys() | now.keys()):
        if name not in before:
            problems.append(f"the data of {name} was not there when the job began")
        elif name not in now:
            problems.append(f"the data of {name}, which the job began with, is not there")
        elif before[name]["sha256"] != now[name]["sha256"]:
            old, new = (facts[name]["sha256"][:12] for facts in (before, now))
            problems.append(
                f"the data of {name} is not what the job began with (sha256 {old}, now {new})"
            )
    return problems


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names -> values as text, whole; null and empty are left out."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[f"{prefix}{name}"] = text
    return flat


def _is_free(name: str, free: Sequence[str]) -> bool:
    return any(fnmatchcase(name, part) or fnmatchcase(name, f"{part}.*") for part in free)
