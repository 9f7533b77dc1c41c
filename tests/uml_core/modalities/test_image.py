from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torchvision.transforms import v2

from uml_core.modalities import BadSample
from uml_core.modalities.image import Image, Options, _random_box


def encode(picture: Pillow.Image, fmt: str, **kwargs: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, fmt, **kwargs)
    return stream.getvalue()


def rgb(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check(setting: str = "supervised", width: int = 64, **options: object) -> list[str]:
    return Image.check(Options(**options), setting=setting, width=width, heads=4)


def test_a_png_of_the_right_size_keeps_every_pixel():
    pixels = rgb(16, 16)
    item = Image(Options(size=16)).decode(encode(Pillow.fromarray(pixels), "PNG"), "png")
    assert item.dtype == torch.uint8
    assert np.array_equal(item.permute(1, 2, 0).numpy(), pixels)


GREY = Pillow.fromarray(np.full((16, 16), 200, np.uint8))


@pytest.mark.parametrize(
    ("picture", "fmt", "kwargs"),
    [
        (GREY, "PNG", {}),
        (GREY.convert("RGBA"), "PNG", {}),
        (GREY.convert("LA"), "PNG", {}),
        (GREY.convert("P"), "PNG", {}),
        (Pillow.fromarray(np.full((16, 16), 200 * 256 + 7, np.uint16)), "PNG", {}),
        (GREY, "JPEG", {}),
        (GREY.convert("RGB"), "JPEG", {"progressive": True}),
        (GREY.convert("RGB").convert("CMYK"), "JPEG", {}),
        (GREY.convert("RGB"), "WEBP", {"lossless": True}),
        (GREY.convert("RGBA"), "WEBP", {"lossless": True}),
        (GREY.convert("RGB"), "WEBP", {"lossless": False}),
    ],
    ids=[
        "L",
        "RGBA",
        "LA",
        "P",
        "16-bit",
        "L-jpeg",
        "progressive",
        "CMYK",
        "webp",
        "webp-alpha",
        "webp-lossy",
    ],
)
def test_every_common_pixel_format_becomes_the_same_rgb(picture, fmt, kwargs):
    item = Image(Options(size=16)).decode(encode(picture, fmt, **kwargs), fmt.lower())
    assert item.shape == (3, 16, 16) and item.dtype == torch.uint8
    assert int((item.int() - 200).abs().max()) <= 3


def test_other_shapes_are_cut_to_the_central_square_and_resized():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    item = Image(Options(size=10)).decode(encode(Pillow.fromarray(pixels), "PNG"), "png")
    assert item.shape == (3, 10, 10) and int(item.min()) == 255


def test_a_very_long_picture_stays_small_in_memory():
    data = encode(Pillow.fromarray(rgb(1, 60_000)), "PNG")
    assert Image(Options(size=32)).decode(data, "png").shape == (3, 32, 32)


def test_a_phone_picture_is_turned_upright():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # white above
    exif = Pillow.Exif()
    exif[0x0112] = 3  # stored upside down
    item = Image(Options(size=16)).decode(encode(Pillow.fromarray(pixels), "PNG", exif=exif), "png")
    assert int(item[:, :8].max()) == 0 and int(item[:, 8:].min()) == 255


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
def test_the_pixel_cap_is_checked_on_the_header(fmt):
    data = encode(Pillow.fromarray(rgb(20, 30)), fmt)
    with pytest.raises(BadSample, match="30 x 20 pixels"):
        Image(Options(max_pixels=599)).decode(data, fmt.lower())
    Image(Options(max_pixels=600)).decode(data, fmt.lower())


def test_a_header_that_promises_gigapixels_is_refused_before_decoding():
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99))
    with pytest.raises(BadSample, match="60000 x 60000 pixels"):
        Image(Options()).decode(bomb, "png")


def test_other_formats_are_bad_samples():
    with pytest.raises(BadSample, match="PNG, JPEG or WebP"):
        Image(Options()).decode(encode(GREY, "GIF"), "png")


