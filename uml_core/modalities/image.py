"""Images: PNG, JPEG and WebP; a small convolutional and a ViT stem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uml_core.media import picture
from uml_core.modalities.base import Modality
from uml_core.modalities.common import least_problems, most_problems, option

MAX_CHANNELS = 65_536
CROP_TRIES = 10  # of torchvision's RandomResizedCrop
CROP_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Options:
    """Recipe fields of kind `image`."""

    size: int = option(32, "pixels per side; other sizes are cropped to a square and resized")
    stem: Literal["auto", "conv", "vit", "patches", "encoder"] = option(
        "auto",
        "conv: three small strided convolutions, supervised only; vit: vision transformer; "
        "patches: linear patch embeddings with learned positions, all of them for the trunk; "
        "encoder: a pretrained network that trains along, supervised only; auto: conv in the "
        "supervised setting, patches in the self-supervised one, where vit is the same",
    )
    encoder: str | None = option(
        None,
        "encoder: folder, or transformers:ID; size, mean and std are then the encoder's own",
    )
    tune: Literal["full", "lora", "frozen"] = option("full", "encoder: which weights train")
    lora_rank: int = option(8, "encoder, lora: rank of the updates of every linear layer")
    recompute: bool = option(False, "encoder: gradient checkpointing: less memory, more time")
    pool: bool = option(
        True,
        "supervised: one token per image (conv: mean of the grid; vit: class token); false: all",
    )
    stride: Literal[2, 4] = option(
        4,
        "conv: of the first layer; the stem shrinks the image 8 times in all. 4 is twice as fast, "
        "2 sees finer patterns",
    )
    channels: tuple[int, int] = option((32, 64), "conv: channels of the first two layers")
    patch: int = option(4, "vit, patches: pixels per side of a patch; must divide size")
    class_token: bool = option(
        False,
        "patches, supervised: a learned token in front, whose output stands for the image; "
        "false: the mean over the patches",
    )
    layers: int = option(
        2,
        "vit, supervised: transformer blocks of the stem's own. The self-supervised stem has none: "
        "they would show the model the patch it has to predict",
    )
    heads: int = option(4, "vit, supervised: attention heads of these blocks")
    augment: Literal["none", "flip", "shift", "crop"] = option(
        "none",
        "training only: flip left-right; shift by up to an eighth; crop = torchvision's random "
        "resized crop and flip",
    )
    crop_scale: tuple[float, float] = option((0.08, 1.0), "crop: least and largest share of area")
    max_pixels: int = option(50_000_000, "larger images are bad samples, seen before decoding")
    mean: tuple[float, float, float] = option((0.5, 0.5, 0.5), "subtracted per channel (RGB, 0-1)")
    std: tuple[float, float, float] = option((0.5, 0.5, 0.5), "divisor per channel")


class _Normalise(nn.Module):
    """uint8 (B, 3, S, S) -> floats; constants, not statistics: nothing here changes in training."""

    scale: Tensor
    shift: Tensor

    def __init__(self, options: Options) -> None:
        super().__init__()
        mean = torch.tensor(options.mean).view(3, 1, 1)
        std = torch.tensor(options.std).view(3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class _Conv(nn.Module):
    """Three strided convolutions. GroupNorm normalises each image on its own, in any batch."""

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()
        first, second = options.channels
        stride = options.stride
        self.pool = options.pool
        self.layers = nn.Sequential(
            _Normalise(options),
            nn.Conv2d(3, first, stride + 1, stride=stride, padding=stride // 2),
            nn.GroupNorm(math.gcd(8, first), first),
            nn.GELU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GroupNorm(math.gcd(8, second), second),
            nn.GELU(),
            nn.Conv2d(second, width, 3, stride=4 // stride, padding=1),
            nn.GroupNorm(math.gcd(8, width), width),
            nn.GELU(),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        tokens = self.layers(x).flatten(2).transpose(1, 2)
        return (tokens.mean(1, keepdim=True) if self.pool else tokens), None


class _Patches(nn.Module):
    """Linear patch embedding with learned positions: token t stands for patch t (raster order).

    With a class token, that is token 0 and the patches follow (paper 3.8).
    """

    def __init__(self, options: Options, width: int, *, class_token: bool = False) -> None:
        super().__init__()
        self.normalise = _Normalise(options)
        self.embed = nn.Conv2d(3, width, options.patch, stride=options.patch)
        count = (options.size // options.patch) ** 2
        self.positions = nn.Parameter(0.02 * torch.randn(1, count + class_token, width))
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width)) if class_token else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        tokens = self.embed(self.normalise(x)).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1)
        return tokens + self.positions, None


class _ViT(nn.Module):
    """Vision transformer: patches, class token if pooled, torchvision's pre-norm blocks."""

    def __init__(self, options: Options, width: int) -> None:
        from torchvision.models.vision_transformer import EncoderBlock

        super().__init__()
        self.patches = _Patches(options, width)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width)) if options.pool else None
        self.blocks = nn.Sequential(
            *(
                EncoderBlock(options.heads, width, 4 * width, 0.0, 0.0)
                for _ in range(options.layers)
            )
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        tokens, _ = self.patches(x)
        if self.class_token is None:
            return self.norm(self.blocks(tokens)), None
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1)
        return self.norm(self.blocks(tokens)[:, :1]), None


