"""One process at a time in a folder, also where hosts share its disk: a lock file that shows life.

`.uml-lock` is made with O_EXCL, which holds on NFS too (`flock` on a folder does not), and names
its owner: host, process and a token of its own. The owner writes it anew every BEAT seconds. It is
stale, and taken over, when

- its process ran on this machine (same boot, same process namespace) and has ended, or
- it ran elsewhere and gave no sign of life for STALE seconds by the clock of the disk itself.

A process that finds its lock taken over, because it was suspended for long, ends its job.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uml_core.errors import RunError, UserError

LOCK = ".uml-lock"
BEAT, STALE = 5.0, 60.0  # seconds
LOOK = 0.25  # seconds between two looks at the lock of another


@contextlib.contextmanager
def alone(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone.

    wait  for the end of another job in it, rather than raise. A folder that was made here and is
    still empty at the end is removed again.

    Raises UserError where another job is at work in it, and RunError at the end of the block where
    another host took the folder over meanwhile.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder / LOCK, _introduction()
    _take(path, mine, wait)
    over, lost = threading.Event(), threading.Event()
    beats = threading.Thread(target=_beat, args=(path, mine, over, lost), daemon=True)
    beats.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
    finally:
        over.set()
        beats.join()
        with contextlib.suppress(OSError):
            if path.read_bytes() == mine:
                path.unlink()
        if made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
    if lost.is_set():
        raise RunError(
            f"another job took {folder} over: this process had given no sign of life for "
            f"{STALE:.0f} seconds. See what the other one does before you start anything in it"
        )


def content(folder: Path) -> list[str]:
    """Sorted names of all that lies in a folder but for locks; empty where there is none."""
    if not folder.is_dir():
        return []
    return sorted(name for name in os.listdir(folder) if not name.startswith(LOCK))


@dataclass(frozen=True)
class _Found:
    """A lock as it was seen. text: its content; beat: mtime in ns; age: seconds since that."""

    text: bytes
    beat: int
    age: float

    @property
    def owner(self) -> dict[str, Any]:
        """What the lock says of its owner; empty while that is being written."""
        with contextlib.suppress(ValueError):
            if isinstance(told := json.loads(self.text), dict):
                return told
        return {}

    @property
    def here(self) -> bool:
        """Whether its process is one of this machine's."""
        return self.owner.get("machine") == _machine()

    @property
    def stale(self) -> bool:
        if self.here:
            born = _born(self.owner["pid"])
            return born is None or born != self.owner["born"]
        return self.age > STALE


def _take(path: Path, mine: bytes, wait: bool) -> None:
    seen: _Found | None = None
    while not _made(path, mine):
        found = _look(path)
        if found is None:
            continue  # it has gone just now
        if found.stale:
            _clear(path, found)
            continue
        beats = seen is not None and seen.text == found.text and seen.beat != found.beat
        if not wait and (found.here or beats):
            who = found.owner
            raise UserError(
                f"another job is at work in {path.parent} (process {who.get('pid', '?')} on "
                f"{who.get('host', '?')}): wait for it, or end it"
            )
        seen = found if seen is None or seen.text != found.text else seen
        time.sleep(LOOK)


def _made(path: Path, mine: bytes) -> bool:
    """Whether the lock could be made."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(file, mine)
    finally:
        os.close(file)
    return True


def _look(path: Path) -> _Found | None:
    """The lock as it is now. Opening it makes NFS ask the server; so does a new file for the time
    by the same clock."""
    try:
        with open(path, "rb") as file:
            text, beat = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    clock = path.with_name(f"{LOCK}.{uuid.uuid4().hex}")
    with open(clock, "wb") as file:
        now = os.fstat(file.fileno()).st_mtime_ns
    clock.unlink(missing_ok=True)
    return _Found(text, beat, (now - beat) / 1e9)


def _clear(path: Path, found: _Found) -> None:
    """Removes a stale lock, and none that another process has made in its place meanwhile.

    One process clears at a time: with two, the second could take away what the first has made.
    """
    clearing = path.with_name(f"{LOCK}.clear")
    if not _made(clearing, b""):
        left = _look(clearing)
        if left is not None and left.age > STALE:  # whoever cleared has died over it
            clearing.unlink(missing_ok=True)
        time.sleep(LOOK)
        return
    try:
        now = _look(path)
        if now is not None and now.text == found.text and now.stale:
            path.unlink(missing_ok=True)
    finally:
        clearing.unlink(missing_ok=True)


def _beat(path: Path, mine: bytes, over: threading.Event, lost: threading.Event) -> None:
    """Writes the lock again and again; ends the job when it has become another's."""
    missing = 0
    while not over.wait(BEAT):
        try:
            with open(path, "r+b", buffering=0) as file:
                if file.read() == mine:
                    os.pwrite(file.fileno(), mine, 0)
                    missing = 0
                    continue
        except FileNotFoundError:
            missing += 1
            if missing < 2:  # another may just have looked whether it is stale
                continue
        except OSError:
            continue  # a disk that is away for a moment
        lost.set()
        # A real signal: `interrupt_main` would wait for whatever the main thread sleeps in.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return


def _introduction() -> bytes:
    pid = os.getpid()
    who = {
        "host": socket.gethostname(),
        "pid": pid,
        "machine": _machine(),
        "born": _born(pid),
        "token": uuid.uuid4().hex,
    }
    return json.dumps(who).encode() + b"\n"


def _machine() -> str:
    """Where process numbers mean the same: a boot of a host, a process namespace on it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # without /proc the host's name must do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """When a process began, as its system counts; None where it has ended. Numbers come again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