def test_flip_mirrors_and_shift_moves_by_the_uniforms():
    pixels = rgb(16, 16)
    data = encode(Pillow.fromarray(pixels), "PNG")
    plain = torch.from_numpy(pixels).permute(2, 0, 1)
    u = np.full(Image.num_random, 0.4)
    flip = Image(Options(size=16, augment="flip"))
    assert torch.equal(flip.decode(data, "png", u), plain.flip(2))
    assert torch.equal(flip.decode(data, "png", u + 0.2), plain)
    shift = Image(Options(size=16, augment="shift"))
    u[:2] = 0.999, 0.0  # two down, two left
    moved = shift.decode(data, "png", u)
    assert torch.equal(moved[:, 2:, :-2], plain[:, :-2, 2:])
    assert torch.equal(moved[:, 0, :-2], plain[:, 0, 2:])  # edges repeat


def test_random_crops_follow_torchvisions_distribution():
    height, width, scale = 50, 80, (0.2, 1.0)
    picture = torch.zeros(3, height, width)
    torch.manual_seed(0)
    params = [
        v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(8, scale=scale), [picture])
        for _ in range(4000)
    ]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params])
    rng = np.random.default_rng(0)
    ours = np.array(
        [_random_box(height, width, scale, rng.random(Image.num_random)) for _ in range(4000)]
    )
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    error = 5 * theirs.std(0) / np.sqrt(4000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 2 * error).all()
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1)])
def test_crops_of_extreme_shapes_stay_inside(height, width):
    top, left, h, w = _random_box(height, width, (0.08, 1.0), np.full(Image.num_random, 0.99))
    assert top >= 0 and left >= 0 and h >= 1 and w >= 1
    assert top + h <= height and left + w <= width


def test_targets_are_normalised_patches_in_raster_order():
    image = Image(Options(size=8, patch=4, stem="vit", mean=(0.5, 0.2, 0), std=(0.5, 1, 2)))
    x = torch.from_numpy(rgb(8, 8)).permute(2, 0, 1)[None]
    targets = image.targets(x)
    assert targets.shape == (1, 4, 48)
    scale = torch.tensor([0.5, 1, 2]).view(3, 1, 1)
    patch = (x[0, :, :4, 4:] / 255 - torch.tensor([0.5, 0.2, 0]).view(3, 1, 1)) / scale
    torch.testing.assert_close(targets[0, 1], patch.flatten())


def test_shapes_of_the_stems():
    x = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)

    def tokens(supervised: bool = True, **options: object) -> tuple[int, ...]:
        return tuple(Image(Options(**options)).stem(24, supervised=supervised)(x, None)[0].shape)

    assert tokens() == (2, 1, 24)
    assert tokens(pool=False) == tokens(pool=False, stride=2) == (2, 16, 24)
    assert tokens(stem="vit") == (2, 1, 24)
    assert tokens(stem="vit", pool=False) == (2, 64, 24)
    assert tokens(False, stem="vit") == (2, 64, 24)


def test_the_class_token_depends_on_every_patch():
    torch.manual_seed(0)
    stem = Image(Options(size=8, stem="vit", layers=1)).stem(16, supervised=True).eval()
    x = torch.from_numpy(rgb(8, 8)).permute(2, 0, 1)[None]
    reference = stem(x)[0]
    for row, column in [(0, 0), (0, 4), (4, 0), (4, 4)]:
        changed = x.clone()
        changed[:, :, row : row + 4, column : column + 4] = 0
        assert not torch.allclose(stem(changed)[0], reference)


def test_problems_are_sentences_that_say_what_to_do():
    assert "stem: patches" in check("self_supervised", stem="conv")[0]
    assert "class_token" in check("self_supervised", stem="patches", class_token=True)[0]
    assert "class_token" in check("supervised", stem="vit", class_token=True)[0]
    assert "divide size" in check("supervised", stem="patches", size=15)[0]
    assert "does not divide size 30" in check("self_supervised", size=30)[0]
    assert check(size=30) == []
    assert "does not divide size 30" in check(stem="vit", size=30)[0]
    assert "heads: 3" in check(stem="vit", heads=3)[0]
    assert "layers" in check(stem="vit", layers=0)[0]
    assert check(stem="vit", layers=0, pool=False) == []
    assert check("self_supervised", stem="vit", layers=0, heads=3) == []
    wrong = check(size=0, crop_scale=(0.5, 0.1), std=(1, 0, 1), channels=(0, 3))
    assert [w.split(":")[0] for w in wrong] == ["size", "channels", "std", "crop_scale"]
