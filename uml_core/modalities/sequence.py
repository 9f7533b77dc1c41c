"""Sequences: series of feature vectors of any length (pen traces, sensors, encoder tokens)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uml_core.errors import UserError
from uml_core.modalities.base import BadSample, Modality
from uml_core.modalities.common import (
    grouped,
    least_problems,
    load_array,
    masked_mean,
    most_problems,
    option,
    pad_stack,
)


@dataclass(frozen=True)
class Options:
    """Recipe fields of kind `sequence`."""

    dim: int | None = option(None, "numbers per step; null = read off the first sample")
    max_length: int = option(512, "longest series in steps; longer ones are bad samples")
    truncate: bool = option(False, "cut longer series to max_length instead")
    scale: Literal["auto", "none", "minmax", "zscore"] = option(
        "auto",
        "per sample and feature: minmax to [-1, 1], zscore to mean 0 and deviation 1, none, or "
        "auto = minmax for integers (raw measurements) and none for floats (ready features)",
    )
    stem: Literal["frames", "conv1d"] = option(
        "frames",
        "frames: a token per step, or per `patch` steps (linear); conv1d: strided convolutions, "
        "supervised only",
    )
    patch: int = option(1, "frames: steps per token; more make long series cheap")
    pool: bool = option(True, "conv1d: average the tokens of a sample to one")


class ConvStem(nn.Module):
    """Three strided 1-D convolutions over time, each 2 times shorter, optionally averaged.

    Padding is zeroed before each convolution and normalisation is per position, so that an
    output never depends on how far its batch mates were padded.
    """

    def __init__(self, dim: int, width: int, *, pool: bool) -> None:
        super().__init__()
        sizes = [dim, 64, 64, width]
        pairs = list(itertools.pairwise(sizes))
        self.convs = nn.ModuleList(nn.Conv1d(a, b, 5, stride=2, padding=2) for a, b in pairs)
        self.norms = nn.ModuleList(nn.LayerNorm(b) for _, b in pairs)
        self.pool = pool

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D), mask (B, T) -> tokens (B, 1 or ceil(T/8), W) and their mask."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            if mask is not None:
                x = x * mask.unsqueeze(-1)
                mask = mask[:, ::2]
            x = F.gelu(norm(conv(x.transpose(1, 2)).transpose(1, 2)))
        if self.pool:
            return masked_mean(x, mask).unsqueeze(1), None
        return x, mask


def conv_positions(length: int, *, pool: bool) -> int:
    """Tokens that `ConvStem` makes of a series."""
    return 1 if pool else -(-length // 8)


class FrameStem(nn.Module):
    """One linear token per step or group of steps (paper B.4.1: linear to the model's width)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D), mask (B, T) -> tokens (B, T, W) and the same mask."""
        return self.linear(x), mask


class Sequence(Modality):
    """npy or npz of shape (T, D) or (T,) -> tokens. An item is (T, D) float32.

    x is (B, T, D) for conv1d; for frames (B, T // patch, patch * D), a row per token.
    """

    kind = "sequence"
    suffixes = ("npy", "npz")
    Options = Options
    shorten = "max_length"

    @classmethod
    def check(cls, options: Any, *, setting: str, width: int, heads: int) -> list[str]:
        problems = least_problems(options, max_length=1, patch=1)
        problems += most_problems(options, max_length=10**7, dim=10**7)
        if options.dim is not None:
            problems += least_problems(options, dim=1)
        if setting == "self_supervised" and options.stem == "conv1d":
            problems.append(
                "stem: conv1d mixes neighbouring steps, which would show the model the step it "
                "has to predict: use stem: frames in the self-supervised setting."
            )
        return problems

    def decode(self, data: bytes, suffix: str, u: np.ndarray | None = None) -> Tensor:
        values, integers = load_array(data, suffix)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or values.size == 0:
            raise BadSample(f"an array of shape {values.shape} is not a series (steps, numbers)")
        if self.options.dim not in (None, values.shape[1]):
            raise BadSample(f"a step holds {values.shape[1]} numbers, not {self.options.dim}")
        if len(values) > self.options.max_length and not self.options.truncate:
            raise BadSample(
                f"{len(values)} steps are more than max_length {self.options.max_length}: "
                "raise it, or set truncate: true"
            )
        return torch.from_numpy(self._scaled(values[: self.options.max_length], integers))

    def _scaled(self, values: np.ndarray, integers: bool) -> np.ndarray:
        scale = self.options.scale
        if scale == "auto":
            scale = "minmax" if integers else "none"
        if scale == "none":
            return values
        if scale == "zscore":
            centre, spread = values.mean(0), values.std(0)
        else:
            low, high = values.min(0), values.max(0)
            centre, spread = (low + high) / 2, (high - low) / 2
        # A feature that never changes becomes 0, not NaN.
        return (values - centre) / np.where(spread > 0, spread, 1)

    def collate(self, items: Items[Tensor]) -> tuple[Tensor, Tensor | None]:
        return pad_stack([grouped(item, self._patch()) for item in items])

    def stem(self, width: int, *, supervised: bool) -> nn.Module:
        if self.options.stem == "conv1d":
            return ConvStem(self._dim(), width, pool=self.options.pool)
        return FrameStem(self._dim(), width)

    def _patch(self) -> int:
        return 1 if self.options.stem == "conv1d" else self.options.patch

    def most_positions(self, *, supervised: bool) -> int:
        if self.options.stem == "conv1d":
            return conv_positions(self.options.max_length, pool=self.options.pool)
        return max(1, self.options.max_length // self.options.patch)

    def decoder(self, width: int) -> nn.Module:
        return nn.Linear(width, self._dim())

    def targets(self, x: Tensor) -> Tensor:
        return x

    def coarse(self, item: Tensor) -> Tensor:
        """Means over eight equal parts of the series: (8 * dim,)."""
        return F.adaptive_avg_pool1d(item.T, 8).flatten()

    def with_input(self, item: Tensor) -> Sequence:
        dim = item.shape[1]
        if self.options.dim not in (None, dim):
            raise UserError(
                f"dim is {self.options.dim}, but the samples hold {dim} numbers per step: "
                "set dim to that, or leave it out."
            )
        return Sequence(replace(self.options, dim=dim))

    def _dim(self) -> int:
        if self.options.dim is None:
            raise UserError("dim is unknown: set it, or read it off a sample with with_input.")
        return self.options.dim * self._patch()
