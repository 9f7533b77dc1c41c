"""Whatever a member of a tar holds, decoding gives a tensor or a BadSample, soon and in bounds."""

import io
import resource
import struct
import time
import wave
import zipfile
import zlib

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uml_core.modalities import KINDS, BadSample


def saved(save, *args, **options) -> bytes:
    file = io.BytesIO()
    save(file, *args, **options)
    return file.getvalue()


def picture(mode: str, kind: str, **options) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    return saved(image.convert(mode).save, kind, **options)


def sound(**options) -> bytes:
    samples = np.random.default_rng(0).normal(0, 0.1, 4000)
    return saved(soundfile.write, samples, 8000, **options)


FLOATS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
SEEDS = {
    "image": {
        "png": [picture("RGB", "PNG"), picture("P", "PNG"), picture("I;16", "PNG")],
        "jpg": [picture("RGB", "JPEG"), picture("CMYK", "JPEG", progressive=True)],
        "webp": [picture("RGB", "WEBP"), picture("RGBA", "WEBP", lossless=True)],
    },
    "audio": {
        "wav": [sound(format="WAV"), sound(format="WAV", subtype="FLOAT")],
        "flac": [sound(format="FLAC")],
        "ogg": [sound(format="OGG")],
    },
    "text": {"txt": ["Grüße, größer als 3 ﷺ e\u0301".encode(), b"plain words"]},
    "sequence": {
        "npy": [saved(np.save, FLOATS), saved(np.save, np.asfortranarray(FLOATS[:, :2]))],
        "npz": [saved(np.savez, FLOATS), saved(np.savez_compressed, x=FLOATS, y=FLOATS)],
    },
    "vector": {"npy": [saved(np.save, FLOATS[0])], "npz": [saved(np.savez_compressed, FLOATS[0])]},
}
CASES = [(kind, suffix) for kind, by in SEEDS.items() for suffix in by]
EDITS = st.lists(
    st.tuples(
        st.integers(0, 2**16),
        st.sampled_from(
            [b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"(", b"9", b"]"]
        )
        | st.binary(min_size=1, max_size=4),
    ),
    max_size=6,
)


def decoded(kind: str, data: bytes, suffix: str, **options) -> torch.Tensor | None:
    """The tensor, or None where the sample is bad; anything else is what these tests are for."""
    modality = KINDS[kind](KINDS[kind].Options(**options))
    u = np.full(modality.num_random, 0.5) if modality.num_random else None
    try:
        item = modality.decode(data, suffix, u)
    except BadSample as error:
        assert str(error) and " object at 0x" not in str(error)
        with pytest.raises(BadSample) as again:  # the same words for the same bytes
            modality.decode(data, suffix, u)
        assert str(again.value) == str(error)
        return None
    assert item.numel() and bool(torch.isfinite(item.float()).all())
    return item


def assert_decodes_or_says_why(kind: str, data: bytes, suffix: str) -> None:
    """As `decoded` asserts; and alike among others, whom it does not disturb."""
    alone, good = decoded(kind, data, suffix), SEEDS[kind][suffix][0]
    modality = KINDS[kind](KINDS[kind].Options())
    u = np.full(modality.num_random, 0.5) if modality.num_random else None
    before, item, after = modality.decode_all([(d, suffix, u) for d in (good, data, good)])
    assert isinstance(item, BadSample) == (alone is None)
    if alone is not None:
        torch.testing.assert_close(item, alone, rtol=1e-4, atol=1e-4)
    for neighbour in (before, after):
        expected = modality.decode(good, suffix, u)
        torch.testing.assert_close(neighbour, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "suffix"), CASES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_member_breaks_decoding(kind, suffix, data):
    content = bytearray(data.draw(st.sampled_from(SEEDS[kind][suffix])))
    for place, value in data.draw(EDITS):
        # Headers decide most, so half of the edits go to the first bytes.
        at = (place // 2) % (len(content) if place % 2 else min(len(content), 128))
        content[at : at + len(value)] = value
    cut = data.draw(st.integers(0, 3 * len(content)))
    assert_decodes_or_says_why(kind, bytes(content[: max(1, cut)]), suffix)


@pytest.mark.parametrize(("kind", "suffix"), CASES)
@settings(max_examples=40, deadline=None)
@given(content=st.binary(min_size=1, max_size=300))
def test_no_bytes_break_decoding(kind, suffix, content):
    assert_decodes_or_says_why(kind, content, suffix)
    for head in (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\xff\xd8\xff",
        b"\x93NUMPY\1\0",
        b"PK\3\4",
        b"fLaC",
    ):
        assert_decodes_or_says_why(kind, head + content, suffix)


# ---------------------------------------------------------------------------------- bombs


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, pixels: bytes = b"", *before: bytes) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(pixels, 9)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + body


