"""Counted operations and runs of equal cost."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from uml_core import recipe
from uml_core.cost import batch_flops, cost, with_flops, with_samples, with_steps
from uml_core.learner import UnpairedLearner
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.recipe import override
from uml_core.specs import ModelSpec, TrainSpec

FLOPS = {"image": 100.0, "text": 10.0, "wave": 40.0}


@pytest.fixture
def plain(tiny_recipe):
    return recipe.from_dict(tiny_recipe)


def test_operations_of_a_linear_model_are_what_arithmetic_says():
    """A stem 6 -> 8 and a head 8 -> 3 on 4 vectors: forward, and two products each backward."""
    spec = recipe.from_dict(
        {
            "name": "v",
            "target": "v",
            "data_root": ".",
            "modalities": {
                "v": {
                    "kind": "vector",
                    "train": "v.tar",
                    "test": "w.tar",
                    "stem": "linear",
                    "dim": 6,
                }
            },
            "model": {"width": 8, "trunk": "none"},
        }
    )
    learner = UnpairedLearner({"v": spec.modalities["v"].build()}, spec.model, num_classes=3)
    batch = Batch(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    forward = 2 * 4 * 6 * 8 + 2 * 4 * 8 * 3
    stem_backward = 2 * 4 * 6 * 8  # the input needs no gradient
    head_backward = 2 * (2 * 4 * 8 * 3)
    assert batch_flops(learner, {"v": batch})["v"] == forward + stem_backward + head_backward
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [15, 20, 32, 64])
def test_attention_counts_alike_whatever_kernel_computes_it(length, causal):
    """Two products forward and four backward, each 2 T T D; the linear maps beside are counted."""
    B, T, D = 3, length, 8
    spec = ModelSpec(width=D, depth=1, heads=2, ff=16)
    modality = KINDS["sequence"](KINDS["sequence"].Options(dim=5, stem="frames"))
    learner = UnpairedLearner({"s": modality}, spec, num_classes=None if causal else 3)
    found = batch_flops(learner, {"s": Batch(torch.randn(B, T, 5), torch.tensor([0, 1, 2]))})
    stem = 2 * B * T * 5 * D
    block = 2 * B * T * D * (3 * D + D + 2 * 16)
    head = 2 * B * T * D * 5 if causal else 2 * B * D * 3
    attention = 2 * (2 * B * T * T * D)
    linear = 2 * stem + 3 * block + 3 * head  # the stem's input needs no gradient
    assert found["s"] == linear + 3 * attention


def test_masked_attention_counts_alike():
    spec = ModelSpec(width=8, depth=1, heads=2)
    learner = UnpairedLearner(
        {"s": KINDS["sequence"](KINDS["sequence"].Options(dim=5))}, spec, num_classes=3
    )
    x, y = torch.randn(2, 40, 5), torch.tensor([0, 1])
    mask = torch.arange(40) < torch.tensor([[40], [7]])
    assert batch_flops(learner, {"s": Batch(x, y, mask)}) == batch_flops(
        learner, {"s": Batch(x, y)}
    )


def test_cost_counts_the_batches_of_the_schedule(plain):
    found = cost(plain, FLOPS)  # 12 steps, text 1 and wave 0.5 per target batch
    assert found.batches == {"image": 12, "text": 12, "wave": 6}
    assert found.target_samples == 12 * 8
    assert found.flops == 12 * 100 + 12 * 10 + 6 * 40


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0, 4.0])
def test_equal_flops_give_the_most_steps_within_the_budget(plain, ratio):
    changed = override(plain, {"modalities.text.ratio": ratio, "modalities.wave.ratio": 0.0})
    budget = cost(plain, FLOPS).flops
    fitted = with_flops(changed, FLOPS, budget)
    more = with_steps(fitted, fitted.train.steps + 1)
    assert cost(fitted, FLOPS).flops <= budget < cost(more, FLOPS).flops


def test_equal_samples_with_another_batch_size(plain):
    small = override(plain, {"train.batch_size": 4})
    fitted = with_samples(small, plain.train.steps * plain.train.batch_size)
    assert cost(fitted, FLOPS).target_samples == cost(plain, FLOPS).target_samples
    assert fitted.train.steps == 24 and fitted.train.validate_every == 8  # as many validations


def test_warm_up_keeps_its_share_of_the_run(plain):
    warm = override(plain, {"train.warmup": {"modality": "image", "steps": 3}})
    assert with_steps(warm, 24).train.warmup.steps == 6
    assert with_steps(warm, 1).train.warmup is None  # it would leave no step for the others


def test_a_run_of_another_length_is_the_same_method(plain):
    """Everything that counts steps keeps its share of the run."""
    made = override(
        plain,
        {
            "modalities.text.ratio": [[0, 2.0], [3, 0.5], [9, 1.0]],
            "model.trunk_frozen": 6,
            "train.lr_warmup": 4,
            "train.gradients_every": 2,
            "train.warmup": {"modality": "wave", "steps": 2},
            "train.patience": 3,
        },
    )
    long = with_steps(made, 36)
    assert long.modalities["text"].ratio == [(0, 2.0), (9, 0.5), (27, 1.0)]
    assert long.modalities["wave"] == made.modalities["wave"]
    assert (long.model.trunk_frozen, long.train.lr_warmup) == (18, 12)
    assert (long.train.gradients_every, long.train.validate_every) == (6, 12)
    assert (long.train.warmup.steps, long.train.patience) == (6, 3)
    one, three = (r.schedule().consumed(r.schedule().total) for r in (made, long))
    assert three == {name: 3 * n for name, n in one.items()}
    assert with_steps(made, 12) == made
    recipe.override(with_steps(made, 2), {})  # pieces that fall together leave a legal ratio
    for frozen in (True, False, 0):
        fixed = override(plain, {"model.trunk_frozen": frozen, "train.lr_warmup": 0})
        assert with_steps(fixed, 36).model == fixed.model
        assert with_steps(fixed, 36).train.lr_warmup == 0


def test_every_field_that_counts_steps_is_scaled_or_stays_for_a_reason(plain):
    """A new field must take its place in one of these sets."""
    scaled = {"steps", "validate_every", "lr_warmup", "gradients_every", "warmup"}
    stays = {
        "checkpoint_every",  # how much a restart loses
        "patience",  # counts validations
        "max_failures",
        "batch_size",
        "workers",
    }
    counts = {f.name for f in dataclasses.fields(TrainSpec) if re.search(r"\bint\b", str(f.type))}
    assert counts <= scaled | stays, counts - scaled - stays
