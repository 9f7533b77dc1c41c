"""The plain PyTorch script that `uml_core.benchmarks.step` measures the training step against.

What one writes without this project: `nn.TransformerEncoder`, one forward per modality, the sum
of the losses, one backward, one AdamW step
(weight decay on matrices alone). No needless mask: the causal one is made once and is
a hint only (`is_causal`), so that PyTorch takes its own fast path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uml_core.learner import UnpairedLearner
from uml_core.modalities import KINDS
from uml_core.modalities.base import Batch
from uml_core.specs import ModelSpec, TrainSpec


@dataclass(frozen=True)
class Case:
    """One model with one batch of feature sequences per modality.

    dims     modality -> features per position; the first is the target
    batch    samples of each modality per step
    length   positions per sample
    classes  None = self-supervised (next-embedding, mean squared error)
    """

    name: str
    model: ModelSpec
    dims: Mapping[str, int]
    batch: int
    length: int
    classes: int | None = None

    def learner(self) -> UnpairedLearner:
        """Our model of this case."""
        kind = KINDS["sequence"]
        modalities = {name: kind(kind.Options(dim=dim)) for name, dim in self.dims.items()}
        return UnpairedLearner(modalities, self.model, num_classes=self.classes)

    def batches(self, device: torch.device) -> dict[str, Batch]:
        """A random batch of each modality, without padding, on `device`."""
        random = torch.Generator().manual_seed(0)
        out = {}
        for name, dim in self.dims.items():
            x = torch.randn(self.batch, self.length, dim, generator=random)
            y = torch.randint(self.classes or 1, (self.batch,), generator=random)
            out[name] = Batch(x, y).to(device)
        return out


class Plain(nn.Module):
    """The same model as `Case.learner`, written plainly; `copy_from` makes its weights equal."""

    mask: Tensor | None

    def __init__(self, case: Case) -> None:
        super().__init__()
        spec, classes = case.model, case.classes
        self.stems = nn.ModuleDict({m: nn.Linear(d, spec.width) for m, d in case.dims.items()})
        layer = nn.TransformerEncoderLayer(
            spec.width,
            spec.heads,
            spec.ff or 4 * spec.width,
            spec.dropout,
            spec.activation,
            batch_first=True,
            norm_first=spec.norm == "pre",
        )
        norm = nn.LayerNorm(spec.width) if spec.norm == "pre" else None
        self.encoder = nn.TransformerEncoder(layer, spec.depth, norm, enable_nested_tensor=False)
        self.classifier = None if classes is None else nn.Linear(spec.width, classes, bias=False)
        heads = {} if classes else {m: nn.Linear(spec.width, d) for m, d in case.dims.items()}
        self.decoders = nn.ModuleDict(heads)
        mask = nn.Transformer.generate_square_subsequent_mask(case.length)
        self.register_buffer("mask", None if classes else mask, persistent=False)

    def loss(self, name: str, batch: Batch) -> Tensor:
        """Mean loss of one batch: scalar."""
        x = batch.x
        r = self.encoder(self.stems[name](x), mask=self.mask, is_causal=self.mask is not None)
        if self.classifier is not None:
            return F.cross_entropy(self.classifier(r.mean(1)), batch.y)
        return F.mse_loss(self.decoders[name](r)[:, :-1], x[:, 1:])

    def copy_from(self, learner: UnpairedLearner) -> None:
        """Takes over the weights of our model."""
        self.load_state_dict({plain_name(k): v for k, v in learner.state_dict().items()})


_PARTS = {
    "qkv.": "self_attn.in_proj_",
    "out.": "self_attn.out_proj.",
    "up.": "linear1.",
    "down.": "linear2.",
}


def plain_name(name: str) -> str:
    """Our name of a weight -> the plain script's."""
    name = name.replace("trunk.blocks.", "encoder.layers.").replace("trunk.norm.", "encoder.norm.")
    if name.startswith("stems."):
        name = name.replace(".linear.", ".")
    if name.startswith("encoder."):
        for ours, theirs in _PARTS.items():
            name = name.replace(f".{ours}", f".{theirs}")
    return name


def plain_optimizer(model: Plain, spec: TrainSpec) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": spec.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, spec.lr)


def plain_step(
    model: Plain, optimizer: torch.optim.Optimizer, batches: Mapping[str, Batch]
) -> None:
    """One update on the sum of the modalities' mean losses."""
    optimizer.zero_grad()
    losses = [model.loss(name, batch) for name, batch in batches.items()]
    torch.stack(losses).sum().backward()
    optimizer.step()
