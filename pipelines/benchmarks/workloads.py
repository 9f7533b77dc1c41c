"""What the data suite streams: generated shards whose samples cost what real ones cost."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image as Pillow

from pipelines.streams.plan import Plan
from pipelines.streams.shards import Index, Sample, load_index, write_shards
from pipelines.streams.source import Segment
from uml_core.modalities import KINDS, Modality

CLASSES = 10
BATCH = 64


@dataclass(frozen=True)
class Workload:
    """One kind of samples and how many of its batches a measurement takes.

    options  of the modality kind
    samples  in `shards` tars
    batches  of BATCH samples per measurement: a few seconds of work for two cores
    """

    name: str
    kind: str
    suffix: str
    make: Callable[[np.random.Generator], bytes]
    samples: int
    batches: int
    shards: int = 4
    options: dict[str, Any] = field(default_factory=dict)

    def modality(self) -> Modality:
        """The kind with this workload's options."""
        kind = KINDS[self.kind]
        return kind(kind.Options(**self.options))

    def index(self, root: Path) -> Index:
        """The shards below `root`, generated on first use."""
        folder = root / self.name
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_shards(
                self._samples(),
                str(folder),
                self.name,
                self.kind,
                per_shard=-(-self.samples // self.shards),
            )
            (folder / "done").touch()
        return load_index(f"{self.name}-*.tar", str(folder), self.kind)

    def _samples(self) -> Iterator[Sample]:
        rng = np.random.default_rng(0)
        for i in range(self.samples):
            yield Sample(f"{i:06d}", self.suffix, self.make(rng), i % CLASSES)


def segment(index: Index, count: int, name: str, *, batch: int = BATCH, seed: int = 0) -> Segment:
    """`count` shuffled batches of an index, from the start of its plan."""
    return Segment(index, Plan(len(index), batch, seed, name), 0, count)


def jpeg(side: int) -> Callable[[np.random.Generator], bytes]:
    """Photo-like pictures: smooth shapes and some grain, about 0.3 bytes per pixel."""

    def make(rng: np.random.Generator) -> bytes:
        coarse = torch.from_numpy(rng.random((1, 3, 16, 16), dtype=np.float32))
        fine = torch.from_numpy(rng.random((1, 3, side // 4, side // 4), dtype=np.float32))
        sizes = {"size": (side, side), "mode": "bilinear", "align_corners": False}
        smooth = torch.nn.functional.interpolate(coarse, **sizes)  # type: ignore[arg-type]
        grain = torch.nn.functional.interpolate(fine, **sizes)  # type: ignore[arg-type]
        pixels = (255 * (0.75 * smooth + 0.25 * grain))[0].permute(1, 2, 0)
        out = io.BytesIO()
        Pillow.fromarray(pixels.to(torch.uint8).numpy()).save(out, "JPEG", quality=85)
        return out.getvalue()

    return make


def words(rng: np.random.Generator) -> bytes:
    """A description of 20 to 60 words."""
    lengths = rng.integers(2, 10, size=int(rng.integers(20, 61)))
    letters = rng.integers(97, 123, size=int(lengths.sum()), dtype=np.uint8).tobytes()
    ends = np.cumsum(lengths)
    return b" ".join(letters[e - n : e] for e, n in zip(ends, lengths, strict=True))


def wav(rng: np.random.Generator) -> bytes:
    """One second of 16 kHz mono: a tone in noise."""
    t = np.arange(16_000) / 16_000
    wave = 0.5 * np.sin(2 * np.pi * rng.uniform(100, 4000) * t) + 0.1 * rng.normal(size=t.size)
    out = io.BytesIO()
    soundfile.write(out, wave.astype(np.float32), 16_000, format="WAV", subtype="PCM_16")
    return out.getvalue()


def blob(rng: np.random.Generator) -> bytes:
    """A large feature vector: 128 KiB that cost hardly anything to decode."""
    out = io.BytesIO()
    np.save(out, rng.integers(0, 100, size=(1, 64 << 10)).astype(np.float16))
    return out.getvalue()


CROP = {"size": 224, "augment": "crop"}
IMAGES = Workload("image256", "image", "jpg", jpeg(256), 2048, 32, options=CROP)
PHOTOS = Workload("image500", "image", "jpg", jpeg(500), 768, 12, options=CROP)
TEXTS = Workload("text", "text", "txt", words, 20_000, 250)
SOUNDS = Workload("audio", "audio", "wav", wav, 4096, 48)
BLOBS = Workload("vector", "vector", "npy", blob, 4096, 64, shards=8)
