"""The shared trunk h: a transformer that every modality passes through (paper 3.2, Fig 4).

Shape legend: B batch, T positions, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uml_core.errors import UserError
from uml_core.kernels import attend, drop, relu_
from uml_core.specs import ModelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # GPT-2's gelu_new
    "relu": relu_,  # of a linear layer's output, which nobody else needs
}


class Block(nn.Module):
    """One transformer layer: attention and feed-forward, pre- or post-norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width, hidden = spec.width, spec.ff or 4 * spec.width
        self.heads = spec.heads
        self.pre = spec.norm == "pre"
        self.dropout = spec.dropout
        self.norm1 = nn.LayerNorm(width, spec.norm_eps)
        self.norm2 = nn.LayerNorm(width, spec.norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """x (B, T, D); mask (B, 1, 1, T) bool True = attend, or None; causal: no look-ahead."""
        if self.pre:
            x = x + self._drop(self._attend(self.norm1(x), mask, causal))
            return x + self._drop(self._feed(self.norm2(x)))
        x = self.norm1(x + self._drop(self._attend(x, mask, causal)))
        return self.norm2(x + self._drop(self._feed(x)))

    def _attend(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        _, T, D = x.shape
        if T == 1:
            # One position attends to itself alone: the softmax is 1 and values pass unchanged.
            v = F.linear(x, self.qkv.weight[2 * D :], self.qkv.bias[2 * D :])
            return self.out(v)
        return self.out(attend(self.qkv(x), self.heads, mask, causal, self._dropout()))

    def _feed(self, x: Tensor) -> Tensor:
        # Flat, because an activation in place on a view of several dimensions costs a copy.
        hidden = self.activation(self.up(x.flatten(0, 1)))
        return self.down(self._drop(hidden)).view_as(x)

    def _drop(self, x: Tensor) -> Tensor:
        return drop(x, self._dropout())

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


class Trunk(nn.Module):
    """h: tokens (B, T, D) -> representation r (B, T, D), shared by all modalities.

    causal  the self-supervised setting: position t sees positions up to t. With right-padding a
            valid position then never sees padding, so no padding mask is needed.
    """

    positions: Tensor | None

    def __init__(self, spec: ModelSpec, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.max_positions = spec.max_positions
        width = spec.width
        self.input = nn.Linear(width, width, bias=False) if spec.input_projection else None
        if spec.positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(spec.max_positions, spec.width))
        elif spec.positions == "sinusoidal":
            self.register_buffer(
                "positions", sinusoids(spec.max_positions, spec.width), persistent=False
            )
        else:
            self.positions = None
        self.input_norm = nn.LayerNorm(width, spec.norm_eps) if spec.input_norm else None
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        final = spec.norm == "pre" and spec.depth > 0
        self.norm = nn.LayerNorm(width, spec.norm_eps) if final else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, T, D), mask (B, T) bool True = valid or None. Raises UserError if T is too long."""
        if self.input is not None:
            x = self.input(x)
        if self.positions is not None:
            if x.shape[1] > self.max_positions:
                raise UserError(
                    f"a sequence of {x.shape[1]} positions meets a position table of "
                    f"{self.max_positions}: raise model.max_positions or shorten the sequences"
                )
            x = x + self.positions[: x.shape[1]]
        if self.input_norm is not None:
            x = self.input_norm(x)
        attend = None if self.causal or mask is None else mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, attend, self.causal)
        return x if self.norm is None else self.norm(x)


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) table of the transformer paper: sines in even, cosines in odd columns."""
    t = torch.arange(length).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(t * frequency)
    table[:, 1::2] = torch.cos(t * frequency[: width // 2])
    return table
