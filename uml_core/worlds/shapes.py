"""The shapes world: one reality seen as picture, caption and sound.

A class is shape x colour x pattern, and every modality carries all three:

                shape           colour       pattern
    image       outline         hue          filling
    text        noun            adjective    adjective or a "with ..." phrase
    audio       timbre          pitch        rhythm

Samples are drawn in chunks whose random numbers depend on (seed, modality, split, chunk) only.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uml_core.worlds.base import SPLITS, Drawn, World, key
from uml_core.worlds.captions import caption
from uml_core.worlds.draws import Ints, stream
from uml_core.worlds.pictures import Look, draw_pictures
from uml_core.worlds.tones import Sound, draw_sounds

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "yellow", "green", "blue")
PATTERNS = ("solid", "striped", "dotted")

BLOCKS = 5  # of every class once, in a chunk
PER_CLASS = {"train": 100, "test": 44}
SUFFIXES = {"image": "png", "text": "txt", "audio": "wav"}
PAIRS = 90  # path of the pairs' random streams, apart from those of the splits


class ShapesWorld(World):
    """48 classes such as "red striped circle" in three modalities, any number of samples.

    look, sound  how pictures and clips vary; the defaults are the world's frozen difficulty
    """

    name = "shapes"
    class_names = tuple(f"{c} {p} {s}" for s in SHAPES for c in COLOURS for p in PATTERNS)
    kinds = {"image": "image", "text": "text", "audio": "audio"}  # noqa: RUF012

    def __init__(self, look: Look | None = None, sound: Sound | None = None) -> None:
        self.look = look or Look()
        self.sound = sound or Sound()

    def default_size(self, modality: str, split: str) -> int:
        return PER_CLASS[split] * len(self.class_names)

    def _draw(self, modality: str, split: str, rows: range, seed: int) -> Iterator[Drawn]:
        size = BLOCKS * len(self.class_names)
        path = (list(self.kinds).index(modality), SPLITS.index(split))
        suffix = SUFFIXES[modality]
        for chunk in range(rows.start // size, -(-rows.stop // size)):
            rng = stream(seed, *path, chunk)
            labels = _labels(len(self.class_names), rng)
            # A chunk is drawn whole, or its samples would depend on how many are wanted.
            encoded = self._encode(modality, labels, rng)
            first = chunk * size
            for i in range(max(rows.start - first, 0), min(rows.stop - first, size)):
                name = key(modality, split, first + i)
                yield Drawn(name, suffix, encoded[i], int(labels[i]))

    def pairs(
        self, modalities: tuple[str, str], n: int, seed: int = 0
    ) -> Iterator[tuple[Drawn, Drawn]]:
        """Both views share the thing's class; what else a sample shows is drawn for each alone."""
        if not set(modalities) <= set(self.kinds):
            return super().pairs(modalities, n, seed)
        return self._pairs(modalities, n, seed)

    def _pairs(
        self, modalities: tuple[str, str], n: int, seed: int
    ) -> Iterator[tuple[Drawn, Drawn]]:
        size = BLOCKS * len(self.class_names)
        path = (PAIRS, *(list(self.kinds).index(modality) for modality in modalities))
        for first in range(0, n, size):
            rng = stream(seed, *path, first)
            labels = _labels(len(self.class_names), rng)
            views = [self._encode(modality, labels, rng) for modality in modalities]
            for i in range(min(size, n - first)):
                name = key("pair", "test", first + i)
                one, other = (
                    Drawn(name, SUFFIXES[modality], view[i], int(labels[i]))
                    for modality, view in zip(modalities, views, strict=True)
                )
                yield one, other

    def _encode(self, modality: str, labels: Ints, rng: np.random.Generator) -> list[bytes]:
        shape, colour, pattern = attributes(labels)
        if modality == "image":
            pictures = draw_pictures(shape, colour, pattern, rng, self.look)
            return [_png(picture) for picture in pictures]
        if modality == "audio":
            sounds = draw_sounds(shape, colour, pattern, rng, self.sound)
            return [_wav(sound, self.sound.rate) for sound in sounds]
        uniforms = rng.random((len(labels), 8))
        rows: Sequence[tuple[int, int, int]] = list(zip(shape, colour, pattern, strict=True))
        return [caption(*row, u).encode() for row, u in zip(rows, uniforms, strict=True)]


def attributes(labels: Ints) -> tuple[Ints, Ints, Ints]:
    """Labels (N,) -> indices (N,) into SHAPES, COLOURS and PATTERNS."""
    shape, rest = np.divmod(labels, len(COLOURS) * len(PATTERNS))
    colour, pattern = np.divmod(rest, len(PATTERNS))
    return shape, colour, pattern


def _labels(classes: int, rng: np.random.Generator) -> Ints:
    """BLOCKS random orders of all classes, one after the other: any draw is nearly balanced."""
    return rng.permuted(np.tile(np.arange(classes), (BLOCKS, 1)), axis=1).reshape(-1)


def _png(picture: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _wav(samples: NDArray[np.int16], rate: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(rate)
        clip.writeframes(samples.astype("<i2").tobytes())
    return out.getvalue()
