"""Attention, dropout and ReLU as fast as the device allows; each computes what PyTorch's own does.

Shape legend: B batch, T positions, D width, H heads, d = D / H.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Lengths at which plain products beat PyTorch's attention on a CPU by about a fifth. Below, a
# softmax over less than a vector register is slow; above, the fused kernel earns its overhead.
PRODUCTS = 16, 32  # from, to before


def float32_products(tf32: bool) -> None:
    """Whether a GPU computes products and convolutions of float32 as TF32: 10 bits of mantissa.

    For the whole process, as PyTorch has it; left alone it takes TF32 for convolutions only.
    """
    precision = "tf32" if tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = precision  # type: ignore[attr-defined]


def attend(qkv: Tensor, heads: int, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """Multi-head attention on queries, keys and values side by side: (B, T, 3 D) -> (B, T, D).

    mask     (B, 1, 1, T) bool, True = attend, or None
    causal   no look-ahead (then without mask)
    dropout  probability with which an attention weight is zeroed
    """
    B, T, _ = qkv.shape
    # With dropout PyTorch takes the products too, and its own slow dropout.
    if qkv.device.type == "cpu" and (PRODUCTS[0] <= T < PRODUCTS[1] or dropout):
        return _attend_by_products(qkv, heads, mask, causal, dropout)
    q, k, v = (part.view(B, T, heads, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    return y.transpose(1, 2).reshape(B, T, -1)


def _attend_by_products(
    qkv: Tensor, heads: int, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    B, T, _ = qkv.shape
    heads_first = qkv.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = heads_first.reshape(3, B * heads, T, -1).unbind(0)
    bias = qkv.new_zeros(())
    if causal:
        bias = qkv.new_full((T, T), -math.inf).triu(1)
    elif mask is not None:
        hidden = ~mask.expand(B, heads, 1, T).reshape(B * heads, 1, T)
        bias = qkv.new_zeros(hidden.shape).masked_fill(hidden, -math.inf)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    weights = drop(scores.softmax(-1), dropout)  # (B H, T, T)
    y = torch.bmm(weights, v).view(B, heads, T, -1)
    return y.transpose(1, 2).reshape(B, T, -1)


def drop(x: Tensor, p: float) -> Tensor:
    """Zeroes each entry of x (any shape) with probability `p` and divides the others by 1 - p.

    On a CPU the probability is rounded to a multiple of 1/65536: PyTorch's own dropout draws one
    number per entry, which takes longer than a whole layer; here 64 random bits serve four.
    """
    if not p:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = bits.view(torch.int16)[: x.numel()].view(x.shape)
    kept = min(max(round((1 - p) * 65536), 1), 65535)
    factor = torch.empty_like(x)
    torch.lt(bits, kept - 32768, out=factor)  # uniform over -32768 .. 32767
    return x * factor.mul_(65536 / kept)


def relu_(x: Tensor) -> Tensor:
    """max(x, 0) in place of x (any shape), which nobody else may need; so is its gradient.

    A fresh tensor for the gradient of a wide layer costs its pages anew in every step: on a CPU
    eight times as much as the comparison itself.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.relu(x, inplace=True)
    y: Tensor = _Relu.apply(x)
    return y


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.clamp_min_(0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        # The gradient of what a linear layer takes is that layer's alone: it may be changed.
        return torch.ops.aten.threshold_backward.grad_input(gradient, y, 0, grad_input=gradient)
