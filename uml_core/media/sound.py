"""Sounds: the bytes of a WAV, FLAC or OGG -> samples, within caps; spectra and resampling.

Only here are sounds decoded and is torchaudio imported. Its decoders are gone (they are
torchcodec's, which wants FFmpeg on every machine), so `soundfile` decodes (libsndfile comes with
it), and a PCM WAV of 16 bits, by far the most frequent, the standard library in a sixth of that
time. torchaudio is in maintenance; of it stay `Spectrogram`, `MelScale` and `Resample`, which are
plain torch, and the models of `pipelines`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.transforms import MelScale, Resample, Spectrogram

from uml_core.errors import BadSample, cause
from uml_core.media.formats import format_of

__all__ = ["RATES", "MelScale", "Spectrogram", "opened", "pipelines", "resampled"]

MAX_CHANNELS = 32
MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS")  # libsndfile reads twenty formats more
HEADER = 44  # bytes of a WAV before its samples, at least
RATES = (1_000, 400_000)  # Hz; outside, the header is damaged


def opened(
    data: bytes, max_seconds: float, span: Callable[[int, int], tuple[int, int]]
) -> tuple[Tensor, int]:
    """((samples,) float32 mono, their rate in Hz) of a part of a clip; only that part is decoded.

    max_seconds  longer clips are refused by the header
    span         (samples of the clip, rate) -> (first, count) of those wanted; what lies beyond the
                 ends of the clip is silence

    Raises BadSample.
    """
    whole, data = data, _without_tag(data)
    if data[:4] not in MAGIC:
        said = format_of(whole)
        raise BadSample(f"the clip is neither WAV, FLAC nor OGG{f': it is {said}' if said else ''}")
    try:
        with _clip(data) as clip:
            rate = clip.samplerate
            _check_header(clip, max_seconds)
            first, count = span(clip.frames, rate)
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
    return F.pad(mono, (before, after)) if before or after else mono, rate


def resampled(samples: Tensor, before: int, after: int) -> Tensor:
    """(..., samples) at `before` Hz -> at `after` Hz."""
    if before == after:
        return samples
    # A bounded fraction: an odd rate (44101 Hz) would ask for a filter of gigabytes.
    ratio = Fraction(before, after).limit_denominator(640)
    out: Tensor = _resampler(ratio.numerator, ratio.denominator)(samples)
    return out


def pipelines() -> Any:
    """`torchaudio.pipelines`: pretrained models with their sample rates."""
    from torchaudio import pipelines as found

    return found


def _without_tag(data: bytes) -> bytes:
    """Without the ID3v2 tag that some programs put before a FLAC."""
    if data[:3] != b"ID3" or len(data) < 10:
        return data
    size = functools.reduce(lambda total, byte: total << 7 | byte & 0x7F, data[6:10], 0)
    return data[10 + size + 10 * (data[5] >> 4 & 1) :]


def _with_length(data: bytes) -> bytes:
    """A WAV that was streamed, with lengths of 0 in its header: with that of what follows it."""
    at = 12
    while data[4:8] == bytes(4) and at + 8 < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            rest = (len(data) - at - 8).to_bytes(4, "little")
            return data if size else data[: at + 4] + rest + data[at + 8 :]
        at += 8 + size + size % 2
    return data


def _check_header(clip: soundfile.SoundFile | _Pcm, limit: float) -> None:
    if not RATES[0] <= clip.samplerate <= RATES[1] or clip.channels > MAX_CHANNELS:
        raise BadSample(f"{clip.samplerate} Hz and {clip.channels} channels are not sound")
    if clip.frames <= 0:
        raise BadSample("the clip is empty")
    if clip.frames > limit * clip.samplerate:
        seconds = clip.frames / clip.samplerate
        raise BadSample(f"the clip lasts {seconds:.1f} s, more than max_seconds {limit:g}")


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


def _clip(data: bytes) -> soundfile.SoundFile | _Pcm:
    """The clip in `data`, not yet decoded."""
    if data[:4] == b"RIFF":
        data = _with_length(data)
        with contextlib.suppress(ValueError):
            return _Pcm(data)
    return soundfile.SoundFile(io.BytesIO(data))


@functools.lru_cache(maxsize=16)
def _resampler(before: int, after: int) -> Resample:
    """The filter costs more to build than to apply."""
    return Resample(before, after)
