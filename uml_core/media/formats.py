"""What a file is by its first bytes: for the cause when it is not what its suffix says."""

from __future__ import annotations

_PAGE = "a web page, perhaps an error page saved in its place"
_FORMATS = (  # (place, bytes there, what it is); the first that fits
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file: run `git lfs pull`"),
    (0, b"<!doctype html", _PAGE),
    (0, b"<html", _PAGE),
    (0, b"<?xml", "an XML file"),
    (0, b"<svg", "an SVG"),
    (0, b"\x89png", "a PNG, and damaged"),
    (8, b"webp", "a WebP, and damaged"),
    (8, b"wave", "a WAV, and damaged"),
    (8, b"avi ", "an AVI video"),
    (0, b"gif8", "a GIF"),
    (0, b"bm", "a BMP"),
    (4, b"ftypavi", "an AVIF"),
    (4, b"ftyphe", "a HEIC"),
    (4, b"ftypmif1", "a HEIC"),
    (4, b"ftypm4a", "an M4A sound"),
    (4, b"ftyp", "an MP4 video"),
    (0, b"\x1aE\xdf\xa3".lower(), "a Matroska or WebM video"),
    (0, b"ii*\0", "a TIFF"),
    (0, b"mm\0*", "a TIFF"),
    (0, b"\0\0\0\x0cjxl", "a JPEG XL"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"\0\0\0\x0cjp", "a JPEG 2000"),
    (0, b"8bps", "a Photoshop file"),
    (0, b"\xff\xd8", "a JPEG"),
    (0, b"id3", "an MP3"),
    (0, b"\xff\xfb", "an MP3"),
    (0, b"\xff\xf3", "an MP3"),
    (0, b"\xff\xf2", "an MP3"),
    (0, b"\xff\xf1", "an AAC sound"),
    (0, b"\xff\xf9", "an AAC sound"),
    (0, b"form", "an AIFF"),
    (0, b"flac", "a FLAC"),
    (0, b"oggs", "an OGG"),
    (0, b"%pdf", "a PDF"),
    (0, b"\x1f\x8b", "gzipped: unpack it"),
    (0, b"pk\x03\x04", "a ZIP archive: unpack it"),
    (0, b"\x93numpy", "an npy array"),
    (0, b"par1", "a Parquet file"),
)


def format_of(data: bytes) -> str | None:
    """Such as "a GIF"; None for bytes that nothing tells."""
    head = data[:64].lower()
    if not head.strip(b"\0"):
        return "nothing but zeros" if data and not data.strip(b"\0") else None
    blank = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()  # a page may begin with blanks
    for place, magic, name in _FORMATS:
        if head.startswith(magic, place) or (place == 0 and blank.startswith(magic)):
            return name
    return None
