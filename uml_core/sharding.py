"""FSDP2: weights, gradients and moments shared out over the workers (`train.parallel: fsdp`).

DDP keeps all of them on every worker, which is the default and faster while they fit. Here every
stem, decoder, trunk block and the classifier is gathered when it is used and let go afterwards
(torch.distributed.fsdp.fully_shard). Checkpoints hold whole tensors in either case, so a run may be
taken up with another number of workers, or with the other way of sharing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn

from uml_core.learner import UnpairedLearner

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(learner: UnpairedLearner) -> nn.Module:
    """Shards a learner over the default process group, in place; all ranks call it.

    Parts are units of their own, because evaluation calls them one by one and steps leave some
    out. Its weights must be alike on all ranks.
    """
    from torch.distributed.fsdp import fully_shard

    # Lengths differ between ranks; every call gathers weights, so all must make the same calls.
    learner.shares_trunk_calls = False
    for part in _units(learner):
        if any(True for _ in part.parameters()):
            fully_shard(part)
    fully_shard(learner)
    return learner


def _units(learner: UnpairedLearner) -> Iterator[nn.Module]:
    yield from learner.stems.values()
    yield from learner.decoders.values()
    if learner.trunk is not None:
        yield from learner.trunk.blocks
        yield learner.trunk  # what is left of it
    if learner.classifier is not None:
        yield learner.classifier


def is_sharded(value: Any) -> TypeGuard[DTensor]:
    """Whether a value is a tensor of which every rank holds a part.

    There is none before the first `shard`, so that processes without FSDP do not import its module,
    which takes a second.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def whole(value: Any) -> Any:
    """Nested plain types with every sharded tensor as a whole one; all ranks call it alike."""
    if is_sharded(value):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(inner) for inner in value)
    return value


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor of any shape, where `like`, of the same shape, is sharded.

    All ranks call it alike.
    """
    if is_sharded(like) and value.shape == like.shape:
        from torch.distributed.tensor import distribute_tensor

        value = value.to(like.device)
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


def parts_of_weights(state: Mapping[str, Tensor], learner: nn.Module) -> dict[str, Tensor]:
    """A learner's whole state dict (tensors of the shapes of its weights) as it holds them."""
    own = learner.state_dict()
    return {name: part_of(value, own[name]) for name, value in state.items()}


def parts_of_moments(state: Mapping[str, Any], parameters: list[nn.Parameter]) -> dict[str, Any]:
    """An optimiser's whole state dict as its parameters are held."""
    held = {
        number: {
            name: part_of(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in moments.items()
        }
        for number, moments in state["state"].items()
    }
    return {**state, "state": held}


def local(value: Tensor) -> Tensor:
    """What of a tensor lies on this rank: any shape, the first dimension a part of the whole."""
    return value.to_local() if is_sharded(value) else value
