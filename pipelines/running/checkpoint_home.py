"""Where the checkpoints of a job lie: inside its folder, or in a store (`train.storage`).

A store takes what a disk of many nodes cannot: hundreds of gigabytes that outlive the cluster. The
job's folder itself stays on a disk that all nodes share; its recipe.yaml says where to look.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import yaml

from pipelines.streams.storage import filesystem, is_remote

FOLDER = "train"  # Ray Train's folder inside --out


class Home(Protocol):
    """Checkpoints by the name `attempt-<n>/checkpoint_<...>`."""

    def ray(self) -> dict[str, Any]:
        """Arguments of Ray Train's RunConfig."""
        ...

    def attempts(self) -> list[str]:
        """Names of the folders of all starts."""
        ...

    def checkpoints(self, attempt: str) -> list[str]:
        """Names of a start's checkpoints, torn ones too."""
        ...

    def here(self, name: str) -> Path:
        """The folder on this machine that holds a checkpoint."""
        ...

    def remove(self, name: str) -> None:
        """Removes a checkpoint, or all of a start; does not mind if it is not there."""
        ...

    def shown(self, name: str) -> str:
        """A checkpoint's place for a person."""
        ...


def home_of(out: Path) -> Home:
    """Where the job of `out` keeps its checkpoints."""
    try:
        held = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
        storage = held["train"].get("storage")
    except (OSError, KeyError, TypeError, AttributeError):
        storage = None  # it never came to a start
    if storage is None:
        return Disk(out / FOLDER)
    mark = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]
    place = f"{storage.rstrip('/')}/{out.name}-{mark}"  # jobs may share a storage
    return Store(place) if is_remote(storage) else Disk(Path(place))


class Disk:
    """A folder that all nodes see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ray(self) -> dict[str, Any]:
        return {"storage_path": str(self._folder)}

    def attempts(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("attempt-*"))

    def checkpoints(self, attempt: str) -> list[str]:
        return sorted(f"{attempt}/{p.name}" for p in (self._folder / attempt).glob("checkpoint_*"))

    def here(self, name: str) -> Path:
        return self._folder / name

    def remove(self, name: str) -> None:
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def shown(self, name: str) -> str:
        return str(self._folder / name)


class Store:
    """A place behind a URI. A checkpoint that is looked at is copied to this machine, once."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._system, self._path = filesystem(uri)
        mark = hashlib.sha256(uri.encode()).hexdigest()[:16]
        self._copies = Path(tempfile.gettempdir()) / f"uml-checkpoints-{mark}"

    def ray(self) -> dict[str, Any]:
        # The file system with its endpoint and keys: Ray's controller has only what is passed.
        return {"storage_path": self._path, "storage_filesystem": self._system}

    def attempts(self) -> list[str]:
        return self._folders("", "attempt-")

    def checkpoints(self, attempt: str) -> list[str]:
        return [f"{attempt}/{name}" for name in self._folders(attempt, "checkpoint_")]

    def here(self, name: str) -> Path:
        from pyarrow import fs

        copy = self._copies / name
        if not copy.is_dir():
            scratch = Path(tempfile.mkdtemp(dir=_made(copy.parent)))
            try:
                source = f"{self._path}/{name}"
                fs.copy_files(source, str(scratch), source_filesystem=self._system)
                self._forget(keep=name)
                scratch.replace(copy)
            except FileNotFoundError:
                pass  # gone in between: an empty place counts as torn
            except OSError:
                if not copy.is_dir():  # else another worker of this machine was faster
                    raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return copy

    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._system.delete_dir(f"{self._path}/{name}")
        shutil.rmtree(self._copies / name, ignore_errors=True)

    def shown(self, name: str) -> str:
        return f"{self._uri}/{name}"

    def _folders(self, inside: str, prefix: str) -> list[str]:
        from pyarrow import fs

        place = fs.FileSelector("/".join(filter(None, (self._path, inside))), allow_not_found=True)
        found: Iterable[Any] = self._system.get_file_info(place)
        return sorted(f.base_name for f in found if f.base_name.startswith(prefix))

    def _forget(self, keep: str) -> None:
        """Removes older copies: each may be as large as a model."""
        for copy in self._copies.glob("attempt-*/checkpoint_*"):
            if str(copy.relative_to(self._copies)) != keep:
                shutil.rmtree(copy, ignore_errors=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
