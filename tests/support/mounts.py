"""A disk of a few hundred kilobytes: a tmpfs, where mounting is allowed."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from absent import absent


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """`path` as a file system of `size` (as mount takes it); `absent` where it cannot be."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        absent(f"a full disk needs a mount of its own: {error}")
    if done.returncode:
        # Only for want of rights: any other trouble would hide all tests of full disks.
        denied = ("permission denied", "not permitted", "superuser", "only root")
        assert any(word in done.stderr.lower() for word in denied), done.stderr
        absent(f"a full disk needs a mount of its own (root): {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fills the disk of `folder` up to about `leave` bytes; returns the file that does it."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        file.truncate(max(0, file.tell() - leave))
    return ballast
