"""One Ray for one job: an existing cluster where there is one, else a private local one."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.running import cluster
from pipelines.streams.network import spare_loopback
from uml_core.errors import RunError

# Read by Ray at import: the bars would fight with ours, and usage statistics need a network.
# A job's actors and first tasks start together; Ray warns when they are four times the cores.
_DEFAULTS = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_maximum_startup_concurrency": str(max(8, os.cpu_count() or 1)),
}
_OWN = [name for name in _DEFAULTS if name not in os.environ]
for _name in _OWN:
    os.environ[_name] = _DEFAULTS[_name]
# The first version of Train, which a shell may still ask for, takes no elastic groups.
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"

_INNER = {"RAY_TRAIN_V2_ENABLED", "RAY_TMPDIR", "RAY_AIR_NEW_OUTPUT"}  # set by this package
_FOLDER, _OWNER = "uml-ray-", "owner"
_private = False  # whether this process has started the Ray that it uses
TRAINER_CPUS = 0.25  # logical: the operating system shares the real cores; see `local_cpus`


def local_cpus(workers: int, streams: int) -> int:
    """Logical CPUs of a local Ray.

    Ray Data gives each running dataset a whole number of the CPUs that trainers leave over, so
    on a small machine several streams would get none and crawl (ray#59685, ray#63924). One
    logical CPU per stream beside the real cores keeps them all moving.
    """
    return max(2, (os.cpu_count() or 1)) + workers * streams


@contextlib.contextmanager
def ray_session(
    workers: int = 1, streams: int = 1, *, object_store_bytes: int | None = None
) -> Iterator[None]:
    """Connects to Ray for the duration of a job.

    Uses the running connection, else the cluster of RAY_ADDRESS (a submitted job has it), else
    starts a local Ray in a private temporary folder: clusters that share one can end each
    other's placement groups. `object_store_bytes` is for that one; None: Ray's default.

    Raises UserError where RAY_ADDRESS names no Ray, RunError where Ray does not start.
    """
    import ray

    global _private
    if ray.is_initialized():
        yield
        return
    if address := cluster.address():
        cluster.check(address)
        with _starting():
            ray.init(address, log_to_driver=_ray_logs(), logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()
        return
    with _private_folder() as folder:
        try:
            spare_loopback()
            with _starting(), _environment("RAY_TMPDIR", folder), _loopback():
                ray.init(
                    address="local",
                    num_cpus=local_cpus(workers, streams),
                    object_store_memory=object_store_bytes,
                    include_dashboard=True,
                    dashboard_host="127.0.0.1",
                    log_to_driver=_ray_logs(),
                    logging_level=logging.ERROR,
                )
            # Where Ray's own processes look their Ray up. With several on a machine they find none
            # otherwise, and Train's cleaner leaves the placement groups of stopped trials behind.
            current = Path(folder) / "ray" / "ray_current_cluster"
            current.write_text(ray.get_runtime_context().gcs_address)
            _private = True
            yield
        finally:
            _private = False
            ray.shutdown()


def is_private() -> bool:
    """Whether this process has started the Ray that it uses: one node, which does everything."""
    return _private


def _ray_logs() -> bool:
    """Whether what Ray's workers print goes to the terminal: progress and advice are ours."""
    return bool(os.environ.get("UML_RAY_LOGS"))


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Turns whatever keeps Ray from starting into one sentence. Ray may also leave the process."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        names = sorted(n for n in os.environ.keys() - {*_OWN, *_INNER} if n.startswith("RAY_"))
        given = f" Set in this shell: {', '.join(names)}; try without them." if names else ""
        raise RunError(
            f"Ray does not start ({type(error).__name__}: {lines[0][:300]}).{given} `uml doctor` "
            "looks at this machine, UML_RAY_LOGS=1 shows what Ray says"
        ) from error


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """A Ray that starts in the block listens on 127.0.0.1 alone, where no other machine is.

    Ray does so by itself on macOS and Windows; elsewhere it puts the node's address in the place
    of 127.0.0.1, and its processes then listen on all addresses.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable for the processes that are started in the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _private_folder(root: Path = Path("/tmp")) -> Iterator[str]:
    """A folder for one local Ray; removes those of jobs that were killed.

    Unix sockets in it must stay under 107 characters. Its owner holds a lock, which the kernel
    frees with the process.
    """
    for mark in root.glob(f"{_FOLDER}*/{_OWNER}"):
        with contextlib.suppress(OSError), open(mark, "a") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - mark.stat().st_mtime > 60:  # younger: its owner may not hold it yet
                shutil.rmtree(mark.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=root))
    try:
        with open(folder / _OWNER, "w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
