"""Audio: WAV, FLAC and OGG, log-mel spectrograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uml_core.media import sound
from uml_core.media.sound import RATES
from uml_core.modalities.base import BadSample, Modality
from uml_core.modalities.common import (
    grouped,
    least_problems,
    most_problems,
    option,
    pad_stack,
)
from uml_core.modalities.sequence import ConvStem, FrameStem, conv_positions

FLOOR = 1e-6  # of mel power, before the logarithm
# Mean and deviation of log-mel values of speech and tones at normal loudness, roughly.
LOG_MEAN, LOG_STD = -5.0, 4.5


@dataclass(frozen=True)
class Options:
    """Recipe fields of kind `audio`."""

    sample_rate: int = option(16_000, "Hz; other rates are resampled")
    seconds: float = option(1.0, "longest part used of a clip")
    cut: Literal["centre", "start"] = option("centre", "which part of a longer clip is used")
    max_seconds: float = option(60.0, "longer clips are bad samples, seen before decoding")
    mels: int = option(32, "mel bands")
    window: float = option(0.032, "seconds per spectrum")
    hop: float = option(0.016, "seconds between spectra")
    normalise: Literal["constants", "clip"] = option(
        "clip", "log-mel values: by fixed constants, or per clip to mean 0 and deviation 1"
    )
    stem: Literal["auto", "conv", "patches"] = option(
        "auto",
        "conv: strided convolutions over time, supervised only; patches: a token per group of "
        "spectra; auto: conv in the supervised setting, a token per spectrum in the other",
    )
    pool: bool = option(True, "conv: average the tokens of a clip to one")
    patch: int = option(4, "patches: spectra per token")
    augment: Literal["none", "shift"] = option("none", "training only: shift in time")
    max_shift: float = option(0.1, "shift: largest shift in seconds")


class Audio(Modality):
    """Clip -> log-mel spectrogram. An item is (mels, frames) float32.

    x is (B, T, patch * mels) for patches, T groups of spectra; else (B, T, mels), T spectra.
    """

    kind = "audio"
    suffixes = ("wav", "flac", "ogg")
    Options = Options
    num_random = 1
    shorten = "seconds"
    partial = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        rate = options.sample_rate
        window = max(1, round(options.window * rate))
        # Called, never changed: threads may share them. The FFT is long enough for no band to be
        # empty, and clips shorter than a window are padded with silence.
        self._hop = max(1, round(options.hop * rate))
        size = 2 ** math.ceil(math.log2(max(window, 16 * options.mels)))
        self._fourier = sound.Spectrogram(
            size, win_length=window, hop_length=self._hop, power=None, pad_mode="constant"
        )
        self._mel = sound.MelScale(options.mels, rate, n_stft=size // 2 + 1)

    @classmethod
    def check(cls, options: Any, *, setting: str, width: int, heads: int) -> list[str]:
        problems = least_problems(
            options,
            sample_rate=RATES[0],
            seconds=0.01,
            max_seconds=0.01,
            mels=1,
            window=0.001,
            hop=0.001,
            patch=1,
            max_shift=0,
        )
        problems += most_problems(
            options,
            sample_rate=RATES[1],
            seconds=3600,
            max_seconds=10**6,
            mels=1024,
            window=10,
            hop=10,
            patch=10**6,
            max_shift=3600,
        )
        if setting == "self_supervised" and options.stem == "conv":
            problems.append(
                "stem: conv mixes neighbouring spectra, which would show the model what it has to "
                "predict: use stem: patches in the self-supervised setting."
            )
        return problems

    def decode(self, data: bytes, suffix: str, u: np.ndarray | None = None) -> Tensor:
        [item] = self.decode_all([(data, suffix, u)])
        if isinstance(item, BadSample):
            raise item
        return item

    def decode_all(
        self, samples: Sequence[tuple[bytes, str, np.ndarray | None]]
    ) -> list[Tensor | BadSample]:
        # Spectra of many clips in one call: they take a dozen small steps in Python, and
        # threads that decode side by side would wait for each other at every one of them.
        items: list[Any] = []
        waves: dict[int, list[tuple[int, Tensor]]] = {}  # samples -> (place in `items`, wave)
        for place, (data, _, u) in enumerate(samples):
            try:
                wave = self.wave(data, self._shift(u))
            except BadSample as error:
                items.append(error)
                continue
            items.append(None)
            waves.setdefault(len(wave), []).append((place, wave))
        for alike in waves.values():
            spectra = self._spectra(torch.stack([wave for _, wave in alike]))
            for (place, _), item in zip(alike, spectra, strict=True):
                items[place] = item
        return items

    def _shift(self, u: np.ndarray | None) -> float:
        """Seconds by which a clip is moved."""
        if u is None or self.options.augment != "shift":
            return 0.0
        return (2 * float(u[0]) - 1) * self.options.max_shift

    def _spectra(self, waves: Tensor) -> list[Tensor | BadSample]:
        """(N, samples) -> N log-mel spectrograms (mels, frames)."""
        spectrum = self._fourier(waves)
        # |z|^2 without the square root in |z|, which costs more than the Fourier transform.
        power = self._mel(spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag))
        values = power.clamp(min=FLOOR).log()
        if self.options.normalise == "constants":
            values = (values - LOG_MEAN) / LOG_STD
        else:
            deviation, mean = torch.std_mean(values, (1, 2), correction=0, keepdim=True)
            values = (values - mean) / deviation.clamp(min=1e-3)
        fine = torch.isfinite(power).flatten(1).all(1).tolist()
        # Copies: a view would keep all clips of the call alive for one.
        return [
            v.clone()
            if ok
            else BadSample("the clip holds NaN, or is louder than 32-bit floats can tell")
            for v, ok in zip(values, fine, strict=True)
        ]

    def wave(self, data: bytes, shift: float = 0.0) -> Tensor:
        """(samples,) mono at the wanted rate; only the part that is used is decoded."""
        rate = self.options.sample_rate
        samples, stored = sound.opened(
            data, self.options.max_seconds, lambda frames, hertz: self._span(frames, hertz, shift)
        )
        return sound.resampled(samples, stored, rate)

    def _span(self, frames: int, rate: int, shift: float) -> tuple[int, int]:
        """(first, count) of the samples used, at the file's rate; may reach beyond its ends."""
        count = max(1, min(frames, round(self.options.seconds * rate)))
        first = (frames - count) // 2 if self.options.cut == "centre" else 0
        move = max(-count + 1, min(frames - first - 1, round(shift * rate)))
        return first + move, count

    def collate(self, items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        return pad_stack([self._positions(item.T) for item in items])

    def _positions(self, spectra: Tensor) -> Tensor:
        """(frames, mels) -> what one position holds: a spectrum, or a group of `patch` spectra."""
        if self.options.stem != "patches":
            return spectra
        return grouped(spectra, self.options.patch)

    def stem(self, width: int, *, supervised: bool) -> nn.Module:
        if supervised and self.options.stem != "patches":
            return ConvStem(self._dim(), width, pool=self.options.pool)
        return FrameStem(self._dim(), width)

    def most_positions(self, *, supervised: bool) -> int:
        # Resampling may round a clip up by a sample or two: one spectrum more at most.
        samples = round(self.options.seconds * self.options.sample_rate)
        spectra = 2 + samples // self._hop
        if self.options.stem == "patches":
            return max(1, spectra // self.options.patch)
        return conv_positions(spectra, pool=self.options.pool) if supervised else spectra

    def decoder(self, width: int) -> nn.Module:
        return nn.Linear(width, self._dim())

    def targets(self, x: Tensor) -> Tensor:
        return x

    def coarse(self, item: Tensor) -> Tensor:
        """Mean spectra of four equal parts of the clip: (4 * mels,)."""
        return F.adaptive_avg_pool1d(item, 4).flatten()

    def _dim(self) -> int:
        return self.options.mels * (self.options.patch if self.options.stem == "patches" else 1)
