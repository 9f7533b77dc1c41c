"""Where a fit's data parallelism lives: in one process, or DDP or FSDP2 over a process group."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from uml_core import sharding
from uml_core.learner import UnpairedLearner
from uml_core.modalities.base import Batch, sent
from uml_core.modalities.common import pad_stack, unpad

T = TypeVar("T")


class World(Protocol):
    """Where a fit's data parallelism lives: one process, or a torch.distributed group."""

    size: int
    rank: int

    def wrap(self, learner: UnpairedLearner, every_step_alike: bool) -> nn.Module:
        """The module whose forward synchronises gradients."""
        ...

    def total(self, value: Tensor) -> Tensor:
        """Sum over ranks, element by element; any shape."""
        ...

    def decided(self, value: T) -> T:
        """What rank 0 says, on all ranks: of numbers that ranks would compute with other ulps."""
        ...

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor | None, int]:
        """x and mask of the global batch where `batch` lies, and where this rank's items begin.

        x (B, T, ...) and mask (B, T) or None, padded to the longest item of all ranks.
        """
        ...


class OneProcess(World):
    """A world of one: nothing to synchronise."""

    size = 1
    rank = 0

    def wrap(self, learner: UnpairedLearner, every_step_alike: bool) -> nn.Module:
        return learner

    def total(self, value: Tensor) -> Tensor:
        return value

    def decided(self, value: T) -> T:
        return value

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor | None, int]:
        return batch.x, batch.mask, 0


class DataParallel(World):
    """DistributedDataParallel over the current process group."""

    def __init__(self) -> None:
        self.size = dist.get_world_size()
        self.rank = dist.get_rank()

    def wrap(self, learner: UnpairedLearner, every_step_alike: bool) -> nn.Module:
        # Steps that leave a modality out leave its stem without gradients; all ranks agree on
        # which, because the schedule is pure.
        return nn.parallel.DistributedDataParallel(
            learner,
            find_unused_parameters=not every_step_alike,
            broadcast_buffers=False,  # buffers are constants, not running statistics
        )

    def total(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    def decided(self, value: T) -> T:
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor | None, int]:
        parts: list[Any] = [None] * self.size
        mine = batch.to("cpu")  # lengths differ between ranks: they are told as objects
        dist.all_gather_object(parts, (mine.x, mine.mask))
        begin = sum(len(x) for x, _ in parts[: self.rank])
        x, mask = pad_stack([item for x, mask in parts for item in unpad(x, mask)])
        device = batch.x.device
        return sent(x, device), None if mask is None else sent(mask, device), begin


class Sharded(DataParallel):
    """FSDP2 over the current process group."""

    def wrap(self, learner: UnpairedLearner, every_step_alike: bool) -> nn.Module:
        return sharding.shard(learner)
