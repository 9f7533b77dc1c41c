"""What a run costs: floating-point operations, counted; and runs of equal cost.

Operations are those of one real forward and backward pass per modality (torch's flop counter:
matrix products, convolutions, attention; a multiplication and its addition are two), times the
batches that the schedule takes. Attention counts as its products whatever kernel computes it: two
forward, four backward, without what a kernel does twice to save memory. Optimiser and validation
are left out: they are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from uml_core.learner import UnpairedLearner
from uml_core.modalities.base import Batch
from uml_core.specs import Recipe

# PyTorch's fused attention. Its own counter does not know the kernel for CPUs, and counts for the
# others a product that they repeat.
ATTENTION = tuple(
    f"_scaled_dot_product_{kernel}"
    for kernel in (
        "flash_attention_for_cpu",
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "fused_attention_overrideable",
    )
)


@dataclass(frozen=True)
class Cost:
    """Cost of one run of one seed.

    target_samples  samples of the target that go into updates
    batches         modality -> batches
    flops           floating-point operations of all forward and backward passes
    """

    target_samples: int
    batches: dict[str, int]
    flops: float


def batch_flops(learner: UnpairedLearner, batches: Mapping[str, Batch]) -> dict[str, float]:
    """Modality -> operations of one forward and backward pass of its batch."""
    out = {}
    for name, batch in batches.items():
        with FlopCounterMode(display=False, custom_mapping=_attention()) as counter:
            sums, _ = learner([(name, batch)])
            sums.sum().backward()
        out[name] = float(counter.get_total_flops())
    learner.zero_grad(set_to_none=True)
    return out


def _attention() -> dict[Any, Any]:
    """Kernel of attention -> what it counts, for FlopCounterMode."""
    aten = torch.ops.aten
    kernels = [name for name in ATTENTION if hasattr(aten, name)]
    forward = {getattr(aten, name): _attention_forward for name in kernels}
    backward = {getattr(aten, f"{name}_backward"): _attention_backward for name in kernels}
    return forward | backward


Shape = tuple[int, ...]  # (B, H, T, d)


def _attention_forward(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    """q k' and weights v."""
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _attention_backward(_gradient: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    """The gradients of both factors of either product."""
    return 2 * _attention_forward(q, k, v)


def cost(recipe: Recipe, flops: Mapping[str, float]) -> Cost:
    """What a run of this recipe takes; `flops` as `batch_flops` gives them, per full batch."""
    schedule = recipe.schedule()
    taken = {name: n for name, n in schedule.consumed(schedule.total).items() if n}
    total = sum(n * flops[name] for name, n in taken.items())
    return Cost(taken[recipe.target] * recipe.train.batch_size, taken, total)


def with_samples(recipe: Recipe, samples: int) -> Recipe:
    """The recipe with as many target steps as `samples` target samples fill, at least one."""
    return with_steps(recipe, max(1, round(samples / recipe.train.batch_size)))


def with_flops(recipe: Recipe, flops: Mapping[str, float], budget: float) -> Recipe:
    """The recipe with the most target steps whose cost stays within `budget`, at least one."""
    low, high = 1, 2
    while cost(with_steps(recipe, high), flops).flops <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if cost(with_steps(recipe, middle), flops).flops <= budget:
            low = middle
        else:
            high = middle
    return with_steps(recipe, low)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with `steps` target steps and everything that counts steps in proportion.

    A run of another length stays the same method: as many validations as before (each is one
    chance to pick the best weights), warm-ups, changes of ratios and a frozen trunk over the same
    share of the run. A warm-up that would leave no step for the others is left out.
    """
    train = recipe.train
    factor = steps / train.steps

    def scaled(count: int) -> int:
        return max(1, round(count * factor)) if count else 0

    warmup = train.warmup
    if warmup:
        assert warmup.steps is not None, "how many steps an epoch has is known with the data only"
        alone = scaled(warmup.steps)
        none_left = warmup.modality == recipe.target and alone >= steps
        warmup = None if none_left else replace(warmup, steps=alone)
    model, frozen = recipe.model, recipe.model.trunk_frozen
    if not isinstance(frozen, bool):
        model = replace(model, trunk_frozen=scaled(frozen))
    modalities = {
        # Of pieces that fall on one step the last one counts.
        name: replace(spec, ratio=list({scaled(start): r for start, r in spec.ratio}.items()))
        if isinstance(spec.ratio, list)
        else spec
        for name, spec in recipe.modalities.items()
    }
    looks = train.gradients_every
    train = replace(
        train,
        steps=steps,
        validate_every=scaled(train.validate_every),
        lr_warmup=scaled(train.lr_warmup),
        gradients_every=looks and scaled(looks),
        warmup=warmup,
    )
    return replace(recipe, train=train, model=model, modalities=modalities)
