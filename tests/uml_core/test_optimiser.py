"""Rates per step and part, and which weights decay, by name over every stem, trunk and encoder."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from uml_core.learner import UnpairedLearner
from uml_core.modalities import KINDS
from uml_core.optimiser import decays, learning_rate, parameter_groups, rules
from uml_core.specs import ModelSpec, TrainSpec

# ------------------------------------------------------------------------- learning rate


def test_learning_rate_closed_form():
    spec = TrainSpec(lr=2.0, lr_warmup=3)
    assert [learning_rate(spec, t, 103) for t in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(spec, 53, 103) == pytest.approx(1.0)
    assert learning_rate(spec, 102, 103) == pytest.approx(1 + math.cos(math.pi * 0.99), abs=1e-9)
    constant = dataclasses.replace(spec, lr_schedule="constant")
    assert learning_rate(constant, 1, 103) == 1.0 and learning_rate(constant, 99, 103) == 2.0
    assert learning_rate(TrainSpec(lr=1.0, lr_warmup=0), 0, 1) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_rate_of_a_target_batch_does_not_depend_on_steps_before_the_first(schedule):
    spec = TrainSpec(lr=2.0, lr_warmup=3, lr_schedule=schedule)
    alone = [learning_rate(spec, t, 20) for t in range(20)]
    after = [learning_rate(spec, t, 20, lead=50) for t in range(70)]
    assert after[50:] == alone
    assert after[:5] == [0.5, 1.0, 1.5, 2.0, 2.0] and after[49] == 2.0


# ------------------------------------------------------------------------- weight decay

OPTIONS = {
    "image": [
        {"stem": "conv"},
        {"stem": "vit"},
        {"stem": "vit", "pool": False},
        {"stem": "patches"},
        {"stem": "patches", "class_token": True},
    ],
    "text": [{"stem": "bag"}, {"stem": "tokens"}],
    "audio": [{"stem": "conv"}, {"stem": "patches"}],
    "sequence": [{"dim": 3}, {"dim": 3, "stem": "conv1d"}],
    "vector": [{"dim": 1}, {"dim": 5}],
}
TRUNKS = [
    ModelSpec(width=16, depth=2, heads=2, norm=norm, positions=positions, input_norm=more,
              input_projection=more, logit_scale="learned", max_positions=300)
    for norm, positions, more in itertools.product(
        ("pre", "post"), ("learned", "sinusoidal"), (True, False)
    )
]  # fmt: skip
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, nn.EmbeddingBag)


def check(learner: nn.Module, kept: set[str]) -> None:
    """Decay acts on the weights of matrix modules and nothing else, but for `kept` by name."""
    of = rules(learner, TrainSpec(weight_decay=0.5))
    seen = set()
    for place, module in learner.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{place}.{leaf}" if place else leaf
            matrix = isinstance(module, MATRICES) and leaf == "weight"
            matrix = matrix or leaf == "in_proj_weight"  # torch's own attention
            if (parameter.dim() > 1 and not matrix) or ".".join(name.split(".")[-2:]) in kept:
                seen.add(".".join(name.split(".")[-2:]))
                matrix = False
            assert of[name] == (1.0, 0.5 if matrix else 0.0), name
    assert kept <= seen, kept - seen


@pytest.mark.parametrize("spec", TRUNKS, ids=lambda s: f"{s.norm}-{s.positions}-{s.input_norm}")
@pytest.mark.parametrize("supervised", [True, False])
def test_decay_acts_on_matrices_of_every_stem_and_trunk(spec, supervised):
    assert OPTIONS.keys() == KINDS.keys()
    made = {}
    for kind, variants in OPTIONS.items():
        for number, options in enumerate(variants):
            of = KINDS[kind].Options(**options)
            if not KINDS[kind].check(
                of, setting="supervised" if supervised else "self_supervised", width=16, heads=2
            ):
                made[f"{kind}{number}"] = KINDS[kind](of)
    learner = UnpairedLearner(made, spec, num_classes=3 if supervised else None)
    check(learner, {"trunk.positions"} if spec.positions == "learned" else set())


def test_the_name_of_a_modality_says_nothing():
    vector = KINDS["vector"](KINDS["vector"].Options(dim=5))
    names = ("bias", "norm", "positions", "tokens", "logit_scale")
    spec = ModelSpec(width=8, trunk="none", logit_scale="learned")
    check(UnpairedLearner(dict.fromkeys(names, vector), spec, num_classes=3), set())


ENCODERS = {
    "ViT": ({}, {"embeddings.cls_token", "embeddings.position_embeddings"}),
    "DeiT": ({}, {"embeddings.distillation_token", "embeddings.position_embeddings"}),
    "Beit": (
        {"use_relative_position_bias": True, "use_absolute_position_embeddings": True},
        {"relative_position_bias.relative_position_bias_table", "embeddings.cls_token"},
    ),
    "Dinov2": ({}, {"embeddings.cls_token", "embeddings.position_embeddings"}),
    "Dinov2WithRegisters": ({}, {"embeddings.register_tokens"}),
    "CLIPVision": ({}, {"position_embedding.weight"}),
    "SiglipVision": ({}, {"position_embedding.weight", "head.probe"}),
    "Swin": ({"embed_dim": 16, "depths": [1], "num_heads": [2], "use_absolute_embeddings": True},
             {"embeddings.position_embeddings"}),
    "ConvNextV2": ({"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}, {"grn.weight"}),
    "ResNet": ({"hidden_sizes": [8, 8], "depths": [1, 1], "embedding_size": 8}, set()),
}  # fmt: skip


@pytest.mark.encoders
@pytest.mark.parametrize("family", ENCODERS)
def test_decay_leaves_positions_and_tokens_of_pretrained_encoders(family):
    transformers = pytest.importorskip("transformers")
    options, kept = ENCODERS[family]
    sizes = {} if "depths" in options else {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(
        image_size=32, patch_size=8 if sizes else 4, **sizes, **options
    )
    with torch.device("meta"):
        network = getattr(transformers, f"{family}Model")(config)
    check(network, kept)


def test_parts_have_their_own_rate_with_decay_and_without():
    vector = KINDS["vector"](KINDS["vector"].Options(dim=5))
    learner = UnpairedLearner({"x": vector, "y": vector}, ModelSpec(width=8), num_classes=3)
    spec = TrainSpec(
        weight_decay=0.1, lr_factors={"trunk": 0.5, "trunk.blocks.1": 0.1, "stems.x": 3}
    )
    groups = parameter_groups(learner, spec)
    held = {id(p): (g["factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(list(learner.parameters())) == len(held)
    for name, parameter in learner.named_parameters():
        first = 0.1 if name.startswith("trunk.blocks.1.") else 0.5
        factor = first if name.startswith("trunk.") else 3 if name.startswith("stems.x.") else 1.0
        expected = (factor, 0.1 if decays(name, parameter) else 0.0)
        assert held[id(parameter)] == expected, name
