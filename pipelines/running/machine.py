"""Checks of the machine a job starts on. Each returns a Finding; none needs Ray."""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import resource
import shutil
import sqlite3
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from pipelines.reporting.mlflow_store import resolve_uri
from pipelines.reporting.provenance import memory_bytes
from pipelines.running.need import EVALUATION_BYTES, KEPT, Need
from uml_core.addresses import redacted

OURS = "unpaired-multimodal-learner"
RAY_TEMP = "/tmp"  # local Rays live in a folder of their own in it
FILES, PROCESSES = 4096, 1000  # least open files, and processes or threads, for a job
SHARED_LEAST = 1 << 30
FULL = 0.95  # of a disk: Ray stops to spill objects there
TRACKING_SECONDS = 2.0
STORE_SHARE, STORE_MOST = 0.3, 200 * 10**9  # of memory, in bytes: Ray's default object store


@dataclass(frozen=True)
class Finding:
    """What a check found: ok, warn (the job runs, at a cost) or stop (it would hang or lose data).

    fix  what to do about it, where there is something to do
    """

    name: str
    state: Literal["ok", "warn", "stop"]
    found: str
    fix: str = ""


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def packages(name: str = OURS) -> Finding:
    """Python and everything that this package requires, in the versions that it requires."""
    try:
        wrong = _unmet(name, frozenset(), set())
    except metadata.PackageNotFoundError:
        return Finding("packages", "warn", f"{name} is not installed", "pip install -e .")
    if not wrong:
        versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("ray", "torch", "mlflow"))
        return Finding("packages", "ok", f"Python {platform.python_version()}, {versions}")
    dashboard = any("ray[default]" in what for what in wrong)
    found = "; ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
    fix = (
        "pip install 'ray[default]'"
        if dashboard
        else "make setup (or pip install -r requirements.lock)"
    )
    return Finding("packages", "warn", found, fix)


def _unmet(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> list[str]:
    """Requirements of a package with extras that are missing or of another version; the extras of
    its requirements are followed as well."""
    if (name, extras) in seen:
        return []
    seen.add((name, extras))
    wrong = []
    asks = f"{name}[{','.join(sorted(extras))}]" if extras else name
    for text in metadata.requires(name) or ():
        need = Requirement(text)
        marker = need.marker
        if marker is not None:
            # Without an extra all plain requirements count, with one only its own.
            plain = not extras and marker.evaluate({"extra": ""})
            if not plain and not any(marker.evaluate({"extra": extra}) for extra in extras):
                continue
            if extras and marker.evaluate({"extra": ""}):
                continue
        elif extras:
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing ({asks})")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version} is not {need.specifier} ({asks})")
        if need.extras:
            wrong += _unmet(need.name, frozenset(need.extras), seen)
    return wrong


def limits(files: tuple[int, int] | None = None, processes: int | None = None) -> Finding:
    """Open files (soft, hard) and processes that are left; Ray raises the soft limit itself."""
    soft, hard = files or resource.getrlimit(resource.RLIMIT_NOFILE)
    left = processes_left() if processes is None else processes
    reach = max(soft, min(hard, 65536) if hard >= 0 else 65536)
    found = f"{reach} open files, " + ("processes unlimited" if left < 0 else f"{left} processes")
    if 0 <= left < PROCESSES:
        fix = "raise the limit: docker run --pids-limit=-1, or ulimit -u"
        return Finding("limits", "warn", f"{found} left: Ray starts hundreds of threads", fix)
    if reach < FILES:
        return Finding("limits", "warn", f"{found}: Ray may lose connections", "ulimit -n 65536")
    return Finding("limits", "ok", found)


def processes_left() -> int:
    """Processes and threads that may still start here; -1 = unlimited."""
    left = []
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        most = (folder / "pids.max").read_text().strip()
        if most != "max":
            left.append(int(most) - int((folder / "pids.current").read_text()))
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft >= 0 and os.geteuid() != 0:  # does not bind root
        left.append(soft)
    return max(0, min(left)) if left else -1


