"""Small result files: whole or not at all; and how a full disk is told apart from other faults."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from uml_core import addresses
from uml_core.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A scratch path beside `path`; what is written there takes its place when the block ends.

    A block that raises, or a process that is killed in it, leaves `path` as it was.
    """
    path = Path(path)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a small file as UTF-8, whole or not at all, also if the power goes."""
    with replaced(path) as scratch, open(scratch, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: str | Path, line: str) -> None:
    """Adds a line, whole or not at all, also where several processes add to the same file."""
    with open(path, "a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"  # by a crash, once
        data = b"\n" * torn + line.encode() + b"\n"
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(end)
            raise


def cache_folder(purpose: str) -> str:
    """Where what can be made again is kept: "index" of foreign shards, "stamps" of notes on shards,
    "stores": links to folders of odd names.

    It need not exist, or be writable.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(os.path.abspath(base), "uml", purpose)


def local_path(place: str | Path, what: str) -> Path:
    """`place` as an absolute path. Raises UserError for urls, with `what` it should be."""
    if addresses.is_url(str(place)) and not str(place).lower().startswith("file:"):
        raise UserError(f"{what} {place}: give a path on this machine; urls are not taken here")
    if problem := addresses.problem_of(str(place)):
        raise UserError(problem)
    return Path(addresses.absolute(str(place))).resolve()


def new_folder(place: str | Path, what: str = "--out") -> Path:
    """`place` as the path of a folder that exists or can be made; nothing is made here.

    Several first runs may ask for one folder at once, so the deepest folder that exists is tried.
    Raises UserError with the reason where nothing can be written there.
    """
    folder = local_path(place, what)
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if disk_full(error):
            raise
        raise UserError(f"{what} {folder} cannot be written: {error.strerror or error}") from None
    return folder


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk (or a used-up quota) is behind an error, whatever wrapped it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        # torch, SQLite and Ray put the system's words into errors of their own.
        if any(os.strerror(code) in str(error) for code in _FULL) or "disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
