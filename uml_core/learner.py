"""UnpairedLearner: stems f_m, one shared trunk h, decoders g_m, one shared classifier c.

The trunk and the classifier are the only coupling between modalities (paper 3.2, Fig 4). Every
part is initialised from its own seed, so two arms of a comparison start from the same target path
whatever other modalities they hold.

Shape legend: B batch, T positions, D width, C classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uml_core.errors import UserError
from uml_core.modalities import Modality
from uml_core.modalities.base import Batch
from uml_core.objectives import (
    next_embedding_sum,
    next_embedding_terms,
    supervised_sum,
    supervised_terms,
)
from uml_core.recipe import ModelSpec
from uml_core.trunk import Trunk

T_ = TypeVar("T_", bound=nn.Module)


class UnpairedLearner(nn.Module):
    """One model for several unpaired modalities.

    modalities       name -> Modality (its stem, decoder and loss)
    spec             sizes of the shared parts
    num_classes      C; None in the self-supervised setting
    seed             of the initial weights
    label_smoothing  of the supervised loss
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        spec: ModelSpec,
        *,
        num_classes: int | None,
        seed: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.spec = spec
        self.supervised = num_classes is not None
        self.label_smoothing = label_smoothing
        stem = {
            name: seeded(
                seed, f"stem.{name}", lambda m=m: m.stem(spec.width, supervised=self.supervised)
            )
            for name, m in self.modalities.items()
        }
        self.stems = nn.ModuleDict(stem)
        self.trunk: Trunk | None = None
        if spec.trunk == "transformer":
            self.trunk = seeded(seed, "trunk", lambda: Trunk(spec, causal=not self.supervised))
        self.classifier: nn.Linear | None = None
        self.decoders = nn.ModuleDict()
        if num_classes is not None:
            # No bias: the rows are class prototypes that all modalities share (paper 2.3).
            self.classifier = seeded(
                seed, "classifier", lambda: nn.Linear(spec.width, num_classes, bias=False)
            )
            if spec.logit_scale == "learned":
                ones = {name: nn.Parameter(torch.ones(())) for name in self.modalities}
                self.logit_scales = nn.ParameterDict(ones)
        else:
            for name, m in self.modalities.items():
                self.decoders[name] = seeded(
                    seed, f"decoder.{name}", lambda m=m: m.decoder(spec.width)
                )

    # ------------------------------------------------------------------ representation

    def tokens(self, name: str, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """r = h(f_m(x)): (B, T, D) and its mask (B, T) or None."""
        z, mask = self.stems[name](batch.x, batch.mask)
        return (z if self.trunk is None else self.trunk(z, mask)), mask

    def embed(self, name: str, batch: Batch) -> Tensor:
        """Mean of r over valid positions: (B, D). Independent of the other samples of a batch."""
        return masked_mean(*self.tokens(name, batch))

    def logits(self, name: str, batch: Batch) -> Tensor:
        """(B, C) class scores of the shared classifier."""
        return self._classify(name, self.embed(name, batch))

    def _classify(self, name: str, pooled: Tensor) -> Tensor:
        assert self.classifier is not None, "the self-supervised setting has no classifier"
        logits = self.classifier(pooled)
        return logits * self.logit_scales[name] if self.spec.logit_scale == "learned" else logits

    # --------------------------------------------------------------------------- losses

    def forward(self, batches: Mapping[str, Sequence[Batch]]) -> dict[str, Tensor]:
        """Summed loss of every batch of one step: name -> (number of batches,).

        One call per step, however many modalities it takes: data-parallel wrappers need that,
        and modalities whose tokens have the same shape share one trunk call.
        """
        stemmed = [
            (name, batch, *self.stems[name](batch.x, batch.mask))
            for name, group in batches.items()
            for batch in group
        ]
        represented = self._trunk_together([z for _, _, z, _ in stemmed], [m for *_, m in stemmed])
        sums: dict[str, list[Tensor]] = {name: [] for name in batches}
        for (name, batch, _, mask), r in zip(stemmed, represented, strict=True):
            sums[name].append(self._loss_sum(name, batch, r, mask))
        return {name: torch.stack(values) for name, values in sums.items()}

    def _trunk_together(
        self, tokens: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """h over all token tensors; unmasked ones of equal length go through it in one call."""
        if self.trunk is None:
            return list(tokens)
        out: list[Tensor | None] = [None] * len(tokens)
        groups: dict[object, list[int]] = {}
        for i, (z, mask) in enumerate(zip(tokens, masks, strict=True)):
            free = mask is None or self.trunk.causal
            groups.setdefault((z.shape[1], z.dtype) if free else i, []).append(i)
        for members in groups.values():
            if len(members) == 1:
                out[members[0]] = self.trunk(tokens[members[0]], masks[members[0]])
                continue
            parts = self.trunk(torch.cat([tokens[i] for i in members]), None).split(
                [tokens[i].shape[0] for i in members]
            )
            for i, part in zip(members, parts, strict=True):
                out[i] = part
        return [r for r in out if r is not None]

    def _loss_sum(self, name: str, batch: Batch, r: Tensor, mask: Tensor | None) -> Tensor:
        if self.supervised:
            logits = self._classify(name, masked_mean(r, mask))
            return supervised_sum(logits.float(), batch.y, self.label_smoothing)
        modality = self.modalities[name]
        prediction = self.decoders[name](r).float()
        return next_embedding_sum(prediction, modality.targets(batch.x), mask, modality.loss)

    @torch.no_grad()
    def terms(self, name: str, batch: Batch) -> Tensor:
        """Number of terms in a batch's summed loss: labelled samples, or predicted positions."""
        if self.supervised:
            return supervised_terms(batch.y)
        length = self.modalities[name].targets(batch.x).shape[1]
        return next_embedding_terms(length, len(batch), batch.mask)

    # --------------------------------------------------------------------- initialisation

    @torch.no_grad()
    def init_head_from(self, name: str, batches: Iterable[Batch]) -> list[int]:
        """Row k of the classifier <- L2-normalised mean embedding of class k of modality `name`.

        The paper's "Ours (init)" (2.3). Classes without a sample keep their random row; their
        indices are returned so that they can be reported (the reference leaves zero rows).
        """
        if self.classifier is None:
            raise UserError("head_init: class_means needs the supervised setting")
        training = self.training
        self.eval()
        weight = self.classifier.weight
        total = torch.zeros_like(weight)
        count = torch.zeros(len(weight), 1, device=weight.device)
        for batch in batches:
            batch = batch.to(weight.device)
            labelled = batch.y >= 0
            y = batch.y[labelled]
            total.index_add_(0, y, self.embed(name, batch)[labelled].to(total.dtype))
            count.index_add_(0, y, torch.ones(len(y), 1, device=weight.device))
        seen = count.squeeze(1) > 0
        weight[seen] = F.normalize(total[seen] / count[seen], dim=1)
        self.train(training)
        return torch.nonzero(~seen).flatten().tolist()

    def shared_parameters(self) -> list[nn.Parameter]:
        """Weights that every modality uses: trunk and classifier."""
        shared = [m for m in (self.trunk, self.classifier) if m is not None]
        return [p for module in shared for p in module.parameters()]


def masked_mean(r: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, D), (B, T) -> (B, D): mean over valid positions only."""
    if mask is None:
        return r.squeeze(1) if r.shape[1] == 1 else r.mean(1)
    weight = mask.unsqueeze(-1).to(r.dtype)
    return (r * weight).sum(1) / weight.sum(1).clamp(min=1)


def seeded(seed: int, name: str, build: Callable[[], T_]) -> T_:
    """Builds a module whose initial weights depend on (seed, name) only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed}.{name}".encode()))
        return build()
