"""Vectors: ready-made features of a frozen encoder, one token per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uml_core.errors import UserError
from uml_core.modalities.base import BadSample, Modality
from uml_core.modalities.common import least_problems, load_array, most_problems, option


@dataclass(frozen=True)
class Options:
    """Recipe fields of kind `vector`."""

    dim: int | None = option(None, "numbers per vector; null = read off the first sample")
    normalise: bool = option(False, "scale every vector to length 1")
    stem: Literal["linear", "identity"] = option(
        "linear",
        "linear: the projection P of the paper (section 3.2; no bias); identity: features that "
        "already live in the shared space (CLIP), whose dim must be the model's width",
    )


class _Stem(nn.Module):
    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return self.projection(x).unsqueeze(1), None


class Vector(Modality):
    """npy or npz of shape (D,) or (1, D) -> one token. x is (B, D) float32."""

    kind = "vector"
    suffixes = ("npy", "npz")
    Options = Options

    @classmethod
    def check(cls, options: Any, *, setting: str, width: int, heads: int) -> list[str]:
        if options.dim is None:
            return []
        problems = least_problems(options, dim=1) + most_problems(options, dim=10**7)
        if options.stem == "identity" and options.dim != width:
            problems.append(_identity_problem(options.dim, width))
        return problems

    def decode(self, data: bytes, suffix: str, u: np.ndarray | None = None) -> Tensor:
        values, _ = load_array(data, suffix)
        if values.ndim == 0 or values.size == 0 or values.size != values.shape[-1]:
            raise BadSample(f"an array of shape {values.shape} is not one vector")
        if self.options.dim not in (None, values.size):
            raise BadSample(f"the vector holds {values.size} numbers, not {self.options.dim}")
        vector = torch.from_numpy(values.reshape(-1))
        return F.normalize(vector, dim=0) if self.options.normalise else vector

    def collate(self, items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        return torch.stack(list(items)), None

    def stem(self, width: int, *, supervised: bool) -> nn.Module:
        dim = self._dim()
        if self.options.stem == "identity":
            if dim != width:
                raise UserError(_identity_problem(dim, width))
            return _Stem(nn.Identity())
        return _Stem(nn.Linear(dim, width, bias=False))

    def most_positions(self, *, supervised: bool) -> int:
        return 1

    def decoder(self, width: int) -> nn.Module:
        return nn.Linear(width, self._dim())

    def targets(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)

    def coarse(self, item: Tensor) -> Tensor:
        """The vector as it is, (D,)."""
        return item

    def with_input(self, item: Tensor) -> Vector:
        if self.options.dim not in (None, len(item)):
            raise UserError(
                f"dim is {self.options.dim}, but the samples hold {len(item)} numbers: "
                "set dim to that, or leave it out."
            )
        return Vector(replace(self.options, dim=len(item)))

    def _dim(self) -> int:
        if self.options.dim is None:
            raise UserError("dim is unknown: set it, or read it off a sample with with_input.")
        return self.options.dim


def _identity_problem(dim: int, width: int) -> str:
    return (
        f"stem: identity needs vectors as long as the model is wide, but dim is {dim} and "
        f"model.width is {width}: set model.width to {dim}, or use stem: linear."
    )
