"""What a submitted job takes along: this package, the files its command names, its environment.

Everything goes into one new folder that becomes the job's working directory. Nothing is excluded
from it: only what belongs there is put in, so data, runs and virtual environments cannot slip in.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from uml_core.errors import UserError

PACKAGES = ("uml_core", "pipelines", "tune_spaces")
CODE = (".py", ".yaml", ".json", ".html")  # of the package; what else lies beside is not part of it
MOST_BYTES = 64 << 20  # Ray refuses 512 MiB; what is larger than this is data, and data is shared
ENVIRONMENT = "uml-environment.sh"
NAMED = 5  # files that an error lists
LOCK = Path(__file__).resolve().parents[2] / "cluster" / "requirements.lock"


def pack(folder: Path, command: Sequence[str], env: Mapping[str, str], *, code: bool = True) -> int:
    """Fills `folder` with what the job needs; returns its size in bytes.

    command  arguments of the verb: relative paths of existing files in it travel along
    env      variables of the job; in a file that only its owner reads, never in a runtime_env,
             which the dashboard and Ray's logs show
    code     False: the cluster's image holds the package already

    Raises UserError where a path leads out of the working directory or the whole is too large.
    """
    if code:
        _copy_packages(folder)
    problems = []
    for name in named_files(command):
        if os.path.normpath(name).startswith(".."):
            problems.append(f"{name} lies outside this folder: start the command from above it")
            continue
        to = folder / name
        if to.exists():
            problems.append(f"{name} has the name of a file of this package: rename it")
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, to)
    sizes = {path.relative_to(folder): path.stat().st_size for path in _files(folder)}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(sizes, key=lambda p: -sizes[p])[:NAMED]
        listed = ", ".join(f"{p} ({sizes[p] >> 20} MiB)" for p in largest)
        problems.append(
            f"the job would take {total >> 20} MiB along, at most {MOST_BYTES >> 20} MiB may be "
            f"uploaded. The largest files: {listed}. Put data on a disk that all nodes share or "
            "into a store, and name it by its absolute path or URI"
        )
    if problems:
        raise UserError(problems)
    write_environment(folder / ENVIRONMENT, env)
    return total


def named_files(command: Iterable[str]) -> list[str]:
    """Relative paths of existing files among arguments and values of `key=value`."""
    values = [word.partition("=")[2] or word for word in command]
    files = [v for v in values if v and not os.path.isabs(v) and Path(v).is_file()]
    return list(dict.fromkeys(files))


def environment(names: Iterable[str]) -> dict[str, str]:
    """NAME -> its value here, or NAME=VALUE as given. Raises UserError for names not set here."""
    found, problems = {}, []
    for name in names:
        key, given, value = name.partition("=")
        if not key.isidentifier():
            problems.append(f"--env {key}: not the name of a variable")
        elif given:
            found[key] = value
        elif key in os.environ:
            found[key] = os.environ[key]
        else:
            problems.append(f"--env {key}: it is not set here")
    if problems:
        raise UserError(problems)
    return found


def write_environment(path: Path, env: Mapping[str, str]) -> None:
    """A shell file that sets `env`, for its owner alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        file.writelines(f"{name}={shlex.quote(value)}\n" for name, value in sorted(env.items()))


def entrypoint(python: str, verb: str, command: Sequence[str]) -> str:
    """The shell line of the job: its environment, then `python -m pipelines.VERB ARGUMENTS`."""
    words = [python, "-m", f"pipelines.{verb}", *command]
    env = f"chmod 600 {ENVIRONMENT}; set -a; . ./{ENVIRONMENT}; set +a"
    return f"{env}; exec {shlex.join(words)}"


def locked(path: Path = LOCK) -> list[str]:
    """The image's packages as pip requirements `name==version ; marker`, for a `runtime_env`.

    Without hashes, which Ray's list of packages has no place for, and without Ray, which is the
    cluster's own. Raises UserError where the lock is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--locked: cannot read {path} ({error}); name packages by --pip") from None
    pins = [line.removesuffix("\\").strip() for line in lines if "==" in line and line[0].isalpha()]
    return [pin for pin in pins if not re.match(r"ray(\[|==)", pin)]


def _copy_packages(folder: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        for path in _files(root / package):
            if path.suffix in CODE and "__pycache__" not in path.parts:
                to = folder / path.relative_to(root)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]