def temp_folder(ray_temp: str = RAY_TEMP) -> Finding:
    """The disk under Ray's folders: where objects that do not fit in memory go."""
    if not os.access(ray_temp, os.W_OK | os.X_OK):
        fix = f"give this user write access to {ray_temp}"
        return Finding("temporary", "stop", f"{ray_temp} cannot be written", fix)
    usage = shutil.disk_usage(ray_temp)
    share = 1 - usage.free / max(1, usage.total)
    found = f"{ray_temp}: {size(usage.free)} free"
    if share > FULL:
        found += f", {share:.0%} full: Ray spills no object there"
        return Finding("temporary", "warn", found, f"make space in {ray_temp}")
    return Finding("temporary", "ok", found)


def shared_memory(folder: str = "/dev/shm", memory: int | None = None) -> Finding:
    """Shared memory against what Ray takes of it."""
    if not os.path.isdir(folder):
        return Finding("shared memory", "ok", f"no {folder} on this system")
    total = shutil.disk_usage(folder).total
    wanted = min(int(STORE_SHARE * (memory or memory_bytes())), SHARED_LEAST)
    if total < wanted:
        return Finding(
            "shared memory",
            "warn",
            f"{folder} has {size(total)}: Ray uses a slow disk in its place",
            f"docker run --shm-size={wanted >> 20}m, or an emptyDir of medium Memory",
        )
    return Finding("shared memory", "ok", f"{folder}: {size(total)}")


def object_store_bytes(folder: str = "/dev/shm") -> int:
    """What a local Ray takes for its object store."""
    wanted = min(int(STORE_SHARE * memory_bytes()), STORE_MOST)
    if os.path.isdir(folder):
        wanted = min(wanted, int(0.95 * shutil.disk_usage(folder).total))
    return wanted


def memory(need: Need, workers_here: int, total: int | None = None) -> Finding:
    """Memory of the workers on one machine against what it has."""
    total = total or memory_bytes()
    wanted = need.memory * workers_here
    found = f"about {size(wanted)} for {workers_here} workers of {size(total)}"
    if wanted > total:
        fix = "a smaller model.width or train.batch_size, fewer train.workers, or more machines"
        return Finding("memory", "stop", f"{found}: they do not fit", fix)
    if wanted > 0.8 * total:
        return Finding("memory", "warn", f"{found}: close to the limit", "fewer train.workers")
    return Finding("memory", "ok", found)


def evaluation(need: Need, most: int = EVALUATION_BYTES) -> Finding:
    """The target's largest evaluation set, which a worker decodes whole, against its limit."""
    found = f"about {size(need.evaluation)} decoded"
    if need.evaluation > most:
        why = f"{found}, more than the {size(most)} a worker keeps: the run would fail at its end"
        fix = "name fewer test and val shards, or a smaller size of the target's samples"
        return Finding("evaluation set", "stop", why, fix)
    return Finding("evaluation set", "ok", found)


def cores(need: Need, count: int | None = None) -> Finding:
    """Training processes against cores."""
    count = count or (os.cpu_count() or 1)
    found = f"{need.workers} workers on {count} cores"
    if need.workers > count:
        fix = f"train.workers={count}"
        return Finding("cores", "warn", f"{found}: they slow each other down", fix)
    return Finding("cores", "ok", found)


def disk(need: Need, out: Path, temp: str | None = None) -> list[Finding]:
    """Space for checkpoints in `out`, and for the copy that is written first."""
    whole = KEPT * need.checkpoint + need.results
    places = [("disk", existing(out), whole, need.checkpoint + need.results)]
    folder = Path(temp or tempfile.gettempdir())
    places.append(("disk for copies", folder, need.checkpoint, need.checkpoint))
    return [_space(*place) for place in places]


