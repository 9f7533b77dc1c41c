"""Pictures of the shapes world: outline, hue and filling of a figure carry the three attributes.

The per-pixel arithmetic is sums, products and square roots only, which every processor rounds the
same way: equal seeds give equal pixels everywhere.

Shape legend: N pictures, S pixels per side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uml_core.worlds.draws import Floats, Ints, uniform

HUES = (0.0, 0.15, 0.36, 0.62)  # red, yellow, green, blue, in turns around the colour circle


@dataclass(frozen=True)
class Look:
    """How pictures vary; the defaults are the frozen difficulty of the world.

    Lengths are in units of half the picture's side.
    """

    size: int = 24  # pixels per side
    radius: tuple[float, float] = (0.6, 0.85)
    rotation: float = 0.04  # largest turn either way, as a share of a full turn
    hue_jitter: float = 0.04  # largest shift either way, as a share of the colour circle
    saturation: tuple[float, float] = (0.35, 0.9)
    brightness: tuple[float, float] = (0.45, 1.0)
    tint: float = 0.15  # largest change of each colour channel by the light
    clutter: int = 1  # bars of random colour in the background
    wander: float = 0.4  # how far the figure's centre may go, as a share of the room it has
    chroma: float = 0.15  # largest distance of a background channel from grey
    noise: float = 0.06  # standard deviation per channel; the full range is 1


def _hsv(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """Hue in turns, saturation, value, each (N,) -> RGB (N, 3)."""
    k = (np.array([5, 3, 1], dtype=np.float32) + 6 * hue[:, None]) % 6
    ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
    return value[:, None] * (1 - saturation[:, None] * ramp)


def _outline(u: NDArray[Any], v: NDArray[Any], shape: Ints) -> NDArray[Any]:
    """Signed distance to the figure's edge (negative inside) at (u, v), each (N, S, S)."""
    a, b = np.abs(u), np.abs(v)
    circle = np.sqrt(u * u + v * v) - 0.9
    square = np.maximum(a, b) - 0.8
    triangle = np.maximum(0.866 * a - 0.5 * v, v) - 0.6
    cross = np.minimum(np.maximum(a - 1.0, b - 0.36), np.maximum(a - 0.36, b - 1.0))
    picks = [shape[:, None, None] == i for i in range(4)]
    return np.select(picks, [circle, square, triangle, cross])


def _filling(u: NDArray[Any], v: NDArray[Any], pattern: Ints, phase: Floats) -> NDArray[Any]:
    """How much of the second colour shows at (u, v): (N, S, S) in 0..1."""
    p, q = phase[:, 0, None, None], phase[:, 1, None, None]
    wave_u = np.abs((u * 1.6 + p) % 1.0 - 0.5)  # triangle waves, 0..0.5
    wave_v = np.abs((v * 1.6 + q) % 1.0 - 0.5)
    stripes = np.clip((wave_v - 0.25) * 6 + 0.5, 0, 1)
    dots = np.clip((0.27 - np.sqrt(wave_u * wave_u + wave_v * wave_v)) * 6 + 0.5, 0, 1)
    kind = pattern[:, None, None]
    return np.select([kind == 1, kind == 2], [stripes, dots], np.float32(0))


def draw_pictures(
    shape: Ints, colour: Ints, pattern: Ints, rng: np.random.Generator, look: Look
) -> NDArray[np.uint8]:
    """RGB pictures (N, S, S, 3); the three attributes are (N,) each."""
    n, s = len(shape), look.size
    axis: Floats = ((np.arange(s) + 0.5) / s * 2 - 1).astype(np.float32)
    y, x = axis[None, :, None], axis[None, None, :]

    radius = uniform(rng, *look.radius, n)
    centre: Floats = uniform(rng, -1, 1, (2, n)) * (1 - radius) * np.float32(look.wander)
    cos, sin = _direction(rng.uniform(-look.rotation, look.rotation, n))
    dx, dy = x - centre[0, :, None, None], y - centre[1, :, None, None]
    size = radius[:, None, None]
    u, v = (dx * cos + dy * sin) / size, (dy * cos - dx * sin) / size
    edge = _outline(u, v, shape) * size * np.float32(s / 2)  # in pixels
    cover = np.clip(0.5 - edge, 0, 1)[..., None]

    hue = np.array(HUES, np.float32)[colour] + uniform(rng, -1, 1, n) * np.float32(look.hue_jitter)
    ink = _hsv(hue, uniform(rng, *look.saturation, n), uniform(rng, *look.brightness, n))
    shade = np.where(rng.random(n) < 0.5, 0.0, 1.0).astype(np.float32)[:, None]
    second = ink * 0.35 + shade * 0.65  # the ink mixed with black or white
    mix = _filling(u, v, pattern, uniform(rng, 0, 1, (n, 2)))[..., None]
    figure = ink[:, None, None] + mix * (second - ink)[:, None, None]

    scene = _background(n, x, y, rng, look)
    scene += cover * (figure - scene)
    scene *= 1 + uniform(rng, -look.tint, look.tint, (n, 1, 1, 3))
    scene += rng.standard_normal(scene.shape, dtype=np.float32) * np.float32(look.noise)
    return (np.clip(scene, 0, 1) * 255 + 0.5).astype(np.uint8)


def _direction(turn: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Cosine and sine of angles (N,) in full turns, each (N, 1, 1)."""
    angle = 2 * np.pi * turn[:, None, None]
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _background(n: int, x: Floats, y: Floats, rng: np.random.Generator, look: Look) -> Floats:
    """(N, S, S, 3): a colour gradient crossed by bars of random colours."""
    s = look.size
    base = uniform(rng, 0.2, 0.8, (n, 1, 1, 1))
    base = base + uniform(rng, -look.chroma, look.chroma, (n, 1, 1, 3))
    slope = uniform(rng, -0.2, 0.2, (2, n, 1, 1, 3))
    scene = base + slope[0] * x[..., None] + slope[1] * y[..., None]
    for _ in range(look.clutter):
        cos, sin = _direction(rng.random(n))
        away = np.abs(x * cos + y * sin - uniform(rng, -0.9, 0.9, (n, 1, 1)))
        bar = np.clip((uniform(rng, 0.04, 0.14, (n, 1, 1)) - away) * (s / 2) + 0.5, 0, 1)
        paint = uniform(rng, 0.1, 0.9, (n, 1, 1, 1))
        paint = paint + uniform(rng, -look.chroma, look.chroma, (n, 1, 1, 3))
        scene += bar[..., None] * (paint - scene)
    return scene
