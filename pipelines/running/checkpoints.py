"""Checkpoints that are known to be whole, and the newest of them to go on from.

Ray Train copies a worker's files into --out and lists them in a snapshot. Neither is done whole
or not at all: a job that is killed, or a disk that fills up, leaves a torn folder or a torn
snapshot, and no later start gets past a torn snapshot. So every start of a job has a Ray Train
folder of its own, `<out>/train/attempt-<n>`, every checkpoint carries a manifest with the sizes
and hashes of its files, and what a start goes on from is the newest checkpoint that is as its
manifest says.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.files import disk_full
from pipelines.running.checkpoint_home import Home, home_of
from uml_core.errors import RunError

KEEP = 2  # the newest, and the one before in case it is damaged
MANIFESTS = "manifest-*.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: what it holds was reached after `at` steps (or rounds)."""

    path: Path
    at: int
    unit: str
    name: str  # attempt-<n>/checkpoint_<...>
    place: str  # for a person

    def __str__(self) -> str:
        return f"{self.place} ({self.unit} {self.at})"


def new_attempt(out: Path) -> str:
    """The name of Ray Train's folder for one more start of the job in `out`."""
    numbers = [int(name.removeprefix("attempt-")) for name in home_of(out).attempts()]
    return f"attempt-{max(numbers, default=-1) + 1:03d}"


# --------------------------------------------------------------------------------- writing


def save(
    folder: Path | None,
    out: Path,
    at: int,
    unit: str,
    *,
    rank: int,
    ranks: int,
    metrics: Mapping[str, Any],
) -> None:
    """Checkpoints the files of `folder` through Ray Train; a barrier over the workers.

    folder  None on workers that add no files
    ranks   workers that do: the checkpoint is whole with the last of them

    Raises RunError where the disk of `out` is full; what had been copied is removed.
    """
    import ray.train

    checkpoint, name = None, f"checkpoint_{at:08d}_{secrets.token_hex(4)}"
    if folder is not None:
        _seal(folder, at, unit, rank, ranks)
        checkpoint = ray.train.Checkpoint.from_directory(str(folder))
    try:
        ray.train.report(dict(metrics), checkpoint=checkpoint, checkpoint_dir_name=name)
    except Exception as error:
        attempt = ray.train.get_context().get_experiment_name()
        # Worker 0 gave the folder its name; elsewhere there is none of this one.
        home_of(out).remove(f"{attempt}/{name}")
        # On a full disk Ray may also fail to make the folder, and then miss it.
        if folder is not None and (disk_full(error) or not _fits(folder, out)):
            raise RunError(
                f"the disk of {out} is full: the checkpoint at {unit} {at} could not be written. "
                "Make space"
            ) from error
        raise


def _seal(folder: Path, at: int, unit: str, rank: int, ranks: int) -> None:
    for old in folder.glob(MANIFESTS):
        old.unlink()
    files = {path.name: [path.stat().st_size, _hash(path)] for path in sorted(folder.iterdir())}
    manifest = {"at": at, "unit": unit, "ranks": ranks, "files": files}
    (folder / f"manifest-{rank}.json").write_text(json.dumps(manifest), encoding="utf-8")


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fits(folder: Path, out: Path) -> bool:
    return sum(path.stat().st_size for path in folder.iterdir()) < shutil.disk_usage(out).free


# --------------------------------------------------------------------------------- reading


def newest(out: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of `out`, and a sentence for each newer one that is not."""
    troubles: list[str] = []
    for checkpoint in _newest_first(out):
        flaw = flaw_of(checkpoint.path)
        if flaw is None:
            return checkpoint, troubles
        troubles.append(f"the checkpoint {checkpoint} is passed over: {flaw}")
    return None, troubles


def agreed(out: Path, rank: int) -> tuple[Checkpoint | None, list[str]]:
    """`newest`, as worker 0 of the group sees it; a barrier over the workers."""
    from ray.train import collective

    found: Checkpoint | None = None
    troubles: list[str] = []
    if rank == 0:
        found, troubles = newest(out)
    told = collective.broadcast_from_rank_zero(found and (found.name, found.at, found.unit))
    if rank == 0 or told is None:
        return found, troubles
    return _checkpoint(home_of(out), *told), troubles


def flaw_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, None for a whole one."""
    manifests = _manifests(folder)
    if manifests is None:
        return "it was not written to its end"
    try:
        for manifest in manifests:
            for name, (size, digest) in manifest["files"].items():
                path = folder / Path(name).name
                if not path.is_file():
                    return f"{name} is missing"
                if path.stat().st_size != size:
                    return f"{name} has {path.stat().st_size} bytes instead of {size}"
                if _hash(path) != digest:
                    return f"{name} is not what was written"
    except OSError as error:
        return f"it cannot be read ({error})"
    return None


def _newest_first(out: Path) -> Iterator[Checkpoint]:
    """Checkpoints that have all their manifests; one after the other, for a store copies them."""
    home = home_of(out)
    names = [name for attempt in home.attempts() for name in home.checkpoints(attempt)]
    for name in sorted(names, key=lambda name: (_reached(name), name), reverse=True):
        manifests = _manifests(home.here(name))
        if manifests is not None:
            yield _checkpoint(home, name, manifests[0]["at"], manifests[0]["unit"])


def _checkpoint(home: Home, name: str, at: int, unit: str) -> Checkpoint:
    return Checkpoint(home.here(name), at, unit, name, home.shown(name))


def _reached(name: str) -> int:
    """How far a checkpoint got, by its name."""
    number = name.partition("/checkpoint_")[2].partition("_")[0]
    return int(number) if number.isdigit() else -1


def _manifests(folder: Path) -> list[dict[str, Any]] | None:
    """The manifests of all workers that wrote files; None where one is missing or torn."""
    try:
        first = json.loads((folder / "manifest-0.json").read_text(encoding="utf-8"))
        others = [folder / f"manifest-{rank}.json" for rank in range(1, first["ranks"])]
        return [first, *(json.loads(path.read_text(encoding="utf-8")) for path in others)]
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ------------------------------------------------------------------------------ keeping order


def tidy(out: Path) -> None:
    """Removes what no start will go by: all but the newest whole checkpoints, torn folders.

    Only while no worker of the job runs. A damaged checkpoint among the newest stays.
    """
    home, good, kept = home_of(out), 0, set()
    for checkpoint in _newest_first(out):
        kept.add(checkpoint.name)
        good += flaw_of(checkpoint.path) is None
        if good == KEEP:
            break
    for attempt in home.attempts():
        names = home.checkpoints(attempt)
        for name in names:
            if name not in kept:
                home.remove(name)
        if not kept.intersection(names):
            home.remove(attempt)


def where_it_stands(out: Path) -> str:
    """For the end of a job that failed: what is lost, and what `--resume` goes on from."""
    found, troubles = newest(out)
    if found is None:
        last = "There is no checkpoint: --resume would start anew."
    else:
        last = (
            f"Lost is the work since {found.unit} {found.at}. The last checkpoint is "
            f"{found.place}; the same command with --resume goes on from it."
        )
    return "\n".join([*troubles, last])
