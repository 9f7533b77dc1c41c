"""The permuted control: auxiliary data with its marginals kept and its meaning removed.

A method that gains from the control as much as from the real auxiliary data has learnt nothing
from its meaning; regularisation or a longer schedule explains the gain. The paper has no such arm
(its nearest is text of an unrelated data set, Table 24); its reviewers asked for one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from uml_core.errors import UserError
from uml_core.modalities.base import Batch, sent
from uml_core.parallel import World


def derangement(num_classes: int, seed: int) -> np.ndarray:
    """A random permutation of class indices without a fixed point: (C,) int64.

    Uniform over derangements, by rejection (about e tries). Raises UserError for one class.
    """
    if num_classes < 2:
        raise UserError("the permuted control needs at least two classes")
    rng = np.random.default_rng([seed, 0xC0])
    while True:
        order = rng.permutation(num_classes)
        if not (order == np.arange(num_classes)).any():
            return order


class PermutedLabels:
    """Supervised control: class k of the auxiliary data is called derangement[k]."""

    description = "auxiliary labels permuted by one random derangement of the classes per seed"

    def __init__(self, num_classes: int, seed: int) -> None:
        self.table = torch.from_numpy(derangement(num_classes, seed))  # goes where the labels are

    def __call__(self, batch: Batch, number: int) -> Batch:
        """The batch with permuted labels; unlabelled samples (-1) stay so."""
        self.table = sent(self.table, batch.y.device)
        y = torch.where(batch.y >= 0, self.table[batch.y], batch.y)
        return dataclasses.replace(batch, y=y)


class PermutedValues:
    """Self-supervised control: values permuted over the batch, per feature and time step.

    Marginals per (position, feature) stay; structure across features and time is gone. Masked
    positions trade places only among valid ones. The permutation runs over the global batch, so
    any number of data-parallel ranks sees what one process sees: a rank's own few rows would
    have too little to trade (one row: nothing at all).
    """

    description = "auxiliary values permuted independently per feature and time step"

    def __init__(self, seed: int, world: World) -> None:
        self.seed, self.world = seed, world

    def __call__(self, batch: Batch, number: int) -> Batch:
        """The batch with its values permuted; `number` makes every batch's permutation its own."""
        x, mask, begin = self.world.whole(batch)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        x = permute_values(x, mask, generator)[begin : begin + len(batch)]
        # A rank pads to its own longest sequence, the global batch to the longest of all.
        seen = torch.zeros_like(batch.x)
        seen[:, : x.shape[1]] = x[:, : seen.shape[1]]
        return dataclasses.replace(batch, x=seen)


def permute_values(x: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Independent permutations over dimension 0 for every element of the other dimensions.

    x (B, ...), mask (B, T) over dimension 1 of x or None.
    """
    key = sent(torch.rand(x.shape, generator=generator), x.device)
    if mask is None:
        return x.gather(0, key.argsort(0))
    valid = mask.reshape(mask.shape + (1,) * (x.dim() - 2)).expand_as(x)
    # Sorting invalid places to the end on both sides pairs valid places with valid values only.
    source = torch.where(valid, key, 2.0).argsort(0)
    place = torch.where(
        valid,
        torch.arange(x.shape[0], device=x.device).view(-1, *[1] * (x.dim() - 1)).expand_as(x),
        x.shape[0],
    ).argsort(0)
    out = x.clone()
    out.scatter_(0, place, x.gather(0, source))
    return torch.where(valid, out, x)
