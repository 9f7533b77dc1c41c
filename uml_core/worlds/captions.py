"""Captions of the shapes world: a small grammar with synonyms, free order and idle words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NOUNS = (
    ("circle", "disc", "disk", "round", "roundel"),
    ("square", "box", "block", "quadrate", "tile"),
    ("triangle", "wedge", "pyramid", "delta", "trigon"),
    ("cross", "plus", "crux", "crosslet", "saltire"),
)
COLOUR_WORDS = (
    ("red", "crimson", "scarlet", "ruby", "cherry"),
    ("yellow", "golden", "lemon", "amber", "canary"),
    ("green", "emerald", "olive", "jade", "lime"),
    ("blue", "azure", "navy", "cobalt", "sapphire"),
)
FILLINGS = (
    ("solid", "plain", "filled", "uniform", "unbroken"),
    ("striped", "banded", "lined", "barred", "streaked"),
    ("dotted", "spotted", "speckled", "dappled", "freckled"),
)
FILLING_NOUNS = (
    ("one even coat", "a full coat", "no marks"),
    ("stripes", "bands", "lines"),
    ("dots", "spots", "speckles"),
)
OPENERS = ("", "a picture of", "here is", "someone drew", "there is", "i can see", "we found")
MANNERS = ("", "small", "large", "old", "bright", "faded", "blurry", "tilted", "lonely", "handmade")
PLACES = (
    "", "on paper", "near the edge", "in a noisy picture", "on a busy wall", "under a lamp",
    "among many things", "at the top", "in the corner", "beside a window",
)  # fmt: skip
FRAMES = (
    "{opener} a {manner} {colour} {filling} {noun} {place}",
    "{opener} a {manner} {filling} {colour} {noun} {place}",
    "{opener} a {colour} {noun} with {marks} {place}",
    "{place} {opener} a {manner} {noun} , {colour} and {filling}",
    "the {noun} {place} is {filling} and {colour}",
    "{manner} {noun} with {marks} , painted {colour} {place}",
    "{colour} , {filling} , {manner} : the {noun} {place}",
)


def caption(shape: int, colour: int, pattern: int, u: NDArray[np.float64]) -> str:
    """One caption of a class, chosen by 8 uniforms; the indices point into the tables above."""

    def pick(words: Sequence[str], at: float) -> str:
        return words[int(at * len(words))]

    text = pick(FRAMES, u[0]).format(
        opener=pick(OPENERS, u[1]),
        manner=pick(MANNERS, u[2]),
        place=pick(PLACES, u[3]),
        noun=pick(NOUNS[shape], u[4]),
        colour=pick(COLOUR_WORDS[colour], u[5]),
        filling=pick(FILLINGS[pattern], u[6]),
        marks=pick(FILLING_NOUNS[pattern], u[7]),
    )
    return " ".join(text.split()).replace(" ,", ",").replace(" :", ":").strip(" ,:")
