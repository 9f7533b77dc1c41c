"""Audio: WAV, FLAC and OGG, log-mel spectrograms by torchaudio."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import struct
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.transforms import MelScale, Resample, Spectrogram

from uml_core.modalities.base import BadSample, Modality
from uml_core.modalities.common import (
    cause,
    grouped,
    least_problems,
    most_problems,
    option,
    pad_stack,
)
from uml_core.modalities.sequence import ConvStem, FrameStem, conv_positions

MAX_CHANNELS = 32
MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS")  # libsndfile reads twenty formats more
HEADER = 44  # bytes of a WAV before its samples, at least
RATES = (1_000, 400_000)  # Hz; outside, the header is damaged
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
        self._fourier = Spectrogram(
            size, win_length=window, hop_length=self._hop, power=None, pad_mode="constant"
        )
        self._mel = MelScale(options.mels, rate, n_stft=size // 2 + 1)

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
        # Spectra of many clips in one call: torchaudio takes a dozen small steps in Python, and
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
        if data[:4] not in MAGIC:
            raise BadSample("the clip is neither WAV, FLAC nor OGG")
        try:
            with _opened(data) as clip:
                rate = clip.samplerate
                self._check_header(clip)
                first, count = self._span(clip.frames, rate, shift)
                clip.seek(max(0, first))
                samples = clip.read(count + min(0, first), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
            if isinstance(error, BadSample):
                raise
            raise BadSample(f"the clip cannot be decoded: {cause(error)}") from error
        if not len(samples):
            raise BadSample("the clip is cut off")
        # One channel is taken as it is: a mean over an axis of length 1 costs as much as reading.
        mono = torch.from_numpy(samples[:, 0] if samples.shape[1] == 1 else samples.mean(1))
        before, after = max(0, -first), max(0, count + min(0, first) - len(mono))
        if before or after:
            mono = F.pad(mono, (before, after))
        return mono if rate == self.options.sample_rate else self._resampler(rate)(mono)

    def _resampler(self, rate: int) -> Resample:
        # A bounded fraction: an odd rate (44101 Hz) would ask for a filter of gigabytes.
        ratio = Fraction(rate, self.options.sample_rate).limit_denominator(640)
        return _resampler(ratio.numerator, ratio.denominator)

    def _check_header(self, clip: soundfile.SoundFile | _Pcm) -> None:
        limit = self.options.max_seconds
        if not RATES[0] <= clip.samplerate <= RATES[1] or clip.channels > MAX_CHANNELS:
            raise BadSample(f"{clip.samplerate} Hz and {clip.channels} channels are not sound")
        if clip.frames <= 0:
            raise BadSample("the clip is empty")
        if clip.frames > limit * clip.samplerate:
            seconds = clip.frames / clip.samplerate
            raise BadSample(f"the clip lasts {seconds:.1f} s, more than max_seconds {limit:g}")

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


class _Pcm:
    """A whole WAV of 16-bit samples, with what we use of `soundfile.SoundFile`.

    The standard library reads it in a sixth of soundfile's time and gives the same numbers;
    threads that decode side by side hold the interpreter as much shorter. Raises ValueError for
    anything else.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._clip = wave.Wave_read(io.BytesIO(data))
        except (wave.Error, EOFError, struct.error, OSError, RuntimeError) as error:
            raise ValueError("no PCM WAV") from error
        self.samplerate, self.channels = self._clip.getframerate(), self._clip.getnchannels()
        self.frames = self._clip.getnframes()
        stated = self.frames * self.channels * 2
        if self._clip.getsampwidth() != 2 or not HEADER + stated <= len(data):
            raise ValueError("not of 16 bits, or cut off")

    def __enter__(self) -> _Pcm:
        return self

    def __exit__(self, *exc: object) -> None:
        self._clip.close()

    def seek(self, frame: int) -> None:
        self._clip.setpos(frame)

    def read(self, frames: int, dtype: str, always_2d: bool) -> np.ndarray:
        """(frames, channels) float32 in [-1, 1)."""
        values = np.frombuffer(self._clip.readframes(frames), "<i2")
        return np.multiply(values, np.float32(1 / 32768), dtype=dtype).reshape(-1, self.channels)


def _opened(data: bytes) -> soundfile.SoundFile | _Pcm:
    """The clip in `data`, not yet decoded."""
    if data[:4] == b"RIFF":
        with contextlib.suppress(ValueError):
            return _Pcm(data)
    return soundfile.SoundFile(io.BytesIO(data))


@functools.lru_cache(maxsize=16)
def _resampler(before: int, after: int) -> Resample:
    """The filter costs more to build than to apply."""
    return Resample(before, after)
