"""The two losses (paper 3.2; Algorithms 1 and 2), each as a sum and the number of its terms.

Sums and counts are kept apart so that a data-parallel step can divide by the *global* number of
valid terms: ranks with sequences of unequal length then agree with one process.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def supervised_sum(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over labelled samples. logits (B, C), y (B,), -1 = unlabelled."""
    return F.cross_entropy(
        logits, y, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )


def supervised_terms(y: Tensor) -> Tensor:
    """Number of terms in `supervised_sum`: labelled samples among y (B,), a scalar."""
    return (y >= 0).sum()


def next_embedding_sum(
    prediction: Tensor, target: Tensor, mask: Tensor | None, kind: str
) -> Tensor:
    """Next-embedding loss: position t predicts input t + 1; length 1 predicts itself.

    prediction  (B, T, D) values, or (B, T, V) logits for `kind` "cross_entropy"
    target      (B, T, D) values, or (B, T) token ids
    mask        (B, T) bool, True = valid, right-padded; None = all valid
    kind        "mse" (mean over D, summed over positions) or "cross_entropy"
    """
    if target.shape[1] > 1:
        alone = None if mask is None else ~mask[:, 1:].any(1)  # sequences of one valid position
        loss = _position_loss(prediction[:, :-1], target[:, 1:], kind)
        valid = None if mask is None else mask[:, 1:]
        total = loss.sum() if valid is None else (loss * valid).sum()
        if alone is not None:
            # Selecting by a 0/1 factor instead of indexing keeps the step free of host syncs.
            first = _position_loss(prediction[:, :1], target[:, :1], kind)
            total = total + (first * alone.unsqueeze(1)).sum()
        return total
    return _position_loss(prediction, target, kind).sum()


def next_embedding_terms(target: Tensor, mask: Tensor | None) -> Tensor:
    """Number of position terms in `next_embedding_sum` of the same target and mask: a scalar."""
    if mask is None:
        batch, length = target.shape[:2]
        return torch.full((), batch * max(1, length - 1), device=target.device)
    return mask.sum(1).sub(1).clamp(min=1).sum()


def _position_loss(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """(B, T) loss per position."""
    if kind == "cross_entropy":
        return F.cross_entropy(prediction.transpose(1, 2), target, reduction="none")
    return F.mse_loss(prediction, target, reduction="none").mean(-1)
