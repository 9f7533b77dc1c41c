"""Bytes -> arrays: what follows a picture, what stands in its place, and one file per decoder."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from uml_core.errors import BadSample
from uml_core.media import picture, sound
from uml_core.media.formats import format_of

ROOT = Path(__file__).resolve().parents[2]
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def saved(fmt: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, fmt, **options)
    return out.getvalue()


def pixels(data: bytes, **options) -> torch.Tensor:
    return picture.opened(data, 10**6, **options).pixels()


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
def test_what_follows_a_picture_does_not_matter(fmt):
    data = saved(fmt)
    video = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\2" * 500  # that many scans would be too many
    for tail in (b"\0", bytes(5000), video, saved("PNG")):
        assert torch.equal(pixels(data + tail), pixels(data))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_may_lack_its_end_mark_but_no_part_of_its_picture(progressive):
    data = saved("JPEG", quality=95, progressive=progressive)
    assert torch.equal(pixels(data[:-2]), pixels(data))
    for cut in (data[:-40], data[:-200], data[:-200] + bytes(200)):
        with pytest.raises(BadSample, match="cannot be decoded"):
            pixels(cut)


def test_scans_of_the_picture_itself_are_still_counted():
    data = saved("JPEG", progressive=True)
    start = data.rfind(b"\xff\xda")
    with pytest.raises(BadSample, match=r"has \d+ scans, more than 100"):
        pixels(data[:-2] + data[start:-2] * 200 + data[-2:])


def test_16_bits_that_would_leave_a_few_grey_values_are_refused():
    values = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)
    with pytest.raises(BadSample, match=r"no value above 1534 .* 6 grey values"):
        pixels(saved("PNG", 2 * values))
    assert pixels(saved("PNG", 80 * values))[0].tolist() == (80 * values // 256).tolist()
    assert int(pixels(saved("PNG", 0 * values)).max()) == 0


def test_a_large_jpeg_may_come_back_smaller_never_below_twice_what_is_enough():
    big = np.repeat(np.repeat(PIXELS, 16, 0), 16, 1)  # 384 x 512
    found = picture.opened(saved("JPEG", big), 10**6, 48)
    assert (found.height, found.width) == (96, 128)
    assert picture.opened(saved("JPEG", big), 10**6, 97).height == 384
    with pytest.raises(BadSample, match="512 x 384 pixels"):
        picture.opened(saved("JPEG", big), 100_000, 8)


def test_a_box_is_that_part_of_the_picture():
    found = picture.opened(saved("PNG"), 10**6)
    expected = PIXELS[3:10, 5:25].transpose(2, 0, 1)
    assert np.array_equal(found.pixels((3, 5, 7, 20)).numpy(), expected)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (saved("GIF"), "a GIF"),
        (saved("BMP"), "a BMP"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08" + bytes(20), "gzipped"),
        (bytes(99), "nothing but zeros"),
    ],
)
def test_what_is_no_picture_is_called_by_its_name(data, name):
    with pytest.raises(BadSample, match=name):
        pixels(data)
    assert name in (format_of(data) or "")


def test_damaged_pictures_do_not_end_the_process():
    code = """
import io, numpy as np
from PIL import Image
from uml_core.errors import BadSample
from uml_core.media import picture
r = np.random.default_rng(1)
for n in range(1500):
    out = io.BytesIO()
    image = Image.fromarray(r.integers(0, 255, (20, 16, 3), dtype=np.uint8))
    image.save(out, ("PNG", "JPEG")[n % 2])
    data = bytearray(out.getvalue())
    for at in r.integers(0, len(data) if n % 3 else 128, 4):
        data[at] = r.integers(0, 256)
    try: picture.opened(bytes(data[: r.integers(1, 2 * len(data))]), 10**6).pixels()
    except BadSample: pass
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_streamed_wav_without_lengths_is_read_to_its_end():
    out = io.BytesIO()
    with wave.open(out, "wb") as clip:
        clip.setparams((1, 2, 8000, 0, "NONE", ""))
        clip.writeframes((1000 * np.sin(np.arange(4000))).astype("<i2").tobytes())
    data = bytearray(out.getvalue())
    whole, rate = sound.opened(bytes(data), 9, lambda frames, rate: (0, frames))
    data[4:8] = data[40:44] = bytes(4)
    streamed, _ = sound.opened(bytes(data), 9, lambda frames, rate: (0, frames))
    assert rate == 8000 and len(whole) == 4000 and torch.equal(whole, streamed)


@pytest.mark.parametrize(
    ("wanted", "only"),
    [
        ("torchvision.io", set()),
        ("torchaudio", {"uml_core/media/sound.py"}),
        ("soundfile", {"uml_core/media/sound.py", "uml_core/worlds/tones.py"}),
        ("torchcodec", set()),
    ],
)
def test_each_decoder_stands_behind_one_file(wanted, only):
    found = set()
    for path in (ROOT / "uml_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name == wanted or name.startswith(wanted + ".") for name in names):
                found.add(str(path.relative_to(ROOT)))
    assert found <= only