class Image(Modality):
    """Image bytes -> RGB. An item is (3, size, size) uint8, x is (B, 3, size, size) uint8.

    The stem makes floats of them, so that caches, queues and copies to a GPU stay small.
    """

    kind = "image"
    suffixes = ("png", "jpg", "jpeg", "webp")
    Options = Options
    num_random = 2 * CROP_TRIES + 3
    shorten = "size, or raise patch"

    @classmethod
    def check(cls, options: Any, *, setting: str, width: int, heads: int) -> list[str]:
        problems = least_problems(
            options, size=1, patch=1, layers=0, heads=1, max_pixels=1, lora_rank=1
        )
        problems += most_problems(options, size=4096, layers=1000, heads=1000, max_pixels=10**9)
        if not 1 <= min(options.channels) <= max(options.channels) <= MAX_CHANNELS:
            problems.append(f"channels: must both be 1 to {MAX_CHANNELS}.")
        if min(options.std) <= 0:
            problems.append("std: must be above 0 for each channel.")
        if not 0 < options.crop_scale[0] <= options.crop_scale[1] <= 1:
            problems.append("crop_scale: must be two numbers, 0 < least <= largest <= 1.")
        if options.stem == "conv" and setting == "self_supervised":
            problems.append(
                "stem: conv has no next patch to predict: use stem: patches in the "
                "self-supervised setting."
            )
        if (options.stem == "encoder") != (options.encoder is not None):
            problems.append("encoder: give it with stem: encoder, and only there.")
        if options.stem == "encoder" and setting == "self_supervised":
            problems.append(
                "stem: encoder sees the whole picture, which would show the model the patch it has "
                "to predict: use stem: patches in the self-supervised setting."
            )
        if options.class_token and (options.stem != "patches" or setting == "self_supervised"):
            problems.append(
                "class_token: belongs to stem: patches in the supervised setting; in the other, "
                "a token in front would see no patch."
            )
        patched = options.stem in ("vit", "patches") or setting == "self_supervised"
        if patched and not problems and options.size % options.patch:
            problems.append(f"patch: {options.patch} does not divide size {options.size}.")
        if options.stem == "vit" and setting == "supervised" and not problems:
            problems += _vit_problems(options, width)
        return problems

    def decode(self, data: bytes, suffix: str, u: np.ndarray | None = None) -> Tensor:
        size, augment = self.options.size, self.options.augment
        if u is not None and augment == "crop":
            found = picture.opened(data, self.options.max_pixels)
            box = _random_box(found.height, found.width, self.options.crop_scale, u)
        else:
            # The same picture in training and at test: only what is cropped needs all its pixels.
            found = picture.opened(data, self.options.max_pixels, size)
            box = _centre_square(found.height, found.width)
        pixels = found.pixels(box)
        if box[2:] == (size, size):
            item = pixels.contiguous()
        else:
            from torchvision.transforms.v2 import functional as V  # two seconds to import

            item = V.resize(pixels, [size, size], antialias=True)
        if u is None or augment == "none":
            return item
        if augment == "shift":
            return _shifted(item, u)
        return item.flip(2) if u[0] < 0.5 else item

    def pixels(self, data: bytes) -> Tensor:
        """(3, H, W) uint8, upright and of full size; raises BadSample. Not to be written to."""
        return picture.opened(data, self.options.max_pixels).pixels()

    def collate(self, items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        return torch.stack(list(items)), None

    def stem(self, width: int, *, supervised: bool) -> nn.Module:
        if not supervised or self.options.stem == "patches":
            return _Patches(self.options, width, class_token=self.class_token)
        if self.options.stem == "encoder":
            from uml_core.encoders.trainable import EncoderStem

            return EncoderStem(self.options, _Normalise(self.options), width)
        return (_ViT if self.options.stem == "vit" else _Conv)(self.options, width)

    def with_input(self, item: Tensor) -> Image:
        """With an encoder, its own size and pixel statistics; else as it is. item: (3, S, S)."""
        if self.options.stem != "encoder":
            return self
        from uml_core.encoders.trainable import own_preprocessing

        return Image(own_preprocessing(self.options))

    @property
    def class_token(self) -> bool:
        return self.options.class_token

    def most_positions(self, *, supervised: bool) -> int:
        options = self.options
        if supervised and options.stem != "patches":
            if options.pool or options.stem == "encoder":
                return 1
            if options.stem != "vit":
                return math.ceil(options.size / 8) ** 2
        return (options.size // options.patch) ** 2 + options.class_token

    def decoder(self, width: int) -> nn.Module:
        return nn.Linear(width, 3 * self.options.patch**2)

    def targets(self, x: Tensor) -> Tensor:
        """Normalised pixels of each patch, (B, T, 3 * patch * patch)."""
        # By numbers, not by tensors, which would have to be sent to a GPU for every batch.
        ways = zip(x.unbind(1), self.options.mean, self.options.std, strict=True)
        normal = torch.stack([c * (1 / (255 * std)) - mean / std for c, mean, std in ways], 1)
        patch = self.options.patch
        return F.unfold(normal, patch, stride=patch).transpose(1, 2)

    def coarse(self, item: Tensor) -> Tensor:
        """Mean colours of 8 x 8 cells: (192,)."""
        return F.adaptive_avg_pool2d(item.float(), 8).flatten()


def _vit_problems(options: Options, width: int) -> list[str]:
    problems = []
    if options.layers and width % options.heads:
        problems.append(f"heads: {options.heads} does not divide model.width {width}.")
    if options.pool and not options.layers:
        problems.append(
            "layers: 0 leaves the class token blind to the image: set pool: false, or "
            "layers: 1 or more."
        )
    return problems


def _centre_square(height: int, width: int) -> tuple[int, int, int, int]:
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _random_box(
    height: int, width: int, scale: tuple[float, float], u: np.ndarray
) -> tuple[int, int, int, int]:
    """(top, left, height, width) by the rule of torchvision's RandomResizedCrop, drawn from u."""
    place, tries = u[1:3], u[3 : 3 + 2 * CROP_TRIES]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * tries[:CROP_TRIES])
    low, high = np.log(CROP_RATIO)
    ratio = np.exp(low + (high - low) * tries[CROP_TRIES:])
    w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = np.flatnonzero((w > 0) & (h > 0) & (w <= width) & (h <= height))
    if not len(fits):
        # Very long images: the largest central box of a legal aspect ratio.
        h1, w1 = min(height, int(width / CROP_RATIO[0])), min(width, int(height * CROP_RATIO[1]))
        return (height - h1) // 2, (width - w1) // 2, h1, w1
    h1, w1 = int(h[fits[0]]), int(w[fits[0]])
    return int(place[0] * (height - h1 + 1)), int(place[1] * (width - w1 + 1)), h1, w1


def _shifted(image: Tensor, u: np.ndarray) -> Tensor:
    """Shifted by up to an eighth of the side in both directions, edges repeated."""
    size = image.shape[1]
    reach = size // 8
    down, right = (int(v * (2 * reach + 1)) - reach for v in u[:2])
    rows = (torch.arange(size) - down).clamp(0, size - 1)
    columns = (torch.arange(size) - right).clamp(0, size - 1)
    return image[:, rows][:, :, columns]
