"""What every frozen encoder provides: bytes -> item -> features, and what it says of itself.

Shape legend: B batch, T positions (patches, tokens, frames), D features.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from uml_core.modalities.audio import Audio
from uml_core.modalities.audio import Options as AudioOptions
from uml_core.modalities.common import masked_mean
from uml_core.modalities.image import Image
from uml_core.modalities.image import Options as ImageOptions
from uml_core.modalities.text import Options as TextOptions
from uml_core.modalities.text import Text

Output = Literal["pooled", "tokens"]
Pooling = Literal["auto", "cls", "mean", "pooler"]
SECONDS = 60.0  # longest clip


@dataclass(frozen=True)
class Wanted:
    """What features are asked for.

    output   pooled: one vector per sample; tokens: a series of them
    pooling  auto: as the model was made for (each encoder says how)
    bf16     matrix products in bfloat16
    """

    output: Output = "pooled"
    pooling: Pooling = "auto"
    bf16: bool = False


class Encoder(ABC):
    """A frozen network with its own preprocessing, in evaluation mode.

    network        on its device
    preprocessing  plain values, from the encoder's own configuration
    """

    kind: ClassVar[str]  # of what it takes: image, text, audio
    network: nn.Module
    preprocessing: dict[str, Any]

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.pooling: str = wanted.pooling

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.network.parameters()).device

    @property
    def _any(self) -> Any:
        """The network with the methods that only its library has."""
        return self.network

    @abstractmethod
    def decode(self, data: bytes, suffix: str = "") -> Any:
        """Bytes of a file -> a preprocessed item. Raises BadSample; thread-safe."""

    def length(self, item: Any) -> int:
        """Positions of an item, to which its batch mates are padded."""
        return 1

    def alike(self, item: Any) -> Hashable:
        """Only items for which this is the same may share a batch."""
        return None

    @abstractmethod
    def _features(self, items: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """B items -> (B, D), or (B, T, D) with its mask (B, T) or None."""

    @torch.no_grad()
    def encode(self, items: Sequence[Any]) -> list[Tensor]:
        """Features of each item on the CPU, float32: (D,), or its valid positions (T, D).

        Independent of the other items.
        """
        places: dict[Hashable, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(self.alike(item), []).append(place)
        found: dict[int, Tensor] = {}
        for members in places.values():
            rows = self._encode([items[place] for place in members])
            found.update(zip(members, rows, strict=True))
        return [found[place] for place in range(len(items))]

    def _encode(self, items: Sequence[Any]) -> list[Tensor]:
        """`encode` of items that may share a batch."""
        precise: Any = contextlib.nullcontext()
        if self.wanted.bf16:
            precise = torch.autocast(self.device.type, dtype=torch.bfloat16)
        with precise:
            x, mask = self._features(items)
        x = x.float().cpu()
        if mask is None or x.dim() == 2:
            return list(x)
        return [row[valid] for row, valid in zip(x, mask.bool().cpu(), strict=True)]

    def _reduced(self, hidden: Tensor, mask: Tensor | None, pooler: Tensor | None = None) -> Tensor:
        """(B, T, D) as asked for: all positions, or one vector by `pooling`."""
        if self.wanted.output == "tokens":
            return hidden
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "pooler":
            assert pooler is not None
            return pooler.flatten(1)
        return masked_mean(hidden, mask)


class ImageEncoder(Encoder):
    """Takes PNG, JPEG and WebP under the caps of kind `image`."""

    kind = "image"
    _image = Image(ImageOptions())

    def decode(self, data: bytes, suffix: str = "") -> Tensor:
        """Bytes of a picture -> (3, S, S), or what else the network takes. Raises BadSample."""
        return self.prepare(self._image.pixels(data))

    @abstractmethod
    def prepare(self, pixels: Tensor) -> Tensor:
        """(3, H, W) uint8 -> what the network takes of one picture."""

    def alike(self, item: Tensor) -> Hashable:
        """Pictures of one shape."""
        return tuple(item.shape)


class TextEncoder(Encoder):
    """Takes UTF-8 under the caps of kind `text`."""

    kind = "text"
    _text = Text(TextOptions())

    def decode(self, data: bytes | str, suffix: str = "") -> list[int]:
        return self.tokens(self._text.text(data.encode() if isinstance(data, str) else data))

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """Token ids with the special ones. Raises BadSample where there is none."""

    def length(self, item: list[int]) -> int:
        return len(item)


class AudioEncoder(Encoder):
    """Takes WAV, FLAC and OGG under the caps of kind `audio`, at the encoder's own rate.

    Only clips of equal length share a batch: most speech models have no mask that holds.
    """

    kind = "audio"

    def __init__(self, wanted: Wanted, sample_rate: int) -> None:
        super().__init__(wanted)
        self.sample_rate = sample_rate
        options = AudioOptions(
            sample_rate=sample_rate, seconds=SECONDS, max_seconds=SECONDS, cut="start"
        )
        self._audio = Audio(options)

    def decode(self, data: bytes, suffix: str = "") -> Tensor:
        """Bytes of a clip -> (samples,) at the encoder's rate. Raises BadSample."""
        return self._audio.wave(data)

    def alike(self, item: Tensor) -> Hashable:
        """Clips of one length; item: (samples,)."""
        return len(item)
