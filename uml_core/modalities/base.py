"""What every modality provides: bytes -> tensor -> batch -> tokens -> prediction.

Shape legend: B batch, T positions (tokens), D input features, W model width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from uml_core.errors import BadSample

__all__ = ["BadSample", "Batch", "Modality", "sent"]


@dataclass
class Batch:
    """One collated batch of one modality.

    x     inputs as the modality's stem takes them (see each modality)
    mask  (B, T) bool, True where a position is valid; None when every position is
    y     (B,) int64 class labels, -1 = unlabelled
    keys  B sample keys, for audits
    """

    x: Tensor
    y: Tensor
    mask: Tensor | None = None
    keys: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.x.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device` (see `sent`)."""
        mask = None if self.mask is None else sent(self.mask, device)
        return replace(self, x=sent(self.x, device), y=sent(self.y, device), mask=mask)


def sent(value: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of any shape on `device`.

    To a GPU it goes by way of pinned memory: a copy out of ordinary memory would wait until the
    GPU has done all that was asked of it before.
    """
    device = torch.device(device)
    if device.type != "cuda" or value.device.type != "cpu":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


class Modality(ABC):
    """One kind of data with its options: decode, collate, stem f_m, decoder g_m, loss.

    A kind is one file with one subclass and one frozen dataclass ``Options`` (the recipe fields
    that only this kind has), registered in `uml_core.modalities.KINDS`.
    """

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]  # lower case, without the dot
    Options: ClassVar[type]
    num_random: ClassVar[int] = 0  # uniform numbers one augmented decode consumes
    partial: ClassVar[bool] = False  # a decode reads only the part its random numbers pick
    loss: ClassVar[str] = "mse"  # self-supervised: "mse" or "cross_entropy"

    shorten: ClassVar[str] = ""  # the options that bound a sample's positions

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def class_token(self) -> bool:
        """Whether the stem puts a class token first, whose output stands for the sample."""
        return False

    @classmethod
    def check(cls, options: Any, *, setting: str, width: int, heads: int) -> list[str]:
        """Problems of these options in this setting, each a sentence; empty when all is well."""
        return []

    @abstractmethod
    def decode(self, data: bytes, suffix: str, u: np.ndarray | None = None) -> Tensor:
        """Bytes of one member -> tensor. `u`: (num_random,) uniforms for augmentation, or None.

        Raises BadSample for anything undecodable or above a cap. Must be thread-safe and depend
        on nothing but its arguments, so that any number of ranks sees the same samples.
        """

    def decode_all(
        self, samples: Sequence[tuple[bytes, str, np.ndarray | None]]
    ) -> list[Tensor | BadSample]:
        """`decode` of several (data, suffix, u); in place of a bad sample stands its error.

        A kind overrides it where several samples at once cost less than one after another.
        """
        items: list[Tensor | BadSample] = []
        for data, suffix, u in samples:
            try:
                items.append(self.decode(data, suffix, u))
            except BadSample as error:
                items.append(error)
        return items

    @abstractmethod
    def collate(self, items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """B decoded items -> (x, mask)."""

    @abstractmethod
    def stem(self, width: int, *, supervised: bool) -> nn.Module:
        """f_m: module (x, mask) -> (tokens (B, T, width), mask (B, T) | None)."""

    @abstractmethod
    def most_positions(self, *, supervised: bool) -> int:
        """The most tokens that the stem makes of one sample, whatever the data holds."""

    @abstractmethod
    def decoder(self, width: int) -> nn.Module:
        """g_m: (B, T, width) -> (B, T, D) predictions, or (B, T, V) logits for cross-entropy."""

    @abstractmethod
    def targets(self, x: Tensor) -> Tensor:
        """What the decoder predicts at each position: (B, T, D) floats or (B, T) token ids.

        Position t of the stem's tokens stands for position t of the targets (self-supervised).
        """

    @abstractmethod
    def coarse(self, item: Tensor) -> Tensor:
        """(F,) float32: a coarse copy of one decoded item, of the same F for every item.

        What a forecast sees of the data before any training, alike for every model: no stem, no
        random weights. Each kind says how it is coarsened.
        """

    def with_input(self, item: Tensor) -> Modality:
        """This modality with the sizes that only the data tells, read off one decoded item.

        The item has the shape that `decode` gives. Raises UserError where a size that the recipe
        states is another.
        """
        return self
