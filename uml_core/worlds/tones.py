"""Sounds of the shapes world: a tone whose timbre, pitch and rhythm carry the three attributes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uml_core.worlds.draws import Floats, Ints, uniform

PITCHES = (200.0, 283.0, 400.0, 566.0)  # Hz of red, yellow, green, blue: half an octave apart
HARMONICS = (
    (1.0, 0.0, 0.0, 0.0, 0.0),  # circle: pure
    (1.0, 0.0, 0.6, 0.0, 0.4),  # square: odd harmonics, as a square wave
    (1.0, 0.7, 0.5, 0.4, 0.3),  # triangle: all harmonics, bright
    (0.5, 0.0, 0.0, 1.0, 0.5),  # cross: hollow, high partials
)
TABLE = 1024  # entries of one period


@dataclass(frozen=True)
class Sound:
    """How clips vary; the defaults are the frozen difficulty of the world."""

    rate: int = 8000  # samples per second
    seconds: float = 0.6
    detune: float = 0.16  # largest shift of pitch either way, in octaves
    loudness: tuple[float, float] = (0.15, 0.5)  # of the tone; full scale is 1
    noise: float = 0.05  # standard deviation


def _periods() -> Floats:
    """(4, TABLE): one period of each timbre, peak 1."""
    x = 2 * np.pi * np.arange(TABLE) / TABLE
    order = np.arange(1, len(HARMONICS[0]) + 1)[:, None]
    waves = np.array(HARMONICS) @ np.sin(order * x)
    return (waves / np.abs(waves).max(1, keepdims=True)).astype(np.float32)


PERIODS = _periods()


def draw_sounds(
    shape: Ints, colour: Ints, pattern: Ints, rng: np.random.Generator, look: Sound
) -> NDArray[np.int16]:
    """Clips (N, rate * seconds) as 16-bit samples; the three attributes are (N,) each."""
    n = len(shape)
    t = (np.arange(round(look.rate * look.seconds)) / look.rate).astype(np.float32)
    pitch = np.array(PITCHES)[colour] * 2.0 ** rng.uniform(-look.detune, look.detune, n)
    turns = pitch.astype(np.float32)[:, None] * t + uniform(rng, 0, 1, (n, 1))
    index = (turns * TABLE).astype(np.int32) & (TABLE - 1)
    index += (shape * TABLE).astype(np.int32)[:, None]
    clip = PERIODS.reshape(-1)[index]
    clip *= _rhythm(pattern, t, rng)
    clip *= uniform(rng, *look.loudness, (n, 1))
    clip += rng.standard_normal(clip.shape, dtype=np.float32) * np.float32(look.noise)
    return np.rint(np.clip(clip, -1, 1) * 32767).astype(np.int16)


def _rhythm(pattern: Ints, t: Floats, rng: np.random.Generator) -> Floats:
    """(N, T) in 0..1. solid: steady; striped: even beats; dotted: short quick beats."""
    n = len(pattern)
    beats = np.where(pattern == 1, uniform(rng, 5, 8, n), uniform(rng, 10, 14, n))  # per second
    share = np.where(pattern == 1, 0.55, 0.3).astype(np.float32)[:, None]  # of a beat that sounds
    place = beats[:, None] * t + uniform(rng, 0, 1, (n, 1))
    place -= np.floor(place)
    edge = 0.5 * share - np.abs(place - 0.5)  # in beats; positive while the tone sounds
    gate = np.clip(edge * 20 + 0.5, 0, 1)
    gate[pattern == 0] = 1
    return gate