def npy_of(header: str, version: int = 1) -> bytes:
    text = header.encode().ljust(64) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


def zip_of(data: bytes, method: int, name: str = "x.npy", copies: int = 1) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for i in range(copies):
            archive.writestr(name if i == 0 else f"{i}.npy", data)
    return file.getvalue()


def webp_of(width: int, height: int) -> bytes:
    data = bytearray(picture("RGB", "WEBP", lossless=True))
    at = data.find(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little") >> 28 << 28
    data[at : at + 4] = (bits | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(data)


def jpeg_of_many_scans() -> bytes:
    data = picture("RGB", "JPEG", progressive=True)
    start, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[start:end] * 5000 + data[end:]


def flac_of(frames: int) -> bytes:
    data = bytearray(sound(format="FLAC"))
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | frames
    data[18:26] = packed.to_bytes(8, "big")
    return bytes(data)


def wav_of(frames: int, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(channels)
        clip.setsampwidth(2)
        clip.setframerate(8000)
        clip.writeframes(b"\0\0" * channels * 100)
    data = bytearray(file.getvalue())
    struct.pack_into("<I", data, 40, min(2**32 - 1, 2 * channels * frames))
    return bytes(data)


def npy_shape(shape: str) -> bytes:
    return npy_of(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape})}}")


def zeros(method: int) -> bytes:
    return zip_of(npy_shape("90000000,") + bytes(90_000_000), method)


BOMBS = {
    "png: 4 Gpixel": ("image", lambda: png_of(65535, 65535)),
    "png: few bytes": ("image", lambda: png_of(60_000, 60_000, bytes(60_000_000))),
    "png: text that unpacks": (
        "image",
        lambda: png_of(
            8, 8, bytes(72), png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20)))
        ),
    ),
    "jpg: 5000 scans": ("image", jpeg_of_many_scans),
    "webp: 268 Mpixel": ("image", lambda: webp_of(16383, 16383)),
    "npy: terabytes": ("sequence", lambda: npy_shape("1000000000000,")),
    "npy: a huge shape": ("sequence", lambda: npy_shape("1000000000, 1000000000")),
    "npy: a negative shape": ("sequence", lambda: npy_shape("-1, -1")),
    "npy: code": ("sequence", lambda: npy_of("__import__('os').system('true')")),
    "npy: deep brackets": ("sequence", lambda: npy_of("(" * 9000)),
    "npy: a long header": ("sequence", lambda: npy_of("(" * 2_000_000, 2)),
    "npz: zeros": ("sequence", lambda: zeros(zipfile.ZIP_DEFLATED)),
    "npz: bzip2": ("sequence", lambda: zeros(zipfile.ZIP_BZIP2)),
    "npz: lzma": ("sequence", lambda: zip_of(npy_shape("2,") + b"12", zipfile.ZIP_LZMA)),
    "npz: many arrays": ("sequence", lambda: zip_of(b"", zipfile.ZIP_STORED, copies=3000)),
    "npz: a path": ("vector", lambda: zip_of(b"", zipfile.ZIP_STORED, "../../x.npy")),
    "flac: days": ("audio", lambda: flac_of(2**35)),
    "flac: a minute": ("audio", lambda: flac_of(8000 * 59)),
    "wav: hours": ("audio", lambda: wav_of(2**31)),
    "wav: 30000 channels": ("audio", lambda: wav_of(100, channels=30_000)),
    "txt: marks": ("text", lambda: b"a" + "\u0315\u05b0".encode() * 2400),
    "txt: letters that grow": ("text", lambda: "\ufdfa".encode() * 10_000),
    "txt: many bytes": ("text", lambda: b"a " * 10_000_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_little_time_and_memory(name):
    kind, make = BOMBS[name]
    data, suffix = make(), name.partition(":")[0]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    item = decoded(kind, data, suffix)
    assert item is None or item.nelement() < 1_000_000
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def test_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    array = np.array([Trap()], dtype=object)
    for suffix, save in (("npy", np.save), ("npz", np.savez)):
        assert decoded("vector", saved(save, array), suffix) is None
    assert not list(tmp_path.iterdir())
    assert np.load(io.BytesIO(saved(np.save, array)), allow_pickle=True).shape == (1,)
    assert (tmp_path / "sprung").exists()  # the trap works where it is loaded