def _space(name: str, folder: Path, wanted: int, least: int) -> Finding:
    fix = "--out on another disk" if name == "disk" else "TMPDIR on another disk"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "stop", f"{folder} cannot be written", fix)
    free = shutil.disk_usage(folder).free
    found = f"{folder}: {size(free)} free, checkpoints take about {size(wanted)}"
    if free < least:
        return Finding(name, "stop", f"{found}: not one can be kept", f"make space, or {fix}")
    if free < wanted:
        return Finding(name, "warn", f"{found}: it may fill up", f"make space, or {fix}")
    return Finding(name, "ok", found)


def existing(path: Path) -> Path:
    """The nearest folder above `path`, or itself, that exists."""
    path = Path(path).absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())


def tracking(out: Path) -> Finding:
    """The MLflow store: a server answers, or the database can be written."""
    uri = resolve_uri(out)
    shown = redacted(uri)
    if uri.startswith("http"):
        trouble = _server_trouble(uri)
        fix = f"start it, or unset MLFLOW_TRACKING_URI ({shown}); the run goes on without"
    elif uri.startswith("sqlite:"):
        path = Path(uri.removeprefix("sqlite:///"))
        shown, trouble = str(path), _database_trouble(path)
        fix = "MLFLOW_TRACKING_URI=sqlite:////path/to/another.db; the run goes on without"
    else:
        return Finding("tracking", "ok", f"{shown} (not asked)")
    if trouble:
        return Finding("tracking", "warn", f"{shown}: {trouble}", fix)
    return Finding("tracking", "ok", shown)


def _server_trouble(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # urllib takes no user
    try:
        urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=TRACKING_SECONDS).close()
    except urllib.error.HTTPError as error:
        return "" if error.code < 500 else f"it answers with {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"it does not answer ({getattr(error, 'reason', error)})"
    return ""


def _database_trouble(path: Path) -> str:
    folder = existing(path.parent)
    if not path.exists():
        return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=1.0)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("PRAGMA schema_version")
            database.rollback()
    except sqlite3.Error as error:
        return f"it cannot be written ({error})"
    return "" if os.access(path, os.W_OK) else "it cannot be written"


def shards(need: Need) -> Finding:
    """Shards against workers: fewer are legal, ranks share a shard by ranges of it."""
    few = [(name, count) for name, count in need.shards if count < need.workers]
    remote = [(name, count) for name, count in few if name in need.remote]
    if remote:
        listed = ", ".join(f"{name} has {count}" for name, count in remote)
        found = f"{listed} for {need.workers} workers: all read ranges of the same remote file"
        fix = "more and smaller shards: uml prepare --per-shard"
        return Finding("shards", "warn", found, fix)
    listed = ", ".join(f"{name} {count}" for name, count in need.shards) or "none"
    note = ": fewer than workers, which costs local files nothing" if few else ""
    return Finding("shards", "ok", listed + note)


def other_rays(own: str | None = None, commands: Sequence[Sequence[str]] | None = None) -> Finding:
    """Other Rays of this machine, and whether one shares the temporary folder of ours.

    own  the session folder of the Ray in use; None: it will have a private one
    """
    sessions = [s for s in _sessions(_commands() if commands is None else commands) if s != own]
    root = os.path.dirname(own) if own else None
    sharing = [session for session in sessions if root and os.path.dirname(session) == root]
    if sharing:
        return Finding(
            "other Rays",
            "warn",
            f"{len(sharing)} more live in {root}: each can end the runs of the others",
            "start each with its own --temp-dir, and stop those that are left over",
        )
    count = f"{len(sessions)} more on this machine, apart" if sessions else "none"
    return Finding("other Rays", "ok", count)


def _sessions(commands: Sequence[Sequence[str]]) -> list[str]:
    flag = "--session-dir="
    return [
        argument.removeprefix(flag)
        for command in commands
        if command and os.path.basename(command[0]) == "gcs_server"
        for argument in command
        if argument.startswith(flag)
    ]


def _commands() -> list[list[str]]:
    """Command lines of all processes (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(path.read_bytes().decode("utf-8", "replace").split("\0"))
    return found
