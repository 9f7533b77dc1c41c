"""What the names of a tar's members say: which are no samples, and why one has no payload."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from pipelines.streams import foreign

_LEFT = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN"})
SAMPLES = frozenset(
    ["cls", "json", "png", "jpg", "jpeg", "webp", "txt", "wav", "flac", "ogg", "npy", "npz"]
)
UNREAD = frozenset(  # of media that nothing here decodes
    [
        "bmp",
        "tif",
        "tiff",
        "gif",
        "ppm",
        "pgm",
        "heic",
        "heif",
        "avif",
        "jxl",
        "jp2",
        "mp3",
        "m4a",
        "aac",
        "opus",
        "wma",
        "mp4",
        "pt",
        "pth",
        "pkl",
    ]
)


def is_hidden(name: str) -> bool:
    """Whether a system left this member, not a person: `._x`, .DS_Store, __MACOSX, Thumbs.db."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return any(
        part.startswith(".") or part in _LEFT or part.startswith("PaxHeader") for part in parts
    ) or (bool(parts) and parts[-1].lower() in ("thumbs.db", "ehthumbs.db", "desktop.ini"))


def absence(key: str, members: Collection[str], suffixes: Sequence[str]) -> str:
    """Why a sample with these suffixes has none of those wanted, and what to do."""
    bases = {suffix.rpartition(".")[2] for suffix in suffixes}
    for member in sorted(members):
        head, _, last = member.rpartition(".")
        shown = printable(member[:80])
        if (tool := foreign.compressed_name(member)) and head.rpartition(".")[2] in bases:
            return f"'{shown}' is compressed: {tool} the files before they are packed"
        if not head or last not in bases:
            continue
        if re.fullmatch(r"[a-z][a-z_]*[0-9]*(\.[a-z][a-z_]*[0-9]*)*", head):
            return (
                f"its suffix is '{shown}', not '{last}', for a name ends at its first dot: choose "
                f"it with `member: {shown}` in the recipe or --member {shown}, or rename the files"
            )
        name = f"{key.rpartition('/')[2]}.{shown}"
        return (
            f"a dot inside the name: '{name}' is read as key '{key.rpartition('/')[2]}' and suffix "
            f"'{shown}', for a name ends at its first dot. Rename the files: - or _ for that dot"
        )
    there = " ".join(f".{printable(member[:40])}" for member in sorted(members)[:6])
    unread = sorted(member for member in members if member in UNREAD)
    advice = f": convert the .{unread[0]} files" if unread else ""
    return f"has no member with suffix {' '.join(suffixes)}, only {there}{advice}"


def printable(name: str) -> str:
    """The name with what no terminal and no file should get written as escapes.

    These are bytes that are not UTF-8 and control characters.
    """
    if name.isprintable():
        return name
    return "".join(_escaped(c) if unicodedata.category(c) in _NEVER else c for c in name)


_NEVER = ("Cc", "Cs", "Zl", "Zp")  # controls, surrogates, line and paragraph separators


def _escaped(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # how Python decodes a byte that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()
