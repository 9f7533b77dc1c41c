"""Pictures: the bytes of a PNG, JPEG or WebP -> pixels, within caps. Only here are they decoded.

Which decoder, compared on 2026-11-29: CPU time (`process_time`, one torch thread, a shared machine
with 2 cores), the median of 15 ratios taken in turn in one process, photo-like pictures of the data
suite; 1 is `torchvision.io.decode_image` of 0.29, which was used before; below 1 is faster.

    bytes -> 224 x 224              Pillow 13: random crop, whole    torchcodec 0.17, decoding alone
    JPEG 256 px                     1.01  1.17                       0.81
    JPEG 500 px                     1.09  1.21                       0.93
    PNG 256 px                      1.06  1.15                       0.99
    WebP 256 px                     0.95  1.03                       0.91
    JPEG 256, 500 px, whole -> 32   0.69, 0.74 (`least`)
    random crops in two threads     1.05 (256 px), 0.97 (500 px), by the clock
    3 x 4000 damaged files          every one told                   every one told

torchvision's own decoders are deprecated, and damaged bytes end the process: a segmentation fault
in each of three runs of 4000. Pillow is safe, needs no new dependency, fits every torch and lets
other threads work while it decodes. torchcodec is the one to try next: `opened` is all to replace.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from torch import Tensor

from uml_core.errors import BadSample, cause
from uml_core.media.formats import format_of

MAX_SCANS = 100  # of a progressive JPEG, each as long as decoding; real ones have about ten
MAX_XMP_BYTES = 1 << 20
DEEP = 4096  # a 16-bit picture without a value above it would keep 4 bits or fewer of 8
# What is wrong with a picture is said once, by the sample; `frombuffer` only reads its bytes.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", message="The given buffer is not writable")

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_BARE = frozenset((*range(0xD0, 0xD9), 0x01))  # JPEG markers that no length follows


class Picture:
    """A decoded picture, upright; its pixels are RGB.

    width, height  in pixels
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.width, self.height = image.size

    def pixels(self, box: tuple[int, int, int, int] | None = None) -> Tensor:
        """(3, h, w) uint8 of the box (top, left, h, w), or of all of it; not to be written to."""
        top, left, height, width = box or (0, 0, self.height, self.width)
        # What `tobytes` does, but of the box alone and in one piece: a tenth of all decoding.
        encoder = Image._getencoder("RGB", "raw", ("RGB", 0, 1))
        encoder.setimage(self._image.im, (left, top, left + width, top + height))
        raw = torch.frombuffer(encoder.encode(3 * height * width)[2], dtype=torch.uint8)
        return raw.view(height, width, 3).permute(2, 0, 1)


def opened(data: bytes, max_pixels: int, least: int | None = None) -> Picture:
    """The first picture of a PNG, JPEG or WebP, turned as EXIF says; alpha is dropped.

    max_pixels  more are refused by the header, before a pixel is decoded
    least       pixels per side that are enough: a JPEG of more than twice as many may come back
                2, 4 or 8 times smaller, decoded in a part of the time

    What follows the end of the picture (the video of a motion photo, say) does not matter. Raises
    BadSample.
    """
    jpeg = _open_jpeg(data) if data.startswith(_JPEG) else None
    width, height = jpeg.size if jpeg is not None else _size(data)
    if width * height > max_pixels:
        raise BadSample(f"{width} x {height} pixels are more than max_pixels {max_pixels}")
    try:
        image = _load(_of(data)) if jpeg is None else _load_jpeg(jpeg, data, least)
        return Picture(_rgb(image, _orientation(image)))
    except BadSample:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for damaged bytes
        raise BadSample(f"the image cannot be decoded: {cause(error)}") from error


def _size(data: bytes) -> tuple[int, int]:
    """(width, height) as the header states them."""
    number = int.from_bytes
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 24:
        return number(data[16:20]), number(data[20:24])
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) >= 30:
        kind = data[12:16]
        if kind == b"VP8X":
            return 1 + number(data[24:27], "little"), 1 + number(data[27:30], "little")
        if kind == b"VP8L":
            bits = number(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if kind == b"VP8 ":
            return number(data[26:28], "little") & 0x3FFF, number(data[28:30], "little") & 0x3FFF
    said = format_of(data) or "something else"
    raise BadSample(f"not a readable PNG, JPEG or WebP image: it is {said}")


def _open_jpeg(data: bytes) -> JpegImagePlugin.JpegImageFile:
    try:
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except Exception as error:
        raise BadSample(f"the image cannot be decoded: {cause(error)}") from error


def _of(data: bytes) -> Image.Image:
    """A PNG or WebP, not yet decoded. The classes are called by name: no other may open it."""
    if data.startswith(_PNG):
        return PngImagePlugin.PngImageFile(io.BytesIO(_bare_png(data)))
    return WebPImagePlugin.WebPImageFile(io.BytesIO(data))


def _load_jpeg(image: JpegImagePlugin.JpegImageFile, data: bytes, least: int | None) -> Image.Image:
    _check_scans(data)
    if data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda"):
        return _load(image, least)
    # Some cameras leave out the end mark. Then nothing that could follow changes the picture; where
    # the picture itself is cut off, its rest is made of what follows, or of zeros.
    first, *others = (_load(_open_jpeg(data + rest), least) for rest in _ENDS)
    if data.endswith(bytes(16)) or any(first.tobytes() != other.tobytes() for other in others):
        return _load(image, least) if b"\xff\xd9" in data else _cut_off()
    return first


def _cut_off() -> NoReturn:
    raise BadSample("the image cannot be decoded: it is cut off")


_END = b"\xff\xd9"
_ENDS = (
    _END,
    bytes(range(1, 255)) * 4 + _END,
    bytes(range(254, 0, -1)) * 4 + _END,
    b"\xb6" * 400 + _END,
)


def _load(image: Image.Image, least: int | None = None) -> Image.Image:
    if least is not None:
        image.draft(None, (2 * least, 2 * least))
    image.load()
    return image


def _rgb(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey -> its upper 8 bits."""
    values = np.asarray(image)
    most = int(values.max())
    if 0 < most < DEEP:
        raise BadSample(
            f"a picture of 16 bits with no value above {most} (depth, a 12-bit scan, a mask?): "
            f"with 8 bits, {1 + most // 256} grey values would be left. Scale it to 0 - 65535, or "
            "save it with 8 bits"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """As Pillow's `exif_transpose`; damaged EXIF costs the orientation, not the picture."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:
        return None


def _bare_png(data: bytes) -> bytes:
    """A PNG with what its first picture needs and nothing else.

    Texts and colour profiles may unpack to anything or be damaged, and further frames are not used.
    """
    parts, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        xmp = name == b"iTXt" and data[at + 8 :].startswith(b"XML:com.adobe.xmp\0\0", 0, 19)
        if not name[:1].islower() or name in (b"tRNS", b"eXIf") or (xmp and length < MAX_XMP_BYTES):
            parts.append(data[at:end])
        if name == b"IEND":
            break
        at = end
    return b"".join(parts)


def _check_scans(data: bytes) -> None:
    """Raises BadSample where the picture itself, not what follows it, has too many scans."""
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) is not None:
        mark, at = found[1][0], found.end()
        if mark == 0xD9:
            break
        if mark not in _BARE:
            scans += mark == 0xDA
            at += max(2, int.from_bytes(data[at : at + 2]))
    if scans > MAX_SCANS:
        raise BadSample(f"the JPEG has {scans} scans, more than {MAX_SCANS}")
