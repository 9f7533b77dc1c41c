"""What a file is that is not what its name says: told from its first bytes, with what to do."""

from __future__ import annotations

import os
import re

HEAD_BYTES = 1024

_COMPRESSED = (  # first bytes, name, the tool that unpacks it
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
)
_OTHERS = (
    (b"PK\x03\x04", "a zip archive", "unpack it and pack it with tar"),
    (b"PK\x05\x06", "an empty zip archive", "pack the files with tar"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and pack it with tar"),
    (b"Rar!", "a rar archive", "unpack it and pack it with tar"),
    (b"PAR1", "a Parquet file", "`uml prepare` makes shards of it"),
    (b"\x89HDF", "an HDF5 file", "export its samples to files, then `uml prepare`"),
    (b"\x89PNG", "a PNG picture", "`uml prepare` makes shards of pictures"),
    (b"\xff\xd8\xff", "a JPEG picture", "`uml prepare` makes shards of pictures"),
    (b"\x93NUMPY", "a NumPy array", "`uml prepare` makes shards of arrays"),
)
_SUFFIXES = {
    "gz": "gunzip",
    "bz2": "bunzip2",
    "xz": "unxz",
    "zst": "unzstd",
    "lz4": "unlz4",
    "tgz": "gunzip",
    "tbz2": "bunzip2",
    "txz": "unxz",
}
_PAGE = re.compile(rb"^(?:\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body|\?xml|error)\b", re.I)


def pointer(head: bytes) -> str | None:
    """What stands in for a file that was not fetched; None where the bytes are no such thing."""
    if head.startswith(b"version https://git-lfs.github.com/"):
        return "a Git LFS pointer, not the file itself: run `git lfs pull`"
    if len(head) < HEAD_BYTES and re.match(rb"(\.\./)*(\.git)?/annex/objects/\S+\s*$", head):
        return "a git-annex pointer, not the file itself: run `git annex get`"
    return None


def page(head: bytes) -> str | None:
    """Whether a saved web page or a store's error message stands in for the file."""
    found = _PAGE.match(head)
    if found is None:
        return None
    what = "an XML answer" if found[1].lower() in (b"?xml", b"error") else "an HTML page"
    return f"{what}, such as a server's error saved as a file: download it again"


def compressed(head: bytes) -> str | None:
    """Which compression the bytes have; None without any."""
    for magic, name, tool in _COMPRESSED:
        if head.startswith(magic):
            return f"{name}-compressed: {tool} it"
    return None


def compressed_name(name: str) -> str | None:
    """The tool that unpacks what a file's suffix says is compressed, None for other names."""
    return _SUFFIXES.get(name.rpartition(".")[2].lower())


def no_tar(head: bytes) -> str | None:
    """Why bytes that should begin a tar do not; None where they may."""
    if not head:
        return "it is empty (0 bytes): download or write it again"
    if (what := compressed(head)) is not None:
        return f"it is {what}. Samples are read from the middle of a tar, so it must be plain"
    if (what := pointer(head) or page(head)) is not None:
        return f"it is {what}"
    for magic, name, advice in _OTHERS:
        if head.startswith(magic):
            return f"it is {name}, not a tar: {advice}"
    return None


def no_payload(data: bytes, suffix: str) -> str | None:
    """What a sample's bytes are instead of what their suffix says; None where that may be true."""
    head = data[:HEAD_BYTES]
    if (what := pointer(head)) is not None:
        return f"it is {what}"
    if suffix == "txt":
        return None  # a text may well begin with a tag
    if (what := page(head) or compressed(head)) is not None:
        return f"it is {what}"
    return None


def no_shard(path: str) -> str | None:
    """Why a local path that is called like a shard is none, as a sentence; None where it may be."""
    if os.path.islink(path) and not os.path.exists(path):
        return (
            f"{path} is a link to {os.readlink(path)}, which is not there: fetch the content (git "
            "annex get, dvc pull, git lfs pull, hf download) or remove the link"
        )
    if path.lower().endswith(".tar") and os.path.isdir(path):
        return f"{path} is a folder, not a tar: pack it, or move it away"
    return None
